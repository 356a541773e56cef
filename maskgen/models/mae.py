"""Masked autoencoders: an encoder of the visible patches and a decoder that regresses the others."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskgen.core.check import CheckContext, under
from maskgen.core.predictions import Condition, Point
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.decoders import DecoderSpec, Joint, class_and_grid, predicted_width
from maskgen.models.trunks import init_trunk
from maskgen.nn.embeddings import require_sincos
from maskgen.nn.encoders import EncoderStates, LayeredEncoder
from maskgen.nn.heads import LossHead
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.relative import SharedBias
from maskgen.nn.published_blocks import ViTSizes
from maskgen.processes import is_mask

Positions = Literal["sincos", "relative"]


class PatchEncoder(nn.Module, ABC):
    """A ViT over a class token and the visible patches, and a decoder of the others: the base of MAE and DiffMAE.

    Args:
        token_width: channels of a patch.
        grid: (h, w) of the patches, L = h w; positions are fixed sines and cosines.
        sizes: sizes of the encoder.
        decoder: of the masked patches.
        sees_all: the encoder's input includes [MASK]s.
        target_width: numbers predicted per patch; 0 for those of a patch, -1 for the encoder's width.

    Raises:
        ValueError: a decoder that does not fit the encoder.
    """

    traits: NetworkTraits
    positions: Tensor

    def __init__(
        self,
        token_width: int,
        grid: tuple[int, int],
        sizes: ViTSizes,
        decoder: DecoderSpec,
        sees_all: bool = False,
        target_width: int = 0,
    ) -> None:
        super().__init__()
        decoder.require_fit(sizes.depth, sees_all)
        self.base_grid, self.width = grid, sizes.width
        self.embedding = nn.Linear(token_width, sizes.width)
        self.class_token = nn.Parameter(torch.empty(sizes.width))
        self.register_buffer("positions", class_and_grid(grid, grid, sizes.width), persistent=False)
        self.encoder = LayeredEncoder(sizes, is_norm_learned=decoder.reads_output)
        self.decoder = decoder.build(sizes, grid)
        self.head = nn.Linear(self.decoder.width, predicted_width(target_width, sizes.width, token_width))
        self.bias: SharedBias | None = None

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check that sizes are possible, and that the decoder fits the encoder.

        Raises:
            ValueError: they do not.
        """
        keys, decoder = context.model, context.model["decoder"]
        try:
            require_sincos(ViTSizes.of(keys).width)
        except ValueError as error:
            raise under("model", error) from None
        try:
            decoder.require_fit(keys["depth"], keys.get("encoder_sees") == "all")
        except ValueError as error:
            raise under("model.decoder", error) from None

    def _init(self) -> None:
        """MAE's start: Xavier-uniform matrices, zero biases, small tokens."""
        init_trunk(self)
        nn.init.normal_(self.class_token, std=0.02)
        self.decoder.init_mixing()

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Work on another grid of the same image: positions are scaled to cover it."""
        self.positions = class_and_grid(self.base_grid, grid, self.width).to(self.positions.device)
        self.decoder.set_grid(grid)

    def features(self, x_0: Tensor) -> Tensor:
        """Encoder output (B, L, D) of unmasked patches (B, L, token_width), without the class token."""
        return self._encode(self.embedding(x_0), None).output[:, 1:]

    def attention_scores(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:  # noqa: ARG002
        """(B, L), attention from the class token to each unmasked patch in the last block."""
        return self.encoder.attention_scores(self._with_class_token(self.embedding(x_0)))

    def _encode(self, x: Tensor, visible: TokenSubset | None) -> EncoderStates:
        """States (B, 1 + K, D) of the encoder, from embedded patches (B, L, D)."""
        bias = None if self.bias is None else self.bias()
        states: EncoderStates = self.encoder(self._with_class_token(x), visible, bias)
        return states

    def _with_class_token(self, x: Tensor) -> Tensor:
        """(B, 1 + L, D), with the class token in front and positions added."""
        return torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions


@MODELS.register("mae")
class MAE(PatchEncoder):
    """Patches (B, L, D) with [MASK] = NaN -> the masked ones (He et al., arXiv 2111.06377).

    Published sizes, width x depth, heads: B 768 x 12, 12; L 1024 x 24, 16; H 1280 x 32, 16. With decoder `cross` it is
    CrossMAE (arXiv 2401.14391); `encoder_sees: all` with decoder `linear` is SimMIM (arXiv 2111.09886).

    Args:
        token_width: channels of a patch.
        grid: (h, w) of the patches, L = h w.
        width, depth, heads, mlp_ratio, dropout: of the encoder.
        decoder: `joint`, `cross`, `cross_self` or `linear`.
        encoder_sees: `visible` patches only, or `all`, a learned vector in place of each masked one.
        has_difficulty: a second head predicts each patch's loss, which mask strategy `hard` requires.
        attention: `auto`, `sdpa` or `xformers`.
        positions: `sincos`, added to the embedded patches; or `relative`, a bias of the attention scores, learned once
            for all blocks, of an encoder that sees all (SimMIM).
        layer_scale: start of a learned factor of each branch of the encoder's blocks; 0 is none, SimMIM's is 0.1.
        target_width: numbers predicted per patch, see `PatchEncoder`.
    """

    traits = NetworkTraits(
        objectives=("masked_regression", "projected_regression"),
        tokens=("continuous",),
        streams=("image",),
        conditions=(),
        predicts_points=True,
        subset_is_visible=True,
        has_attention_scores=True,
        has_features=True,
        has_fixed_grid=False,
    )

    def __init__(
        self,
        token_width: int,
        grid: tuple[int, int],
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        decoder: DecoderSpec = Joint(),
        encoder_sees: Literal["visible", "all"] = "visible",
        has_difficulty: bool = False,
        attention: AttentionBackend = "auto",
        positions: Positions = "sincos",
        layer_scale: float = 0.0,
        target_width: int = 0,
    ) -> None:
        sees_all = encoder_sees == "all"
        _require_all(positions, sees_all)
        sizes = ViTSizes(width, depth, heads, mlp_ratio, dropout, attention, layer_scale=layer_scale)
        super().__init__(token_width, grid, sizes, decoder, sees_all, target_width)
        self.traits = self.traits_for({"has_difficulty": has_difficulty, "decoder": decoder, "positions": positions})
        if positions == "relative":
            self.bias, self.positions = SharedBias(grid, heads), torch.zeros_like(self.positions)
        self.sees_all, self.is_independent = sees_all, decoder.is_independent
        self.mask_token = nn.Parameter(torch.empty(width if sees_all else self.decoder.width))
        self.loss_head = LossHead(self.decoder.width) if has_difficulty else None
        self._init()

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        return replace(
            cls.traits,
            has_difficulty=keys["has_difficulty"],
            has_independent_decoder=keys["decoder"].is_independent,
            has_attention_scores=keys["positions"] == "sincos",  # which are computed without the bias
            has_fixed_grid=keys["positions"] == "relative",
        )

    @classmethod
    def check(cls, context: CheckContext) -> None:
        super().check(context)
        _require_all(context.model["positions"], context.model["encoder_sees"] == "all")

    def set_grid(self, grid: tuple[int, int]) -> None:
        if self.bias is not None and grid != self.base_grid:
            raise ValueError(f"relative positions are of a grid {self.base_grid}, not {grid}; use positions sincos")
        if self.bias is None:
            super().set_grid(grid)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - one signature for all denoisers
        cond: Condition | None = None,  # noqa: ARG002
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
        targets: TokenSubset | None = None,
    ) -> Point:
        """x_t (B, L, D), NaN in masked patches -> Point of the M masked ones, or of those at `where` (B, L), packed.

        Args:
            subset: the visible patches, if their number is known; else they are counted.
            targets: `where` as positions.
        """
        visible = TokenSubset.of(~is_mask(x_t, 0)) if subset is None else subset
        if targets is None:  # patches that attend to each other must all be decoded
            targets = visible.rest() if where is None or not self.is_independent else TokenSubset.of(where)
        hidden = self._decode(x_t, visible, targets)
        if where is not None and not self.is_independent:
            hidden = targets.scatter(hidden)[where]
        else:
            hidden, where = targets.pack(hidden), targets.is_kept() if where is None else where
        return Point(self.head(hidden), where, None if self.loss_head is None else self.loss_head(hidden))

    def difficulty(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - one signature for all networks
        cond: Condition | None = None,  # noqa: ARG002
        *,
        subset: TokenSubset | None = None,
    ) -> Tensor:
        """(B, L), predicted difficulty of masked patches, 0 elsewhere; needs `has_difficulty`."""
        visible = TokenSubset.of(~is_mask(x_t, 0)) if subset is None else subset
        targets = visible.rest()
        assert self.loss_head is not None
        return targets.scatter(self.loss_head(self._decode(x_t, visible, targets)))

    def _decode(self, x_t: Tensor, visible: TokenSubset, targets: TokenSubset) -> Tensor:
        """Decoder output (B, M, W) of the target patches."""
        is_masked = is_mask(x_t, 0)[..., None]
        x = self.embedding(x_t.masked_fill(is_masked, 0))
        if self.sees_all:
            x = torch.where(is_masked, self.mask_token.to(x.dtype), x)
        seen = None if self.sees_all else visible
        decoded: Tensor = self.decoder(self._encode(x, seen), seen, self.mask_token, targets)
        return decoded


def _require_all(positions: Positions, sees_all: bool) -> None:
    """Check that relative positions have all patches.

    Raises:
        ValueError: they do not.
    """
    if positions == "relative" and not sees_all:
        raise ValueError(
            "positions relative needs an encoder of all patches: set encoder_sees all, or positions sincos"
        )

"""The diffusion transformer over continuous tokens, with masking as a switch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.check import CheckContext, under
from maskgen.core.predictions import Condition, Field, labels_of
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.trunks import NoMasking, Sizes, Switch, check_masking, init_trunk, masking_name
from maskgen.nn.embeddings import LabelEmbedding, TimeEmbedding, sincos_2d, sincos_over
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.registry import Mixer, mixer_name
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.processes import Gaussian


@MODELS.register("dit")
class DiT(nn.Module):
    """Tokens (B, L, D) of a Gaussian process -> Field (Peebles and Xie, arXiv 2212.09748).

    One backbone for DiT, naive and deferred masking, MaskDiT and MDT, selected by `masking`. Published sizes, width x
    depth, heads: S 384 x 12, 6; B 768 x 12, 12; L 1024 x 24, 16; XL 1152 x 28, 16.

    Args:
        token_width: channels of a token.
        grid: (h, w) of the tokens, L = h w.
        n_classes: labels; 0 for an unconditional network. There is always a row for "no class".
        width, depth, heads, mlp_ratio: the usual sizes.
        masking: `none`, `naive`, `deferred`, `maskdit` or `mdt`.
        has_variance: a second output per channel is the reverse step's variance (learned range, arXiv 2102.09672).
        positions: `sincos`, fixed, or `learned` from there.
        qk_norm: RMS-normalised queries and keys, against divergence in half precision.
        attention: `auto`, `sdpa` or `xformers`; a masking with a position bias always runs on SDPA.
        mixer: how tokens are mixed, `attention` or another of `MIXERS`; masking `mdt` has attention only.
    """

    traits = NetworkTraits(
        objectives=("denoising",), tokens=("continuous",), streams=("image",), is_field=True, has_features=True
    )
    positions: Tensor

    def __init__(
        self,
        token_width: int,
        grid: tuple[int, int],
        n_classes: int = 0,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        masking: Switch = NoMasking(),
        has_variance: bool = False,
        positions: Literal["sincos", "learned"] = "sincos",
        qk_norm: bool = False,
        attention: AttentionBackend = "auto",
        mixer: Mixer = ATTENTION,
    ) -> None:
        super().__init__()
        if min(width, depth, heads) < 1 or not mlp_ratio > 0:
            raise ValueError(
                f"width, depth, heads and mlp_ratio must be positive, got {width}, {depth}, {heads} and {mlp_ratio}"
            )
        _require_mixer(masking, mixer)
        self.masking, self.has_variance, self.width, self.base_grid = masking, has_variance, width, grid
        traits = self.traits_for({"masking": masking, "positions": positions, "mixer": mixer})
        self.traits = replace(traits, conditions=("class",) if n_classes else ())
        self.embedding = nn.Linear(token_width, width)
        self.time = TimeEmbedding(width, scale=1.0)
        self.labels = LabelEmbedding(n_classes, width) if n_classes else None
        n_out = token_width * (1 + has_variance)
        self.trunk = masking.trunk(Sizes(width, depth, heads, mlp_ratio, attention, grid, n_out, qk_norm, mixer))
        if positions == "learned":
            self.positions = nn.Parameter(sincos_2d(grid, width))
        else:
            self.register_buffer("positions", sincos_2d(grid, width), persistent=False)
        self._init()

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        masking: Switch = keys["masking"]
        mixer: Mixer = keys["mixer"]
        traits = replace(
            cls.traits,
            drops_tokens=masking.drops,
            is_two_pass=masking.is_two_pass,
            reconstructs=masking.reconstructs,
            has_fixed_grid=masking.fixed_grid or keys["positions"] == "learned",
        )
        return mixer.traits.limit(traits)

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check keys of a recipe against each other, the process, dropped tokens and resolutions.

        Raises:
            ValueError: they do not go together.
        """
        _require_mixer(context.model["masking"], context.model["mixer"])
        check_masking(context, context.model["positions"])
        if context.model["has_variance"] and isinstance(context.process, Gaussian):
            try:
                context.process.require_reverse_steps()
            except ValueError as error:
                raise under("model.has_variance", error) from None

    def _init(self) -> None:
        init_trunk(self.trunk)
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.zeros_(self.embedding.bias)
        for parameter in [*self.time.parameters(), *(self.labels.parameters() if self.labels is not None else ())]:
            nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Work on another grid of the same image: positions are scaled to cover it.

        Raises:
            ValueError: learned positions, or a masking with a fixed grid.
        """
        if grid == self.base_grid and len(self.positions) == grid[0] * grid[1]:
            return
        if isinstance(self.positions, nn.Parameter):
            raise ValueError(f"learned positions are of a grid {self.base_grid}, not {grid}; use positions sincos")
        self.trunk.set_grid(grid)
        self.positions = sincos_over(self.base_grid, grid, self.width).to(self.positions.device)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
    ) -> Field:
        """x_t (B, L, D) and t (B,) as the process scales them -> Field of all tokens, or of the kept ones.

        Raises:
            ValueError: a subset under `masking: none`.
        """
        if subset is not None and not self.masking.drops:
            raise ValueError("masking none drops no tokens; take naive, deferred, maskdit or mdt, or keep_ratio 1")
        outputs = self.trunk(self.embedding(x_t) + self.positions, self._hidden(t, cond), subset)
        value, variance = outputs.chunk(2, -1) if self.has_variance else (outputs, None)
        return Field(value, variance, None if self.masking.answers_all else subset)

    def features(self, x_0: Tensor, t: Tensor, block: int = 0) -> Tensor:
        """x_0 (B, L, D) and a time near 0, t (B,), as the process scales them -> (B, L, width) after some block.

        No class is given. `block` counts from 1; 0 is the middle one: the best features of diffusion networks are
        in their middle, not at their end (DDAE, arXiv 2303.09769).

        Raises:
            ValueError: no such block.
        """
        return self.trunk.features(self.embedding(x_0) + self.positions, self._hidden(t, None), block)

    def _hidden(self, t: Tensor, cond: Condition | None) -> Tensor:
        """Condition of the blocks (B, width): time plus class."""
        hidden: Tensor = self.time(t)
        if self.labels is not None:
            hidden = hidden + self.labels(labels_of(cond, t))
        return F.silu(hidden)


def _require_mixer(masking: Switch, mixer: Mixer) -> None:
    """Check that a masking's blocks can have a mixer.

    Raises:
        ValueError: they cannot.
    """
    if masking.needs_attention and mixer != ATTENTION:
        raise ValueError(
            f"model.mixer: masking {masking_name(masking)} adds a bias to attention scores, {mixer_name(mixer)} has "
            "none; use mixer attention, or another masking"
        )

"""MAR and eMIGM: an encoder of visible tokens, a decoder of all, and a head that samples each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.check import CheckContext, under
from maskgen.core.predictions import NULL, Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits, TokenKind
from maskgen.models.base import MODELS
from maskgen.models.tables import Tables
from maskgen.models.token_head import HEADS, Diffusion, Head
from maskgen.nn.decoders import JointDecoder
from maskgen.nn.encoders import VisibleEncoder
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.published_blocks import ViTSizes
from maskgen.processes import is_mask
from maskgen.processes.diffusion_head import DiffusionHead


@MODELS.register("mar")
class MAR(nn.Module):
    """Tokens with [MASK], (B, L, D) or (B, L) -> a prediction of the masked ones (MAR, arXiv 2406.11838; eMIGM).

    Published sizes, width x depth of encoder and decoder, heads: B 768 x 12, 12; L 1024 x 16, 16; H 1280 x 20, 16;
    eMIGM also XS 448 x 10 and S 512 x 12.

    Args:
        vocab_size: V of discrete tokens, 0 for continuous ones.
        token_width: D of continuous tokens.
        grid: (h, w) of the tokens, L = h w.
        n_classes: labels; 0 for an unconditional network.
        width, depth, heads, mlp_ratio, dropout: of the encoder and of the decoder.
        head: `diffusion` for continuous tokens, or `categorical` for discrete ones.
        n_buffer: class tokens in front of the others.
        encode_visible: the encoder's input is the visible tokens only, as in MAE; if not, [MASK]s too, which have no
            position before the decoder.
        null_token: the embedding of "no class": its `own` (MAR), or the `mask` token (eMIGM's guidance with mask).
        attention: `auto`, `sdpa` or `xformers`.
    """

    traits = NetworkTraits(
        objectives=("token_diffusion", "masked_tokens"),
        streams=("image",),
        subset_is_visible=True,  # not a part to be computed, some of it masked: nothing else can be dropped
        has_attention_scores=True,
        has_features=True,
    )

    def __init__(
        self,
        vocab_size: int,
        token_width: int,
        grid: tuple[int, int],
        n_classes: int = 0,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        head: Head = Diffusion(),
        n_buffer: int = 64,
        encode_visible: bool = True,
        null_token: Literal["own", "mask"] = "own",
        attention: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        _require_buffers(n_buffer)
        if (head.tokens == "discrete") != bool(vocab_size):
            raise ValueError(f"head: {_unfit(bool(vocab_size))}")
        self.traits = replace(self.traits_for({"head": head}), conditions=("class",) if n_classes else ())
        self.vocab_size, self.n_buffer, self.n_classes = vocab_size, n_buffer, n_classes
        self.encode_visible, length = encode_visible, grid[0] * grid[1]
        sizes = ViTSizes(width, depth, heads, mlp_ratio, dropout, attention)
        self.embedding = nn.Embedding(vocab_size, width) if vocab_size else nn.Linear(token_width, width)
        self.labels = nn.Embedding(n_classes, width) if n_classes else None
        self.null = nn.Parameter(torch.empty(width)) if null_token == "own" else None
        self.mask_token = nn.Parameter(torch.empty(width))
        self.encoder_positions = nn.Parameter(torch.empty(n_buffer + length, width))
        self.decoder_positions = nn.Parameter(torch.empty(n_buffer + length, width))
        self.head_positions = nn.Parameter(torch.empty(length, width))
        self.embedding_norm = nn.LayerNorm(width, eps=1e-6)
        self.encoder = VisibleEncoder(sizes)
        self.decoder = JointDecoder(width, sizes)
        self._init()
        self.head = head.build(width, vocab_size, token_width)

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        tokens: TokenKind = keys["head"].tokens
        return replace(cls.traits, tokens=(tokens,), has_token_diffusion=tokens == "continuous")

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check that sizes are possible, and that the head is for the recipe's tokens.

        Raises:
            ValueError: they are not, or it is not.
        """
        keys, is_discrete = context.model, context.has_discrete_tokens
        try:
            ViTSizes.of(keys)
            _require_buffers(keys["n_buffer"])
        except ValueError as error:
            raise under("model", error) from None
        if (keys["head"].tokens == "discrete") != is_discrete:
            raise ValueError(f"model.head: {_unfit(is_discrete)}")

    def tables(self) -> Tables:
        """Rows of labels, and of tokens where they are discrete."""
        labels: Tables = {} if self.labels is None else {"labels.weight": ("class",)}
        tokens: Tables = dict.fromkeys(("embedding.weight", "head.net.weight", "head.net.bias"), ("token",))
        return {**labels, **tokens} if self.vocab_size else labels

    def _init(self) -> None:
        """Xavier-uniform matrices, zero biases; tokens and positions normal with deviation 0.02, as published."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - the masks determine the time
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical | DiffusionHead:
        """x_t (B, L, D) with NaN, or (B, L) with V, where masked -> prediction, at `where` (B, L) only if given.

        `subset` are the visible tokens, if known; else they are determined from x_t.
        """
        is_masked = is_mask(x_t, self.vocab_size)
        visible = (subset or TokenSubset.of(~is_masked)) if self.encode_visible else None
        encoded = self.encoder(self._input(x_t, is_masked, cond), visible)
        decoded = self.decoder(encoded, self.decoder_positions, self.mask_token, visible)
        z = decoded[:, self.n_buffer :] + self.head_positions
        prediction: Categorical | DiffusionHead = self.head(z if where is None else z[where], where)
        return prediction

    def features(self, x_0: Tensor) -> Tensor:
        """x_0 (B, L, D), or (B, L) int64, nothing masked -> encoder output (B, L, W); no class."""
        encoded: Tensor = self.encoder(self._input(x_0, is_mask(x_0, self.vocab_size), None), None)
        return encoded[:, self.n_buffer :]

    def attention_scores(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:
        """(B, L), attention from the class tokens to each of the others in the encoder's last block."""
        return self.encoder.attention_scores(self._input(x_0, is_mask(x_0, self.vocab_size), cond), self.n_buffer)

    def _input(self, x_t: Tensor, is_masked: Tensor, cond: Condition | None) -> Tensor:
        """Encoder input (B, buffers + L, W); the mask token comes in last, without position and norm, as published."""
        known = self.embedding(x_t.masked_fill(is_masked if x_t.ndim == 2 else is_masked[..., None], 0))
        x = self.embedding_norm(torch.cat([self._condition(len(x_t), cond), known], 1) + self.encoder_positions)
        is_filled = F.pad(is_masked, (self.n_buffer, 0))
        return torch.where(is_filled[..., None], self.mask_token.to(x.dtype), x)

    def _condition(self, n_rows: int, cond: Condition | None) -> Tensor:
        """(B, buffers, W), the class embedding in each, or that of no class."""
        null = self.mask_token if self.null is None else self.null
        if self.labels is None or cond is None:
            return null.expand(n_rows, self.n_buffer, -1)
        labels = cond.labels
        rows = torch.where((labels == NULL)[:, None], null, self.labels(labels.clamp(min=0)))
        return rows[:, None].expand(-1, self.n_buffer, -1)


def _unfit(is_discrete: bool) -> str:
    """Why a head is refused, and which to use."""
    kind = "discrete" if is_discrete else "continuous"
    able = [name for name in HEADS.names() if cast(type[Head], HEADS.get(name)).tokens == kind]
    return f"it does not predict {kind} tokens; use {' or '.join(able)}"


def _require_buffers(n: int) -> None:
    if n < 1:
        raise ValueError(f"n_buffer must be at least 1, or the encoder of a fully masked row has no input; got {n}")

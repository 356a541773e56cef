"""Bidirectional denoiser of text: MDLM, MD4, SEDD, LLaDA and Dream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.text import TextTransformer
from maskgen.models.text_settings import TextSizes
from maskgen.nn.patterns import packed


@MODELS.register("mdlm")
class MDLM(TextTransformer):
    """Bidirectional denoiser of text (MDLM, arXiv 2406.07524; MD4, 2406.04329; LLaDA, 2502.09992; Dream, 2508.15487).

    The published small network is `width: 768, depth: 12, heads: 12, cond_width: 128, has_mask_row: true`:
    169,627,218 parameters with GPT-2's 50,257 tokens and [MASK].

    Args:
        has_time: see `TextTransformer`.
        has_exponents: one learned exponent a token, for the objective `state_dependent` (GenMD4).
        is_shifted: the hidden vector at i - 1 predicts token i, as in the autoregressive network that training began
            with (Dream); token 0 is predicted at its own position.
        grid: see `TextTransformer`.
        **sizes: see `TextSettings`.
    """

    traits = replace(
        TextTransformer.traits,
        objectives=("masked_tokens", "state_dependent"),
        drops_tokens=True,
        takes_documents=True,
    )

    def __init__(
        self,
        vocab_size: int,
        has_time: bool = False,
        has_exponents: bool = False,
        is_shifted: bool = False,
        grid: tuple[int, ...] = (),
        **sizes: Unpack[TextSizes],
    ) -> None:
        super().__init__(vocab_size, has_time, grid=grid, **sizes)
        self.is_shifted = is_shifted
        self.traits = self.traits_for({"has_exponents": has_exponents, "is_shifted": is_shifted, **sizes})
        if has_exponents:
            self.raw_exponents = nn.Parameter(torch.full((vocab_size,), math.log(math.e - 1)))

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        traits = super().traits_for(keys)
        drops_tokens = traits.drops_tokens and not keys["is_shifted"]
        return replace(traits, has_exponents=bool(keys["has_exponents"]), drops_tokens=drops_tokens)

    @property
    def exponents(self) -> Tensor | None:
        """(V,) w of the schedule alpha = 1 - t^w, 1 at the start; None without them."""
        return F.softplus(self.raw_exponents) if self.traits.has_exponents else None

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,  # noqa: ARG002 - text has no classes
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
        valid: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at the positions `where` (B, L).

        Args:
            x_t: tokens, [MASK] where masked.
            t: (B,) times, read with `has_time` only.
            cond: not used.
            subset: only these tokens are computed; logits elsewhere are undefined.
            where: positions to predict.
            valid: (B, L) bool, False for padding: no token attends to it, and its logits are undefined.
            documents: (B, L) int64; a token attends to its own document only.
        """
        mask = packed(valid, documents).mask(x_t.shape[1], x_t.device)
        if subset is None:
            x = self.hidden(x_t, t, mask)
            return self.logits(torch.cat([x[:, :1], x[:, :-1]], 1) if self.is_shifted else x, t, where)
        if mask is not None:
            raise ValueError("dropped tokens do not go with valid or documents; use keep_ratio 1")
        if self.is_shifted:
            raise ValueError("dropped tokens do not go with is_shifted; use keep_ratio 1")
        x = self.hidden(subset.gather(x_t), t, positions=subset.keep)
        return self.logits(subset.scatter(x), t, where)

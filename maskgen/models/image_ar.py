"""Autoregression over the tokens of an image in raster order, with the conditions of a MaskGIT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.predictions import Condition, labels_of
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.blockwise import Autoregressive
from maskgen.models.text_settings import TextSizes
from maskgen.nn.embeddings import LabelEmbedding


@MODELS.register("image_ar")
class ImageAutoregressive(Autoregressive):
    """Causal transformer over image tokens in raster order, the rival of MaskGIT (arXiv 2202.04200, section 4.2).

    The class modulates every block (adaLN), as in `maskgit` with condition adaln. Keys and values of decoded tokens are
    cached: a sample takes L passes of one token.

    Args:
        vocab_size: V; [MASK] = V stands for the beginning.
        grid: (h, w) of the tokens, L = h w.
        n_classes: labels; 0 for an unconditional network.
        **sizes: see `TextTransformer`; `cond_width` 0 is the width.
    """

    traits = replace(
        Autoregressive.traits, streams=("image",), conditions=("class",), has_null_label=True, has_fixed_grid=True
    )

    def __init__(self, vocab_size: int, grid: tuple[int, ...], n_classes: int = 0, **sizes: Unpack[TextSizes]) -> None:
        width = sizes.get("width", 256)
        cond_width = (sizes.get("cond_width", 0) or width) if n_classes else 0
        sizes["cond_width"] = cond_width
        super().__init__(vocab_size, grid, **sizes)
        self.traits = replace(self.traits, conditions=("class",) if n_classes else ())
        self.time = None
        self.labels = LabelEmbedding(n_classes, cond_width) if n_classes else None
        self.positions = nn.Parameter(torch.empty(math.prod(grid), width))
        nn.init.trunc_normal_(self.positions, std=0.02, a=-0.04, b=0.04)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.02)

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        return replace(super().traits_for(keys), has_fixed_grid=True)

    def placed(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings x (B, L, D) at positions (L,), learned ones added; no rotation."""
        return x + self.positions.index_select(0, positions), None

    def condition(self, t: Tensor, cond: Condition | None = None) -> Tensor | None:
        """The class vector (B, C); of "no class" without a condition."""
        if self.labels is None:
            return None
        return F.silu(self.labels(labels_of(cond, t)))

"""From rows of a data set to the batches of an objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskgen.core.pixels import to_float
from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.data.base import ImageSource
from maskgen.data.image.captions import CaptionTable
from maskgen.data.image.views import pair_of
from maskgen.data.loader import flip
from maskgen.data.text.rows import document_ids
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.image.latent import KLTokenizer, draw_latents

ToBatch = Callable[[Tensor, Tensor, Rng], Batch]
"""Rows and labels of a data set, and noise -> Batch on the device."""


def image_to_batch(
    recipe: Recipe,
    tokenizer: ImageTokenizer | None,
    source: ImageSource,
    device: torch.device,
    captions: CaptionTable | None,
) -> ToBatch:
    """From rows of a data set, images (B, C, H, W) uint8, tokens (B, L) or moments of latents, to a Batch."""
    has_labels, is_flipped = bool(source.classes), recipe.train.flip

    def to_x_0(rows: Tensor, rng: Rng) -> Tensor:
        if tokenizer is not None and tokenizer.has_discrete_tokens:
            return rows
        if isinstance(tokenizer, KLTokenizer):
            views = (rng.fork("flip").uniform(rows.shape[:1], device=device) * rows.shape[1]).long()
            return draw_latents(rows[torch.arange(len(rows), device=device), views], rng.fork("latents"))
        images = flip(to_float(rows), rng.fork("flip")) if is_flipped else to_float(rows)
        return images if tokenizer is None else tokenizer.encode(images)

    def to_condition(labels: Tensor) -> Condition | None:
        if captions is not None:
            labels, numbers = labels.unbind(1)
            return Condition(labels.to(device), captions.rows(numbers).to(device))
        return Condition(labels.to(device)) if has_labels else None

    def convert(rows: Tensor, labels: Tensor, rng: Rng) -> Batch:
        rows, view = rows.to(device), None
        if recipe.train.views is not None and rows.ndim == 3:  # held-out rows have no views
            rows, view = pair_of(rows, recipe.train.views, rng.fork("views"))
        return Batch(to_x_0(rows, rng), to_condition(labels), view=view)

    return convert


def text_to_batch(device: torch.device, eos: int | None, *, has_answers: bool) -> ToBatch:
    """From tokens (B, L) to a Batch on the device; with `eos` it says which document each token is of.

    Rows that end in an answer have the number of tokens before it as their label.
    """

    def convert(x_0: Tensor, labels: Tensor, rng: Rng) -> Batch:  # noqa: ARG001
        x_0 = x_0.to(device)
        documents = None if eos is None else document_ids(x_0, eos)
        if not has_answers:
            return Batch(x_0, documents=documents)
        place = torch.arange(x_0.shape[1], device=device)
        return Batch(x_0, documents=documents, is_answer=place >= labels.to(device)[:, None])

    return convert

"""Augmented views of images as rows of a data set, so that their tokens are stored like those of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from maskgen.core.rng import Rng, fold
from maskgen.data.base import ImageSplit
from maskgen.data.cache import TokenData

Ratio = Annotated[float, Field(gt=0, le=1)]


class Views(BaseModel):
    """Augmented views of the training images, `n` of each, stored as tokens; a step samples one view of each image.

    For a contrastive term. The generative loss is that of the image itself, or without `has_original` of another view.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n: int = Field(8, ge=1, le=255)
    scale: tuple[Ratio, Ratio] = Field((0.5, 1.0), description="share of the image's area that a view shows")
    shift: int = Field(0, ge=0, description="pixels a view is moved by at most, beyond its place in the image")
    flip: bool = False
    has_original: bool = True

    @model_validator(mode="after")
    def _are_possible(self) -> Views:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale goes from the least to the largest share, got {self.scale}")
        if not self.has_original and self.n < 2:
            raise ValueError("has_original false takes two of the n views; set n to 2 or more")
        return self


class ViewedSplit(ImageSplit):
    """Each image of a split and its views, one after the other: row r is view r % (n + 1) of image r // (n + 1).

    View 0 is the image itself. A view depends on its number, that of its image and how views are made, not on how many.
    """

    def __init__(self, split: ImageSplit, views: Views) -> None:
        self.split, self.views, self.each = split, views, views.n + 1
        self.labels = split.labels.repeat_interleave(self.each)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        needed, index = (rows // self.each).unique(return_inverse=True)  # an image is read once for all its views
        images, labels = self.split.__getitems__(needed.tolist())
        images = images[index]
        is_view = rows % self.each > 0
        if bool(is_view.any()):
            rng = Rng.per_sample([fold("view", *divmod(row, self.each)) for row in rows[is_view].tolist()])
            images[is_view] = augmented(images[is_view], self.views, rng)
        return images, labels[index]

    def name_of(self, row: int) -> str:
        return self.split.name_of(row // self.each)

    def fingerprint(self) -> str:
        made = self.views.model_dump_json(exclude={"has_original"})
        return hashlib.sha256(f"{self.split.fingerprint()} views {made}".encode()).hexdigest()


class ViewedTokens(Dataset[tuple[Tensor, Tensor]]):
    """The tokens of a `ViewedSplit` of N images, all views of an image at once."""

    def __init__(self, tokens: TokenData, views: Views) -> None:
        self.tokens, self.each = tokens, views.n + 1

    def __len__(self) -> int:
        return len(self.tokens) // self.each

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens (B, n + 1, L) int64 and labels (B,) int64."""
        rows = torch.as_tensor(indices)[:, None] * self.each + torch.arange(self.each)
        tokens, labels = self.tokens.__getitems__(rows.flatten().tolist())
        return tokens.unflatten(0, (-1, self.each)), labels[:: self.each]


def pair_of(rows: Tensor, views: Views, rng: Rng) -> tuple[Tensor, Tensor]:
    """Tokens (B, n + 1, L) of all views -> (B, L) of the generative loss, and (B, L) of another view."""
    n, index = views.n, torch.arange(len(rows), device=rows.device)
    draws = rng.uniform((len(rows), 2), device=rows.device)
    second = (draws[:, 0] * n).long()  # float64: below n
    if views.has_original:
        return rows[:, 0], rows[index, 1 + second]
    first = (second + 1 + (draws[:, 1] * (n - 1)).long()) % n
    return rows[index, 1 + first], rows[index, 1 + second]


def augmented(images: Tensor, views: Views, rng: Rng) -> Tensor:
    """Images (B, C, H, W) uint8, each cropped, shifted and mirrored at random and resized back; edges are repeated."""
    n, _, height, width = images.shape
    low, high = views.scale
    u = rng.uniform((n, 4)).float()
    side = (low + (high - low) * u[:, 0]).sqrt()  # of the cut-out square, the image's is 1
    turn = torch.where(u[:, 3] < 0.5, -1.0, 1.0) if views.flip else torch.ones(n)
    x, y = ((2 * u[:, i] - 1) * (1 - side + 2 * views.shift / size) for i, size in ((1, width), (2, height)))
    zero = torch.zeros(n)
    theta = torch.stack([side * turn, zero, x, zero, side, y], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    seen = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return seen.round().clamp(0, 255).to(torch.uint8)

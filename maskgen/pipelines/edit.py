"""Inpainting and outpainting: a picture and the region of it to generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from maskgen.core.devices import device_of
from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.pixels import to_float
from maskgen.core.rng import Rng
from maskgen.data.image.pictures import read_image, to_square
from maskgen.tokenizers import ImageTokenizer

HOLES = ("center", "border", "left", "right", "top", "bottom", "all")
Picture = Image.Image | Tensor | str | Path
Hole = str | Path | Tensor
Holes = Hole | Sequence[str | Path]
"""A region, or several, which are generated together."""


@dataclass(frozen=True)
class Edit:
    """A picture (C, H, W) uint8, the region to generate, (1, H, W) bool, and the share of its tokens to generate."""

    picture: Tensor
    wanted: Tensor
    strength: float = 1.0

    @classmethod
    def of(
        cls,
        picture: Picture,
        hole: Holes | None,
        image_shape: tuple[int, int, int],
        strength: float = 1.0,
    ) -> Edit:
        """A picture and a hole as a user names them, brought to the shape (C, H, W) of a checkpoint's images.

        Args:
            picture: a file, a PIL image, or (C, H, W) uint8 of that shape.
            hole: `center`, the middle half; `border`, all but it (outpainting); `left`, `right`, `top`, `bottom`, a
                half; `all`; four numbers `x0,y0,x1,y1` in shares of the picture; a file or (1, H, W) bool, white is
                generated; or several of these names. None is `center`, and `all` with a strength below 1.
            image_shape: (C, H, W) of the checkpoint.
            strength: share of the hole's tokens that are generated; those that stay are drawn at random.

        Raises:
            UserError: a file that cannot be read, a shape that does not fit, an unknown hole, or a strength outside
                (0, 1].
        """
        if not 0 < strength <= 1:
            raise UserError(f"strength must lie in (0, 1], the share of tokens to generate, got {strength:g}")
        given, (height, width) = _brought(picture, image_shape), image_shape[1:]
        if hole is None:
            hole = "center" if strength == 1 else "all"
        holes = [hole] if isinstance(hole, str | Path | Tensor) else list(hole)
        wanted = torch.stack([_region(one, height, width) for one in holes]).any(0)
        if (wanted.all() and strength == 1) or not wanted.any():
            what = "nothing of the picture" if wanted.all() else "nothing to generate"
            raise UserError(f"the hole {' and '.join(map(str, holes))} leaves {what}")
        return cls(given, wanted, strength)

    def known(self, tokenizer: ImageTokenizer, seeds: Sequence[int]) -> Tensor:
        """Known tokens (n, L) int64, -1 in the hole, or (n, L, D) float, NaN there, on the tokenizer's device.

        Which tokens of the hole stay depends on the seed of a sample only.
        """
        device = device_of(tokenizer)
        image, wanted = to_float(self.picture[None].to(device)), self.wanted[None].to(device)
        known = tokenizer.known(image, wanted)
        known = known.expand(len(seeds), *known.shape[1:])
        if self.strength == 1:
            return known
        is_open = known.isnan().any(-1) if known.is_floating_point() else known < 0
        score = Rng.per_sample(seeds).fork("strength").uniform(is_open.shape, device=device)
        rank = score.masked_fill(~is_open, 2.0).argsort(1).argsort(1)
        n_made = (is_open.sum(1, keepdim=True) * self.strength).round().clamp(min=1)
        is_kept = is_open & (rank >= n_made)
        whole = tokenizer.known(image, torch.zeros_like(wanted))
        return torch.where(is_kept[..., None] if known.is_floating_point() else is_kept, whole, known)

    def paste(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) uint8 with the picture's own pixels outside the hole."""
        return torch.where(self.wanted, images, self.picture)


def _brought(picture: Picture, image_shape: tuple[int, int, int]) -> Tensor:
    """A picture as (C, H, W) uint8."""
    channels, height, width = image_shape
    if isinstance(picture, Tensor):
        if picture.shape != image_shape or picture.dtype != torch.uint8:
            raise UserError(f"the picture must be uint8 {image_shape}, got {picture.dtype} {tuple(picture.shape)}")
        return picture
    if height != width:
        raise UserError(f"give the picture as a tensor {image_shape}: files are cropped to squares only")
    if isinstance(picture, Image.Image):
        return to_square(picture, height, 3 if channels == 3 else 1)
    return read_image(local_path(picture), height, 3 if channels == 3 else 1)


def _region(hole: Hole, height: int, width: int) -> Tensor:
    """(1, H, W) bool."""
    if isinstance(hole, Tensor):
        if hole.shape != (1, height, width):
            raise UserError(f"the hole must be (1, {height}, {width}), got {tuple(hole.shape)}")
        return hole.bool()
    boxes = {
        "center": (0.25, 0.25, 0.75, 0.75), "border": (0.25, 0.25, 0.75, 0.75), "left": (0.0, 0.0, 0.5, 1.0),
        "right": (0.5, 0.0, 1.0, 1.0), "top": (0.0, 0.0, 1.0, 0.5), "bottom": (0.0, 0.5, 1.0, 1.0),
        "all": (0.0, 0.0, 1.0, 1.0),
    }  # fmt: skip
    name = str(hole)
    box = boxes.get(name) or _numbers(name)
    if box is None:
        path = local_path(hole)
        if not path.is_file():
            raise UserError(f"hole {name!r}: choose from {', '.join(HOLES)}, four shares x0,y0,x1,y1, or a mask's file")
        return read_image(path, height, 1) > 127
    region = torch.zeros(1, height, width, dtype=torch.bool)
    left, top, right, bottom = (round(share * side) for share, side in zip(box, (width, height) * 2, strict=True))
    region[:, top:bottom, left:right] = True
    return ~region if name == "border" else region


def _numbers(text: str) -> tuple[float, ...] | None:
    """Four shares in [0, 1] in order; None for anything else."""
    try:
        box = tuple(float(part) for part in text.split(","))
    except ValueError:
        return None
    is_box = len(box) == 4 and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
    return box if is_box else None

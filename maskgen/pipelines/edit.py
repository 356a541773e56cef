"""Inpainting and outpainting: a picture and the region of it to generate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.pixels import to_float
from maskgen.data.image.pictures import read_image, to_square
from maskgen.tokenizers import ImageTokenizer

HOLES = ("center", "border", "left", "right", "top", "bottom")
Picture = Image.Image | Tensor | str | Path


@dataclass(frozen=True)
class Edit:
    """A picture (C, H, W) uint8 and the region to generate, (1, H, W) bool."""

    picture: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, picture: Picture, hole: str | Path | Tensor, image_shape: tuple[int, int, int]) -> Edit:
        """A picture and a hole as a user names them, brought to the shape (C, H, W) of a checkpoint's images.

        Args:
            picture: a file, a PIL image, or (C, H, W) uint8 of that shape.
            hole: `center`, the middle half; `border`, all but it (outpainting); `left`, `right`, `top`, `bottom`, a
                half; four numbers `x0,y0,x1,y1` in shares of the picture; a file or (1, H, W) bool, white is generated.

        Raises:
            UserError: a file that cannot be read, a shape that does not fit, or an unknown hole.
        """
        channels, height, width = image_shape
        if isinstance(picture, Tensor):
            if picture.shape != image_shape or picture.dtype != torch.uint8:
                raise UserError(f"the picture must be uint8 {image_shape}, got {picture.dtype} {tuple(picture.shape)}")
            given = picture
        elif height != width:
            raise UserError(f"give the picture as a tensor {image_shape}: files are cropped to squares only")
        elif isinstance(picture, Image.Image):
            given = to_square(picture, height, 3 if channels == 3 else 1)
        else:
            given = read_image(local_path(picture), height, 3 if channels == 3 else 1)
        wanted = _region(hole, height, width)
        if wanted.all() or not wanted.any():
            raise UserError(
                f"the hole {hole!s} leaves {'nothing of the picture' if wanted.all() else 'nothing to generate'}"
            )
        return cls(given, wanted)

    def known(self, tokenizer: ImageTokenizer, n: int) -> Tensor:
        """Known tokens (n, L) int64, -1 in the hole, or (n, L, D) float, NaN there, on the tokenizer's device."""
        device = next((p.device for p in tokenizer.parameters()), torch.device("cpu"))
        known = tokenizer.known(to_float(self.picture[None].to(device)), self.wanted[None].to(device))
        return known.expand(n, *known.shape[1:])

    def paste(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) uint8 with the picture's own pixels outside the hole."""
        return torch.where(self.wanted, images, self.picture)


def _region(hole: str | Path | Tensor, height: int, width: int) -> Tensor:
    """(1, H, W) bool."""
    if isinstance(hole, Tensor):
        if hole.shape != (1, height, width):
            raise UserError(f"the hole must be (1, {height}, {width}), got {tuple(hole.shape)}")
        return hole.bool()
    boxes = {
        "center": (0.25, 0.25, 0.75, 0.75), "border": (0.25, 0.25, 0.75, 0.75), "left": (0.0, 0.0, 0.5, 1.0),
        "right": (0.5, 0.0, 1.0, 1.0), "top": (0.0, 0.0, 1.0, 0.5), "bottom": (0.0, 0.5, 1.0, 1.0),
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

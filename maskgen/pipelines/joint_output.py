"""What a pipeline of several streams returns: pictures, captions, labels and maps of the same samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import atomic, local_path
from maskgen.core.pixels import to_uint8
from maskgen.core.streams import Part
from maskgen.data.image.grid import grid
from maskgen.data.image.pictures import to_pil
from maskgen.pipelines.sheet import SHEETS

ENDINGS = (*SHEETS, ".jsonl")


@dataclass(frozen=True, repr=False)
class JointOutput:
    """Generated rows; what a checkpoint's rows do not hold is None.

    Attributes:
        images: N images, PIL.
        captions: N strings.
        labels: class id of each.
        maps: (N, H, W) int64, a class of each pixel.
        tokens: (N, L) int64 of global ids.
        pixels: (N, C, H, W) uint8 of the images.
        n_map_classes: classes of the maps.
        seeds: seed of each.
        unmasked_at: (N, L) int64, the step (from 1) at which each token was unmasked, 0 for given tokens.
    """

    images: list[Image.Image] | None
    captions: list[str] | None
    labels: list[int] | None
    maps: Tensor | None
    tokens: Tensor
    pixels: Tensor | None = None
    n_map_classes: int = 0
    seeds: tuple[int, ...] = ()
    unmasked_at: Tensor | None = None

    def save(self, path: str | Path, *, n_columns: int = 0, scale: int | None = None) -> Path:
        """Write pictures (`.png`, `.jpg`, `.webp`; maps beside them), or captions and labels (`.jsonl`); the path.

        Args:
            path: where; the ending chooses the format.
            n_columns: samples in a row of a sheet; 0 makes it as square as possible.
            scale: whole factor of enlargement; None enlarges small ones to 56 pixels.

        Raises:
            UserError: another ending, or nothing of that kind in these samples.
        """
        target = local_path(path)
        if target.suffix not in ENDINGS:
            raise UserError(f"cannot write {str(path)!r}: the ending must be {', '.join(ENDINGS)}")
        if target.suffix == ".jsonl":
            lines = [json.dumps(line, ensure_ascii=False) for line in self.lines()]
            with atomic(target) as file:
                file.write(("\n".join(lines) + "\n").encode())
        else:
            with atomic(target) as file:
                grid(self.tiles(), n_columns, scale=scale).save(file, SHEETS[target.suffix.lower()], quality=95)
        return target

    def with_pixels(self, pixels: Tensor) -> JointOutput:
        """The same samples with other pictures (N, C, H, W) uint8."""
        return replace(self, pixels=pixels, images=to_pil(pixels))

    def lines(self) -> list[dict[str, object]]:
        """Seed, caption and label of each sample, those there are."""
        columns: dict[str, Sequence[object] | None] = {
            "seed": self.seeds, "caption": self.captions, "label": self.labels
        }  # fmt: skip
        return [
            {name: column[index] for name, column in columns.items() if column} for index in range(len(self.tokens))
        ]

    def tiles(self) -> Tensor:
        """(N, C, H, W) uint8: each picture with its map on the right."""
        if self.pixels is None:
            raise UserError("these samples have no pictures; write captions and labels as .jsonl")
        if self.maps is None:
            return self.pixels
        shown = map_pixels(self.maps, self.n_map_classes).expand_as(self.pixels)
        return torch.cat([self.pixels, shown], -1)

    def __repr__(self) -> str:
        kinds = ("images", "captions", "labels", "maps")
        there = [kind for kind in kinds if vars(self)[kind] is not None]
        return f"JointOutput({len(self.tokens)} samples: {', '.join(there)})"


class JointStep(NamedTuple):
    """A step of a decoding: its number, the tokens after it, and what they show; [MASK] is some token of a picture."""

    step: int
    tokens: Tensor
    output: JointOutput


def output_of(
    parts: Mapping[str, Part],
    tokens: Tensor,
    seeds: Sequence[int] = (),
    unmasked_at: Tensor | None = None,
    n_map_classes: int = 0,
) -> JointOutput:
    """Decoded parts of rows as an output; pictures float in [0, 1] become bytes."""
    pixels = to_uint8(_tensor(parts["image"])).cpu() if "image" in parts else None
    captions = parts.get("caption")
    return JointOutput(
        None if pixels is None else to_pil(pixels),
        None if captions is None else list(map(str, captions)),
        _tensor(parts["label"]).tolist() if "label" in parts else None,
        _tensor(parts["map"]).cpu() if "map" in parts else None,
        tokens.cpu(),
        pixels,
        n_map_classes,
        tuple(seeds),
        unmasked_at,
    )


def map_pixels(maps: Tensor, n_classes: int) -> Tensor:
    """Maps (N, H, W) -> (N, 1, H, W) uint8, class c as the grey level 255 c / (C - 1)."""
    return (maps.double() * (255 / max(n_classes - 1, 1))).round().to(torch.uint8)[:, None]


def _tensor(part: Part) -> Tensor:
    assert isinstance(part, Tensor)
    return part

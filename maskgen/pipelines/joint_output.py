"""What a pipeline of several streams returns: pictures, captions, labels, maps and clips of the same samples."""

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

ENDINGS = (*SHEETS, ".gif", ".jsonl")


@dataclass(frozen=True, repr=False)
class JointOutput:
    """Generated rows; what a checkpoint's rows do not hold is None.

    Attributes:
        images: N images, PIL.
        captions: N strings.
        labels: class id of each.
        maps: (N, H, W) int64, a class of each pixel.
        clips: (N, T, C, H, W) uint8.
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
    clips: Tensor | None
    tokens: Tensor
    pixels: Tensor | None = None
    n_map_classes: int = 0
    seeds: tuple[int, ...] = ()
    unmasked_at: Tensor | None = None

    def save(self, path: str | Path, *, n_columns: int = 0, scale: int | None = None) -> Path:
        """Write pictures (`.png`, `.jpg`, `.webp`; a map beside its picture, a clip as a strip), clips as an animation
        (`.gif`), or captions and labels (`.jsonl`); the path.

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
        elif target.suffix == ".gif":
            write_clips(target, self._required_clips(), n_columns, scale)
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
        """(N, C, H, W) uint8: each picture with its map on the right, or the frames of a clip side by side."""
        if self.clips is not None:
            return torch.cat(list(self.clips.unbind(1)), -1)
        if self.pixels is None:
            raise UserError("these samples have no pictures; write captions and labels as .jsonl")
        if self.maps is None:
            return self.pixels
        shown = map_pixels(self.maps, self.n_map_classes).expand_as(self.pixels)
        return torch.cat([self.pixels, shown], -1)

    def _required_clips(self) -> Tensor:
        if self.clips is None:
            raise UserError("these samples are no clips; an animation of the decoding is written by --animate")
        return self.clips

    def __repr__(self) -> str:
        kinds = ("images", "captions", "labels", "maps", "clips")
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
    pixels, clips = (to_uint8(_tensor(parts[name])).cpu() if name in parts else None for name in ("image", "video"))
    captions = parts.get("caption")
    return JointOutput(
        None if pixels is None else to_pil(pixels),
        None if captions is None else list(map(str, captions)),
        _tensor(parts["label"]).tolist() if "label" in parts else None,
        _tensor(parts["map"]).cpu() if "map" in parts else None,
        clips,
        tokens.cpu(),
        pixels,
        n_map_classes,
        tuple(seeds),
        unmasked_at,
    )


def map_pixels(maps: Tensor, n_classes: int) -> Tensor:
    """Maps (N, H, W) -> (N, 1, H, W) uint8, class c as the grey level 255 c / (C - 1)."""
    return (maps.double() * (255 / max(n_classes - 1, 1))).round().to(torch.uint8)[:, None]


def map_of_pixels(pixels: Tensor, n_classes: int) -> Tensor:
    """Undoes `map_pixels`: (N, 1, H, W) uint8 -> (N, H, W) int64, the class of the nearest grey level."""
    return (pixels[:, 0].double() * ((n_classes - 1) / 255)).round().long()


def write_clips(
    path: Path, clips: Tensor, n_columns: int = 0, scale: int | None = None, milliseconds: int = 150
) -> None:
    """Write clips (N, T, C, H, W) uint8 side by side as a looping GIF."""
    frames = [grid(clips[:, index], n_columns, scale=scale) for index in range(clips.shape[1])]
    with atomic(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def _tensor(part: Part) -> Tensor:
    assert isinstance(part, Tensor)
    return part

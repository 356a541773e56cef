"""What is given of rows of several streams: captions with gaps, pictures with holes, labels, maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.pixels import to_float
from maskgen.pipelines.arguments import texts_of
from maskgen.pipelines.classes import Classes, ClassNames
from maskgen.pipelines.edit import Edit, Holes, Picture, as_picture
from maskgen.tokenizers.joint.rows import CaptionStream, PictureStream, RowTokenizer, StreamTokenizer

Pictures = Picture | Sequence[Picture]
"""A file, a PIL image, (C, H, W) or (N, C, H, W) uint8; or several."""


@dataclass(frozen=True)
class Known:
    """What is given of rows, each 1 or N of them; the rest is generated.

    Attributes:
        prompt: captions; `_` is a token to generate, a final `...` leaves the rest open.
        image: pictures.
        hole: regions of one picture that are generated, see `Edit.of`; None for none.
        label: classes by name or id.
        map: (H, W) or (N, H, W) int64.
    """

    prompt: Sequence[str] | str | None = None
    image: Pictures | None = None
    hole: Holes | None = None
    label: Classes | None = None
    map: Tensor | None = None


@dataclass(frozen=True)
class RowReader:
    """From what a user gives to known tokens.

    Attributes:
        tokenizer: of the rows.
        image_shape: (C, H, W) of pictures.
        classes: names of a label stream's classes.
        device: of the tokenizer.
    """

    tokenizer: RowTokenizer
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    device: torch.device

    def stream(self, name: str) -> StreamTokenizer:
        """The tokenizer of a stream.

        Raises:
            UserError: the rows hold none of that name.
        """
        if name not in self.tokenizer.streams:
            raise UserError(f"rows of this checkpoint hold {', '.join(self.tokenizer.streams)}, no {name}")
        return self.tokenizer.streams[name]

    def rows(self, given: Known) -> Tensor | None:
        """(N, L) int64 of global ids, [MASK] at tokens to generate; None if nothing is given.

        Raises:
            UserError: something that the rows do not hold or that does not fit them, or unequal numbers.
        """
        tokens = dict(self._given(given))
        if not tokens:
            return None
        n_rows = max(map(len, tokens.values()))
        if any(len(value) not in (1, n_rows) for value in tokens.values()):
            counts = ", ".join(f"{len(value)} of {name}" for name, value in tokens.items())
            raise UserError(f"give one or equally many of each part, got {counts}")
        return self.tokenizer.layout.masked(tokens, n_rows)

    def known(self, given: Known) -> Tensor | None:
        """`rows` with -1 at tokens to generate, as a decoding takes them."""
        rows = self.rows(given)
        return None if rows is None else torch.where(rows == self.tokenizer.layout.mask_id, -1, rows)

    def _given(self, given: Known) -> Iterator[tuple[str, Tensor]]:
        """Tokens (n, L_s) of the streams that are given, V_s at [MASK]."""
        if texts := texts_of("prompt", given.prompt):
            part = self.stream("caption")
            assert isinstance(part, CaptionStream)
            yield "caption", torch.cat([part.gapped(text) for text in texts])
        if given.image is not None:
            yield "image", self._picture_tokens(given)
        elif given.hole is not None:
            raise UserError("hole is of a picture: give image as well")
        if given.label is not None:
            self.stream("label")
            yield "label", torch.tensor(ClassNames(self.classes, False).ids(given.label))[:, None]
        if given.map is not None:
            yield "map", self.stream("map").encode(given.map if given.map.ndim == 3 else given.map[None]).cpu()

    def _picture_tokens(self, given: Known) -> Tensor:
        part = self.stream("image")
        assert isinstance(part, PictureStream)
        if (edit := self.edit(given)) is not None:
            tokens = edit.known(part.tokenizer, [0]).cpu()
            return torch.where(tokens < 0, part.stream.vocab_size, tokens)
        return part.encode(to_float(self._pictures(given.image)).to(self.device)).cpu()

    def _pictures(self, image: Pictures | None) -> Tensor:
        """(N, C, H, W) uint8."""
        shape = self.image_shape
        if isinstance(image, Tensor) and image.ndim == 4:
            return torch.stack([as_picture(one, shape) for one in image])
        several = list(image) if isinstance(image, Sequence) and not isinstance(image, str) else [image]
        return torch.stack([as_picture(one, shape) for one in several if one is not None])

    def edit(self, given: Known) -> Edit | None:
        """The picture with a hole, if there is one."""
        if given.hole is None or given.image is None:
            return None
        pictures = self._pictures(given.image)
        if len(pictures) != 1:
            raise UserError(f"a hole is of one picture, got {len(pictures)}")
        return Edit.of(pictures[0], given.hole, self.image_shape)

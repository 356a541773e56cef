"""Rows of several streams: pictures, captions, labels and maps <-> one row of tokens."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.errors import UserError
from maskgen.core.streams import Part, Stream, TokenLayout
from maskgen.tokenizers.base import ImageTokenizer, Tokenizer
from maskgen.tokenizers.text.gapped import GAP, gapped_tokens
from maskgen.tokenizers.text.tokenizer import TextTokenizer

MOST_PATTERNS = 2**16
"""Ids of a map stream."""
OPEN_END = "..."
"""At the end of a caption with gaps: whatever follows is generated."""


class StreamTokenizer(nn.Module, ABC):
    """The samples of one stream <-> its tokens (N, L_s) int64 in 0 ... V_s - 1; V_s stands for [MASK]."""

    stream: Stream

    @abstractmethod
    def encode(self, part: Part) -> Tensor:
        """Samples -> (N, L_s)."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Part:
        """(N, L_s) -> samples; [MASK] is decoded as some token."""

    @abstractmethod
    def identity(self) -> str:
        """Identifies the mapping."""


class PictureStream(StreamTokenizer):
    """Images by an image tokenizer."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.stream = Stream("image", "image", tokenizer.vocab_size, tokenizer.grid)

    def encode(self, part: Part) -> Tensor:
        return self.tokenizer.encode(cast(Tensor, part))

    def decode(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode(tokens.clamp(max=self.stream.vocab_size - 1))

    def identity(self) -> str:
        return self.tokenizer.fingerprint()


class CaptionStream(StreamTokenizer):
    """Captions of at most L tokens; one id more than the tokenizer's fills the row after the end.

    Args:
        tokenizer: of the text.
        length: L.
    """

    def __init__(self, tokenizer: TextTokenizer, length: int) -> None:
        super().__init__()
        self.tokenizer, self.end = tokenizer, tokenizer.vocab_size
        never = tuple({*tokenizer.specials.forbidden, *([] if tokenizer.eos is None else [tokenizer.eos])})
        self.stream = Stream("caption", "text", self.end + 1, (length,), forbidden=never)

    def encode(self, part: Part) -> Tensor:
        """N captions -> (N, L).

        Raises:
            UserError: a caption of more than L tokens.
        """
        assert not isinstance(part, Tensor)
        rows = [self._filled(tokens, text) for text, tokens in zip(part, self.tokenizer.encode_all(part), strict=True)]
        return torch.stack(rows)

    def gapped(self, text: str) -> Tensor:
        """(1, L) of a caption in which each `_`, and what follows a final `...`, is [MASK]."""
        is_open = text.endswith(OPEN_END)
        tokens = gapped_tokens(self.tokenizer, text.removesuffix(OPEN_END) if is_open else text)
        row = self._filled(torch.where(tokens < 0, self.stream.vocab_size, tokens), text)
        if is_open:
            row[len(tokens) :] = self.stream.vocab_size
        return row[None]

    def decode(self, tokens: Tensor) -> list[str]:
        """(N, L) -> N captions, without what follows their end; `_` for [MASK]."""
        n = (tokens == self.end).int().argmax(1)
        ends = torch.where((tokens == self.end).any(1), n, tokens.shape[1]).tolist()
        shown = torch.where(tokens >= self.end, -1, tokens).cpu()
        return [self.tokenizer.decode(row[:end], GAP) for row, end in zip(shown, ends, strict=True)]

    def identity(self) -> str:
        return f"{self.stream.length} {self.tokenizer.fingerprint()}"

    def _filled(self, tokens: Tensor, text: str) -> Tensor:
        """(L,) int64, the tokens of a caption and its end."""
        if len(tokens) > self.stream.length:
            raise UserError(
                f"the caption {text[:60]!r} has {len(tokens)} tokens, a row has room for {self.stream.length}: shorten "
                "it, or set streams.caption.length higher (before training)"
            )
        return F.pad(tokens, (0, self.stream.length - len(tokens)), value=self.end)


class LabelStream(StreamTokenizer):
    """Class labels, one token.

    Args:
        n_classes: V.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        if n_classes < 1:
            raise UserError("streams.label: the data have no classes; leave it out")
        self.stream = Stream("label", "label", n_classes, (1,))

    def encode(self, part: Part) -> Tensor:
        """Labels (N,) -> (N, 1).

        Raises:
            UserError: an image without label.
        """
        labels = torch.as_tensor(part)
        if len(labels) and int(labels.min()) < 0:
            raise UserError("streams.label: some images have no label; leave the stream out, or these images")
        return labels[:, None]

    def decode(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]

    def identity(self) -> str:
        return f"{self.stream.vocab_size} labels"


class MapStream(StreamTokenizer):
    """Segmentation maps: squares of pixels become cells by majority, squares of cells one id of all their patterns.

    The cells of a map are kept exactly.

    Args:
        n_classes: C.
        size: (H, W) of a map.
        cell: side of a cell in pixels.
        patch: side of a pattern in cells; V = C^(patch^2).

    Raises:
        UserError: sizes that do not divide the map, or more than 65,536 patterns.
    """

    def __init__(self, n_classes: int, size: tuple[int, int], cell: int = 1, patch: int = 1) -> None:
        super().__init__()
        side, self.n_classes, self.cell, self.patch = cell * patch, n_classes, cell, patch
        if side < 1 or any(one % side for one in size):
            raise UserError(f"streams.map: cell * patch must divide both sides of a map {size}, got {cell} * {patch}")
        if n_classes ** (patch * patch) > MOST_PATTERNS:
            raise UserError(
                f"streams.map.patch: {patch} makes {n_classes}^{patch * patch} patterns of {n_classes} classes, more "
                f"than {MOST_PATTERNS:,}; choose a smaller one"
            )
        self.stream = Stream("map", "map", n_classes ** (patch * patch), (size[0] // side, size[1] // side))

    def encode(self, part: Part) -> Tensor:
        cells = self.cells(cast(Tensor, part))
        patterns = cells.unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch).flatten(3)
        return (patterns * self._powers(cells.device)).sum(-1).flatten(1)

    def decode(self, tokens: Tensor) -> Tensor:
        """(N, L_s) -> maps (N, H, W)."""
        tokens = tokens.clamp(max=self.stream.vocab_size - 1).view(len(tokens), *self.stream.shape)
        digits = tokens[..., None] // self._powers(tokens.device) % self.n_classes  # (N, h, w, patch^2)
        cells: Tensor = (
            digits.unflatten(-1, (self.patch, self.patch)).permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)
        )
        return cells.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)

    def cells(self, maps: Tensor) -> Tensor:
        """(N, H, W) -> (N, H / cell, W / cell), the most frequent class of each cell, the lower one of two."""
        if self.cell == 1:
            return maps
        squares = maps.unfold(1, self.cell, self.cell).unfold(2, self.cell, self.cell).flatten(3)
        counts = torch.stack([(squares == index).sum(-1) for index in range(self.n_classes)], -1)
        return counts.argmax(-1)

    def identity(self) -> str:
        return f"{self.n_classes} classes, cell {self.cell}, patch {self.patch}"

    def _powers(self, device: torch.device) -> Tensor:
        return self.n_classes ** torch.arange(self.patch * self.patch, device=device)


class RowTokenizer(nn.Module, Tokenizer):
    """Samples of several parts <-> rows (N, L) of global ids.

    Args:
        parts: tokenizers of the streams, in the order of the row.
    """

    def __init__(self, parts: Sequence[StreamTokenizer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.layout = TokenLayout.of(*(part.stream for part in parts))
        self.vocab_size = self.layout.vocab_size

    @property
    def streams(self) -> dict[str, StreamTokenizer]:
        """The tokenizers of the streams by name."""
        return {part.stream.name: part for part in cast("list[StreamTokenizer]", list(self.parts))}

    def encode(self, samples: Mapping[str, Part]) -> Tensor:
        """Parts of N samples by name -> rows (N, L), [MASK] in streams that are left out."""
        return self.layout.join({name: self.streams[name].encode(part) for name, part in samples.items()})

    def decode(self, rows: Tensor) -> dict[str, Part]:
        """Rows (N, L) -> the parts of N samples by name."""
        return {name: self.streams[name].decode(tokens) for name, tokens in self.layout.split(rows).items()}

    @property
    def n_map_classes(self) -> int:
        """Classes of a map; 0 in rows without."""
        return next((part.n_classes for part in self.parts if isinstance(part, MapStream)), 0)

    def fingerprint(self) -> str:
        """SHA-256 over the tokenizers of all streams."""
        text = "\n".join(f"{name}: {part.identity()}" for name, part in self.streams.items())
        return hashlib.sha256(text.encode()).hexdigest()

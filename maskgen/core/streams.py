"""Streams: the parts of a sample, and how their tokens share one row.

A sample is a row of tokens (B, L), or (B, L, D) for continuous tokens. The row is made of one or more streams: an
image, its caption, its label. Each stream has a grid and a range of the vocabulary; all share one mask id. With one
stream, ids and positions are those of the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

StreamKind = Literal["image", "text", "label", "map", "video"]


@dataclass(frozen=True)
class Stream:
    """Tokens of one kind within a row.

    Attributes:
        name: unique in its layout, ``image``, ``caption``.
        kind: what the tokens stand for.
        vocab_size: V, number of token ids; 0 for continuous tokens.
        shape: grid of the tokens, n-dimensional: (h, w) of an image, (L,) of a text, (T, h, w) of a video.
        width: D, numbers in a continuous token; 0 for discrete ones.
    """

    name: str
    kind: StreamKind
    vocab_size: int
    shape: tuple[int, ...]
    width: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(StreamKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(StreamKind))}, got {self.kind!r}")
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"stream {self.name!r}: shape must have positive sides, got {self.shape}")
        if self.vocab_size < 0 or self.width < 0 or bool(self.vocab_size) == bool(self.width):
            raise ValueError(
                f"stream {self.name!r} needs a vocab_size (discrete) or a width (continuous), got {self.vocab_size} "
                f"and {self.width}"
            )

    @property
    def length(self) -> int:
        """L, number of tokens."""
        return math.prod(self.shape)

    @property
    def has_discrete_tokens(self) -> bool:
        """Whether tokens are ids of a vocabulary."""
        return self.vocab_size > 0


@dataclass(frozen=True)
class TokenLayout:
    """The streams of a row, in order.

    Token ids of a row are global: those of a stream begin at its `offset`. `mask_id` follows all of them.

    Raises:
        ValueError: no stream, two of one name, or discrete and continuous tokens in one row.
    """

    streams: tuple[Stream, ...]

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a layout needs streams of different names, got {names}")
        if len({stream.has_discrete_tokens for stream in self.streams}) > 1:
            raise ValueError("a row of discrete and continuous tokens is not supported; use one kind for all streams")
        if len({stream.width for stream in self.streams}) > 1:
            raise ValueError("continuous streams of one row need tokens of the same width")

    @classmethod
    def of(cls, *streams: Stream) -> TokenLayout:
        return cls(streams)

    @property
    def has_discrete_tokens(self) -> bool:
        """Whether tokens are ids of a vocabulary."""
        return self.streams[0].has_discrete_tokens

    @property
    def length(self) -> int:
        """L of the row."""
        return sum(stream.length for stream in self.streams)

    @property
    def vocab_size(self) -> int:
        """V of all streams together; 0 for continuous tokens."""
        return sum(stream.vocab_size for stream in self.streams)

    @property
    def width(self) -> int:
        """D of continuous tokens; 0 for discrete ones."""
        return self.streams[0].width

    @property
    def mask_id(self) -> int:
        """The id of [MASK], one for all streams."""
        return self.vocab_size

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid of the only stream; (L,) for a row of several."""
        return self.streams[0].shape if len(self.streams) == 1 else (self.length,)

    @cached_property
    def index_of(self) -> Mapping[str, int]:
        return {stream.name: index for index, stream in enumerate(self.streams)}

    def stream(self, name: str) -> Stream:
        """The stream of a name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.index_of:
            raise ValueError(f"unknown stream {name!r}; choose from {', '.join(self.index_of)}")
        return self.streams[self.index_of[name]]

    def place(self, name: str) -> slice:
        """The positions of a stream in the row."""
        index = self.index_of[self.stream(name).name]
        start = sum(stream.length for stream in self.streams[:index])
        return slice(start, start + self.streams[index].length)

    def offset(self, name: str) -> int:
        """The first id of a stream."""
        return sum(stream.vocab_size for stream in self.streams[: self.index_of[self.stream(name).name]])

    def stream_ids(self, device: torch.device | str = "cpu") -> Tensor:
        """(L,) int64, the index of the stream at each position."""
        lengths = torch.tensor([stream.length for stream in self.streams], device=device)
        return torch.repeat_interleave(torch.arange(len(self.streams), device=device), lengths)

    def join(self, tokens: Mapping[str, Tensor], n_rows: int | None = None) -> Tensor:
        """Tokens of streams -> rows (B, L) of global ids, or (B, L, D); a stream that is left out is masked.

        Args:
            tokens: of each stream by name, (B, *shape) or (B, L) int64 in 0 ... V, V standing for [MASK]; or
                (B, L, D) float with NaN for [MASK].
            n_rows: B, needed where no stream is given.
        """
        rows = {name: value.flatten(1, len(self.stream(name).shape)) if value.ndim > 2 + (not self.has_discrete_tokens)
                else value for name, value in tokens.items()}  # fmt: skip
        like = next(iter(rows.values()), torch.zeros(n_rows or 0, 0, dtype=torch.int64))
        parts = []
        for stream in self.streams:
            if stream.name not in rows:
                shape = (len(like), stream.length)
                parts.append(
                    torch.full(shape, self.mask_id, dtype=torch.int64, device=like.device)
                    if stream.has_discrete_tokens
                    else torch.full((*shape, stream.width), torch.nan, device=like.device)
                )
            elif stream.has_discrete_tokens:
                own = rows[stream.name]
                parts.append(torch.where(own == stream.vocab_size, self.mask_id, own + self.offset(stream.name)))
            else:
                parts.append(rows[stream.name])
        return torch.cat(parts, 1)

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """Rows (B, L) of global ids, or (B, L, D) -> tokens of each stream, (B, L_s) in 0 ... V_s, V_s for [MASK]."""
        found = {}
        for stream in self.streams:
            own = row[:, self.place(stream.name)]
            if stream.has_discrete_tokens:
                own = torch.where(own == self.mask_id, stream.vocab_size, own - self.offset(stream.name))
            found[stream.name] = own
        return found

    def allowed(self, device: torch.device | str = "cpu") -> Tensor | None:
        """(L, V) bool, the ids of each position's stream; None for one stream, where all are."""
        if len(self.streams) == 1 or not self.has_discrete_tokens:
            return None
        owner = torch.repeat_interleave(
            torch.arange(len(self.streams), device=device),
            torch.tensor([stream.vocab_size for stream in self.streams], device=device),
        )
        return self.stream_ids(device)[:, None] == owner[None, :]

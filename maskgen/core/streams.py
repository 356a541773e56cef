"""Streams: the parts of a sample, and how their tokens share one row.

A sample is a row of tokens (B, L), or (B, L, D) for continuous tokens. The row is made of one or more streams: an
image, its caption, its label. Each stream has a grid and a range of the vocabulary; all share one mask id. With one
stream, ids and positions are those of the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

StreamKind = Literal["image", "text", "label", "map", "video"]

Part = Tensor | Sequence[str]
"""Samples of one stream: images (N, C, H, W), labels (N,) or maps (N, H, W) as a tensor, or N captions."""

OUTSIDE = -3e4
"""Logit of an id outside of its position's stream: probability 0, but finite in all precisions, so that differences of
logits (guidance) are never NaN."""


@dataclass(frozen=True)
class Stream:
    """Tokens of one kind within a row.

    Attributes:
        name: unique in its layout, ``image``, ``caption``.
        kind: what the tokens stand for.
        vocab_size: V, number of token ids; 0 for continuous tokens.
        shape: grid of the tokens, n-dimensional: (h, w) of an image, (L,) of a text, (T, h, w) of a video.
        width: D, numbers in a continuous token; 0 for discrete ones.
        forbidden: ids that are never generated: an own [MASK] of a published vocabulary, padding.
        stop: ids that end a text: what follows is not generated.
    """

    name: str
    kind: StreamKind
    vocab_size: int
    shape: tuple[int, ...]
    width: int = 0
    forbidden: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()

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
        """The layout of streams in this order."""
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
    def stop(self) -> tuple[int, ...]:
        """Ids of all streams that end a text."""
        return tuple(self.offset(stream.name) + token for stream in self.streams for token in stream.stop)

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid of the only stream; (L,) for a row of several."""
        return self.streams[0].shape if len(self.streams) == 1 else (self.length,)

    @cached_property
    def index_of(self) -> Mapping[str, int]:
        """Name -> index of a stream."""
        return {stream.name: index for index, stream in enumerate(self.streams)}

    @cached_property
    def places(self) -> tuple[slice, ...]:
        """The positions of each stream in the row."""
        ends = list(accumulate(stream.length for stream in self.streams))
        return tuple(slice(end - stream.length, end) for stream, end in zip(self.streams, ends, strict=True))

    def stream(self, name: str) -> Stream:
        """The stream of a name.

        Raises:
            ValueError: there is none.
        """
        return self.streams[self._index(name)]

    def place(self, name: str) -> slice:
        """The positions of a stream in the row."""
        return self.places[self._index(name)]

    def offset(self, name: str) -> int:
        """The first id of a stream."""
        return sum(stream.vocab_size for stream in self.streams[: self._index(name)])

    def stream_ids(self, device: torch.device | str = "cpu") -> Tensor:
        """(L,) int64, the index of the stream at each position."""
        return _repeated([stream.length for stream in self.streams], device)

    def over_row(self, values: Tensor) -> Tensor:
        """Values of rows (B,) -> (B, 1); of streams (B, S) -> (B, L), those of a stream at all its positions."""
        if values.ndim == 1:
            return values[:, None]
        return values[:, self.stream_ids(values.device)]

    def join(self, tokens: Mapping[str, Tensor], n_rows: int | None = None) -> Tensor:
        """Tokens of streams -> rows (B, L) of global ids, or (B, L, D); a stream that is left out is masked.

        Args:
            tokens: of each stream by name, (B, *shape) or (B, L_s) int64 in 0 ... V_s, V_s stands for [MASK]; or
                (B, L_s, D) float with NaN for [MASK].
            n_rows: B, needed where no stream is given.

        Raises:
            ValueError: unknown stream, other numbers of rows or tokens than the stream has.
        """
        if not tokens and n_rows is None:
            raise ValueError("n_rows is needed where no stream is given")
        rows = {name: self._flat(self.stream(name), value) for name, value in tokens.items()}
        like = next(iter(rows.values()), torch.empty(n_rows or 0))
        if any(len(row) != (n_rows or len(like)) for row in rows.values()):
            raise ValueError(f"streams must have equal numbers of rows, got { {n: len(r) for n, r in rows.items()} }")
        return torch.cat([self._global(stream, rows.get(stream.name), like) for stream in self.streams], 1)

    def masked(self, known: Mapping[str, Tensor], n_rows: int, device: torch.device | str = "cpu") -> Tensor:
        """x_1 for a sampler: (B, L) or (B, L, D), known tokens in their places and [MASK] everywhere else.

        One call of a sampler fills it: with a known caption text -> image, with a known image image -> text, with
        nothing known both.

        Args:
            known: as for `join`; one row is repeated for all.
            n_rows: B.
            device: of the result.

        Raises:
            ValueError: as `join`; also an id outside of its stream's vocabulary.
        """
        rows = {}
        for name, value in known.items():
            self._check_ids(self.stream(name), value)
            rows[name] = (value.expand(n_rows, *value.shape[1:]) if len(value) == 1 else value).to(device)
        return self.join(rows, n_rows).to(device)

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """Rows (B, L) of global ids, or (B, L, D) -> tokens of each stream, (B, L_s) in 0 ... V_s, V_s for [MASK]."""
        found = {}
        for stream, place in zip(self.streams, self.places, strict=True):
            own = row[:, place]
            if stream.has_discrete_tokens:
                own = torch.where(own == self.mask_id, stream.vocab_size, own - self.offset(stream.name))
            found[stream.name] = own
        return found

    def allowed(self, device: torch.device | str = "cpu") -> Tensor | None:
        """(L, V) bool, the ids of each position's stream that it may have; None where all are allowed."""
        never = [self.offset(stream.name) + token for stream in self.streams for token in stream.forbidden]
        if (len(self.streams) == 1 and not never) or not self.has_discrete_tokens:
            return None
        owner = _repeated([stream.vocab_size for stream in self.streams], device)
        owner[never] = -1
        if len(self.streams) == 1:
            return (owner == 0).expand(self.length, -1)
        return self.stream_ids(device)[:, None] == owner

    def limited(self, logits: Tensor, where: Tensor | None = None) -> Tensor:
        """Logits with `OUTSIDE` at ids of other streams than the position's, and at ids that are never generated.

        Args:
            logits: (B, L, V), or (M, V) of the M positions where `where` (B, L) is True, in row order.
        """
        allowed = self.allowed(logits.device)
        if allowed is None:
            return logits
        if where is not None:
            allowed = allowed.expand(len(where), -1, -1)[where]
        return logits.masked_fill(~allowed, OUTSIDE)

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """Features (B, L, ...) of rows -> those of each stream, (B, L_s, ...)."""
        return {stream.name: x[:, place] for stream, place in zip(self.streams, self.places, strict=True)}

    def join_logits(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Logits of each stream, (B, L_s, V_s) by name -> (B, L, V), `OUTSIDE` at ids of other streams."""
        rows = []
        for stream in self.streams:
            before = self.offset(stream.name)
            after = self.vocab_size - before - stream.vocab_size
            rows.append(F.pad(parts[stream.name], (before, after), value=OUTSIDE))
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def _index(self, name: str) -> int:
        if name not in self.index_of:
            raise ValueError(f"unknown stream {name!r}; choose from {', '.join(self.index_of)}")
        return self.index_of[name]

    def _check_ids(self, stream: Stream, tokens: Tensor) -> None:
        if not stream.has_discrete_tokens or not tokens.numel():
            return
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high > stream.vocab_size:
            raise ValueError(
                f"stream {stream.name!r}: ids must be in 0 ... {stream.vocab_size - 1}, or {stream.vocab_size} for "
                f"[MASK]; got {low} ... {high}"
            )

    def _flat(self, stream: Stream, tokens: Tensor) -> Tensor:
        """(B, *shape) or (B, L_s), and D at the end of continuous tokens -> (B, L_s) or (B, L_s, D)."""
        tail = () if stream.has_discrete_tokens else (stream.width,)
        found = tuple(tokens.shape[1:])
        if found not in ((*stream.shape, *tail), (stream.length, *tail)):
            raise ValueError(
                f"stream {stream.name!r}: tokens must be (B, {', '.join(map(str, (*stream.shape, *tail)))}), got "
                f"{tuple(tokens.shape)}"
            )
        return tokens.reshape(len(tokens), stream.length, *tail)

    def _global(self, stream: Stream, tokens: Tensor | None, like: Tensor) -> Tensor:
        """A stream's part of the row, [MASK] where it is not given; `like` has B rows."""
        if not stream.has_discrete_tokens:
            shape = (len(like), stream.length, stream.width)
            return torch.full(shape, torch.nan, device=like.device) if tokens is None else tokens
        if tokens is None:
            return torch.full((len(like), stream.length), self.mask_id, dtype=torch.int64, device=like.device)
        return torch.where(tokens == stream.vocab_size, self.mask_id, tokens + self.offset(stream.name))


def vocab_size_of(layout: TokenLayout | int) -> int:
    """V of a layout, or the number itself: one stream of V ids and any length."""
    return layout if isinstance(layout, int) else layout.vocab_size


def require_one_stream(layout: TokenLayout | int, what: str) -> None:
    """Check that a row has one stream.

    Raises:
        ValueError: it has several.
    """
    if isinstance(layout, TokenLayout) and len(layout.streams) > 1:
        raise ValueError(f"{what} supports rows of one stream, got {', '.join(layout.index_of)}; use masked_tokens")


def _repeated(counts: list[int], device: torch.device | str) -> Tensor:
    """0 ... n - 1, each so many times, int64; the size is given, so that a GPU is not waited for."""
    index = torch.arange(len(counts), device=device)
    return index.repeat_interleave(torch.tensor(counts, device=device), output_size=sum(counts))

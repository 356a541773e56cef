"""Networks over rows of several streams, as samplers evaluate them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskgen.core.positions import categorical_at
from maskgen.core.predictions import NULL, Categorical, Condition, Denoiser
from maskgen.core.streams import TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.processes.masking import is_mask, put_masks


@dataclass(frozen=True)
class StreamDenoiser:
    """A denoiser of rows of several streams, with per-stream ranges, times and guidance.

    Logits of ids outside of a position's stream are at a large negative number. A row is conditioned on its known
    tokens. For guidance by a stream (`null_streams`), bind the condition `Condition(torch.zeros(B, dtype=int64))`: in
    rows of the null condition the stream is masked wholly, as `stream_dropout` trains it.

    Args:
        network: denoiser of the rows, which may return logits (B, L, V) of all positions.
        layout: of the rows.
        null_streams: names of the streams that the null condition masks; the network is then called without condition.
        has_stream_times: the network takes times (B, S): t for a stream with a [MASK], 0 for one without.

    Raises:
        ValueError: unknown stream.
    """

    network: Denoiser
    layout: TokenLayout
    null_streams: tuple[str, ...] = ()
    has_stream_times: bool = False

    def __post_init__(self) -> None:
        for name in self.null_streams:
            self.layout.stream(name)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64, t (B,) -> logits (B, L, V), or (M, V) at the M positions of `where` (B, L) bool."""
        if self.null_streams and cond is not None:
            x_t, cond = put_masks(x_t, self._is_hidden(cond.labels), self.layout.mask_id), None
        times = self.stream_times(x_t, t) if self.has_stream_times else t
        everywhere = torch.ones_like(x_t, dtype=torch.bool)
        answer = self.network(x_t, times, cond, subset=subset, where=where)
        prediction = categorical_at(answer, everywhere if where is None else where, vocab_size=self.layout.vocab_size)
        logits = self.layout.limited(prediction.logits, prediction.where)
        if where is None:
            return Categorical(logits.view(*x_t.shape, -1))
        return replace(prediction, logits=logits)

    def stream_times(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, S), t (B,) for streams of x_t (B, L) with a [MASK], else 0."""
        masked = is_mask(x_t, self.layout.mask_id)
        is_open = torch.stack([masked[:, place].any(1) for place in self.layout.places], 1)
        return t[:, None] * is_open

    def _is_hidden(self, labels: Tensor) -> Tensor:
        """(B, L) bool, positions of the null streams in rows without condition."""
        names = [stream.name in self.null_streams for stream in self.layout.streams]
        is_null_stream = torch.tensor(names, device=labels.device)
        return self.layout.over_row((labels == NULL)[:, None] & is_null_stream)

"""Rows of several streams in a masked objective: logits of each range, weights, dropped streams and logs per stream."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.core.streams import OUTSIDE, TokenLayout
from maskgen.objectives.base import require_shares


class StreamTerms:
    """Terms of the loss that depend on the stream of a position.

    Args:
        layout: S streams of discrete tokens.
        weights: of the loss of a stream's tokens, by name; 1 if not given.
        dropout: share of the rows in which a stream is masked wholly and not predicted, by name; 0 if not given.

    Raises:
        ValueError: unknown stream, weight below 0, share outside [0, 1), keys for a row of one stream.
    """

    def __init__(
        self,
        layout: TokenLayout | int,
        weights: Mapping[str, float] | None = None,
        dropout: Mapping[str, float] | None = None,
    ) -> None:
        weights, dropout = weights or {}, dropout or {}
        self.layout = layout if isinstance(layout, TokenLayout) and len(layout.streams) > 1 else None
        if self.layout is None and (weights or dropout):
            raise ValueError("stream_weights and stream_dropout need a row of several streams; leave them out")
        if self.layout is None:
            return
        for name in {**weights, **dropout}:
            self.layout.stream(name)
        if weights and (min(weights.values()) < 0 or not max(weights.values()) > 0):
            raise ValueError(f"stream_weights must be at least 0 and not all 0, got {dict(weights)}")
        require_shares(**{f"stream_dropout.{name}": share for name, share in dropout.items()})
        self.weights = [weights.get(stream.name, 1.0) for stream in self.layout.streams]
        self.dropout = [dropout.get(stream.name, 0.0) for stream in self.layout.streams]

    @property
    def can_drop(self) -> bool:
        """Whether some rows are trained without one of their streams."""
        return self.layout is not None and any(self.dropout)

    def baseline(self, vocab_size: int) -> float:
        """Nats a token of uniform predictions; over streams the mean by length and weight."""
        if self.layout is None:
            return math.log(vocab_size)
        pairs = zip(self.layout.streams, self.weights, strict=True)
        return sum(weight * one.length * math.log(one.vocab_size) for one, weight in pairs) / self.layout.length

    def times(self, t: Tensor) -> Tensor:
        """(B S,) times -> (B, S); of one stream (B,), as they are."""
        return t if self.layout is None else t.view(-1, len(self.layout.streams))

    def dropped(self, x_0: Tensor, rng: Rng) -> Tensor | None:
        """(B, L) bool, the positions of dropped streams; None if none can be. A row never loses all its streams."""
        if self.layout is None or not self.can_drop:
            return None
        chance = torch.tensor(self.dropout, dtype=torch.float64, device=x_0.device)
        is_dropped = rng.fork("streams").uniform((len(x_0), len(self.dropout)), device=x_0.device) < chance
        return self.layout.over_row(is_dropped & ~is_dropped.all(1, keepdim=True))

    def limited(self, logits: Tensor, where: Tensor) -> Tensor:
        """Logits (M, V) of the positions `where` (B, L), those of other streams' ids at a large negative number."""
        return logits if self.layout is None else self.layout.limited(logits, where)

    def cross_entropy(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """(M,) nats of targets (M,) under `limited` logits (M, V); smoothing is over the ids of the stream."""
        if self.layout is None or not smoothing:
            return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        log_p, is_inside = F.log_softmax(logits, -1), logits > OUTSIDE
        uniform = log_p.where(is_inside, 0.0).sum(-1) / is_inside.sum(-1)
        return -(1 - smoothing) * log_p.gather(-1, target[:, None])[:, 0] - smoothing * uniform

    def weighted(self, weight: Tensor, where: Tensor) -> Tensor:
        """Weights (B,) of rows or (B, S) of streams -> (M,) of the positions `where` (B, L), times those of streams."""
        if self.layout is None:
            return weight[:, None].expand(where.shape)[where]
        if any(one != 1 for one in self.weights):
            weight = weight.view(len(weight), -1) * torch.tensor(self.weights, dtype=weight.dtype, device=weight.device)
        return self.layout.over_row(weight).expand(where.shape)[where]

    def logs(self, values: Mapping[str, Tensor], where: Tensor) -> dict[str, Tensor]:
        """The logs of values (M,) at the positions `where` (B, L) by stream, `cross_entropy/caption`."""
        if self.layout is None:
            return {}
        owner = self.layout.stream_ids(where.device).expand(where.shape)[where]
        names = [stream.name for stream in self.layout.streams]
        found = {}
        for index, stream in enumerate(names):
            is_own = owner == index
            for name, value in values.items():
                found[f"{name}/{stream}"] = torch.stack([(value.detach() * is_own).sum(), is_own.sum().to(value)])
        return found

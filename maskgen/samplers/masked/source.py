"""Token sources: where the tokens of revealed positions come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import Categorical, Crossing
from maskgen.core.rng import Rng


class Encoder(Protocol):
    """The encoding half of an entropy coder."""

    def encode(self, probabilities: Tensor, tokens: Tensor, rows: Tensor) -> None:
        """Append symbols to the code.

        Args:
            probabilities: (M, V) float64 on the CPU, one distribution per symbol.
            tokens: (M,) int64 on the CPU, the symbols in coding order.
            rows: (M,) int64 on the CPU, ascending: the row of the batch that each symbol belongs to.
        """


class Decoder(Protocol):
    """The decoding half of an entropy coder."""

    def decode(self, probabilities: Tensor, rows: Tensor) -> Tensor:
        """(M,) int64, the next symbols of the code; arguments as in `Encoder.encode`."""


class TokenSource(ABC):
    """Supplies the tokens of a decoding of discrete tokens.

    All sources consume the same random numbers, so that the order of decoding depends on the seeds only. The loop calls
    `reveal` if the source `is_recorded`; such a source needs a decoding in which revealed tokens stay.
    """

    is_recorded: ClassVar[bool] = False

    @abstractmethod
    def propose(self, prediction: Categorical, by: Sampled, rng: Rng) -> Tensor | None:
        """(M,) int64, a token for each candidate; None if tokens are known after the choice of positions only.

        Args:
            prediction: distributions of the M candidates, packed.
            by: temperature and nucleus.
            rng: of the decoding.
        """

    def reveal(self, prediction: Categorical, tokens: Tensor | None, by: Sampled) -> Tensor:  # noqa: ARG002
        """(N,) int64, the tokens of the N chosen positions, whose distributions and proposed tokens are given."""
        assert tokens is not None
        return tokens


@dataclass(frozen=True)
class Sampled(TokenSource):
    """Tokens drawn from the prediction.

    Args:
        temperature: of the distributions; 0 takes the mode.
        top_p: share of the probability, after temperature, that is kept; 1 is off.
        crossing: whether the nucleus includes the token that crosses `top_p`.
        top_k: number of the likeliest tokens that are kept, before `top_p`; 0 is off.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    crossing: Crossing = "include"
    top_k: int = 0

    def propose(self, prediction: Categorical, by: Sampled, rng: Rng) -> Tensor | None:  # noqa: ARG002
        return self._kept(prediction, self.temperature).sample(rng, self.temperature)

    def _kept(self, prediction: Categorical, temperature: float) -> Categorical:
        """The tokens that may be drawn."""
        return prediction.likeliest(self.top_k).nucleus(self.top_p, temperature, self.crossing)

    def skip(self, prediction: Categorical, rng: Rng) -> None:
        """Consume the random numbers of a draw."""
        if self.temperature:
            assert prediction.where is not None
            rng.uniform(prediction.where.shape)

    def tempered(self, prediction: Categorical) -> Categorical:
        """The distributions after temperature and nucleus; temperature 0 counts as 1 (as in Dream's code)."""
        temperature = self.temperature or 1.0
        kept = self._kept(prediction, temperature)
        return Categorical(kept.logits.double() / temperature, kept.where)

    def probabilities(self, prediction: Categorical) -> Tensor:
        """(M, V) float64, the distributions that tokens are drawn from; one-hot at temperature 0."""
        if self.temperature == 0:
            return F.one_hot(prediction.logits.argmax(-1), prediction.logits.shape[-1]).double()
        return torch.softmax(self.tempered(prediction).logits, -1)


class Forced(TokenSource):
    """Given tokens, and their log-likelihood under the order of decoding.

    An order or unmasking schedule that `needs_tokens` ranks the given tokens; the path of a sampled decoding, which
    ranks other draws, may differ.

    Args:
        tokens: (B, L) int64; those at known positions are not used.
        encoder: receives the revealed tokens with their distributions.

    Attributes:
        log_prob: (B,) float64 nats, the sum of log p(token) over the positions revealed so far.
    """

    is_recorded: ClassVar[bool] = True

    def __init__(self, tokens: Tensor, encoder: Encoder | None = None) -> None:
        self.tokens, self.encoder = tokens, encoder
        self.log_prob = torch.zeros(len(tokens), dtype=torch.float64)

    def propose(self, prediction: Categorical, by: Sampled, rng: Rng) -> Tensor | None:
        by.skip(prediction, rng)
        return self.tokens.to(prediction.logits.device)[prediction.where]

    def reveal(self, prediction: Categorical, tokens: Tensor | None, by: Sampled) -> Tensor:
        assert tokens is not None
        probabilities, symbols, rows = by.probabilities(prediction).cpu(), tokens.cpu(), _rows(prediction)
        log_probs = probabilities.gather(-1, symbols[:, None])[:, 0].log()
        self.log_prob = self.log_prob.index_add(0, rows, log_probs)
        if self.encoder is not None:
            self.encoder.encode(probabilities, symbols, rows)
        return tokens


class Decoded(TokenSource):
    """Tokens read from the code of a `Forced` decoding with the same network, sampler, seeds and batch.

    The order and the unmasking schedule must not depend on the tokens of candidates (`needs_tokens`): they are not
    decoded yet.
    """

    is_recorded: ClassVar[bool] = True

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def propose(self, prediction: Categorical, by: Sampled, rng: Rng) -> Tensor | None:
        by.skip(prediction, rng)
        return None

    def reveal(self, prediction: Categorical, tokens: Tensor | None, by: Sampled) -> Tensor:  # noqa: ARG002
        found = self.decoder.decode(by.probabilities(prediction).cpu(), _rows(prediction))
        return found.to(prediction.logits.device)


def _rows(prediction: Categorical) -> Tensor:
    """(M,) int64 on the CPU, the row of each packed position."""
    assert prediction.where is not None
    return prediction.where.nonzero()[:, 0].cpu()

"""Laws of token sources: sampled, forced and decoded tokens take the same path."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.masked.source import Decoded, Forced, Sampled
from tests.toys import MASK, posterior, waves

N, LENGTH = 3, 12
BY_TOKENS = ("maskgit", {"type": "llada", "temperature": 1.0}, {"type": "fast_dllm", "temperature": 0.7})
BY_POSITION: tuple[Any, ...] = (
    {"type": "ancestral", "steps": 5},
    {"type": "halton", "steps": 4, "temperature": 0.8},
    {"type": "dream", "steps": 6, "temperature": 0.9},
    {"type": "dream", "order": "margin", "steps": 6, "alg_temp": 0.3},
    {"type": "entropy_bounded", "gamma": 1.0},
    {"type": "first_hitting", "top_p": 0.9},
    {"type": "autoregressive"},
    {"type": "masked", "order": "entropy", "unmasking": "even", "layout": {"type": "blocks", "block_length": 5}},
)


class Coder:
    """A range coder with integers of any size: symbols are digits of a number in a mixed base."""

    def __init__(self) -> None:
        self.symbols: list[tuple[list[int], int]] = []
        self.rows: list[int] = []
        self.code = 0

    @staticmethod
    def starts(p: Tensor) -> list[int]:
        """Cumulative counts out of 2^20, at least one per token."""
        counts = (p * (2**20 - len(p))).floor().long() + 1
        return [0, *counts.cumsum(0).tolist()]

    def encode(self, probabilities: Tensor, tokens: Tensor, rows: Tensor) -> None:
        assert probabilities.dtype == torch.float64
        assert rows.tolist() == sorted(rows.tolist())
        self.symbols += [(self.starts(p), token) for p, token in zip(probabilities, tokens.tolist(), strict=True)]
        self.rows += rows.tolist()

    def finish(self) -> Coder:
        """Write the code; symbols are coded last to first."""
        for starts, token in reversed(self.symbols):
            count = starts[token + 1] - starts[token]
            self.code = self.code // count * starts[-1] + self.code % count + starts[token]
        return self

    def decode(self, probabilities: Tensor, rows: Tensor) -> Tensor:
        return torch.tensor(list(self._next(probabilities)), dtype=torch.int64)

    def _next(self, probabilities: Tensor) -> Iterator[int]:
        for p in probabilities:
            starts = self.starts(p)
            place = self.code % starts[-1]
            token = bisect_right(starts, place) - 1
            self.code = self.code // starts[-1] * (starts[token + 1] - starts[token]) + place - starts[token]
            yield token


def prompt() -> Tensor:
    x_1 = torch.full((N, LENGTH), MASK)
    x_1[1, :3] = 2
    return x_1


def run(sampler: MaskedSampler, source: Any = None, seen: list[Tensor] | None = None) -> Tensor:
    on_step = None if seen is None else lambda _done, _total, x_s: seen.append(x_s)
    return sampler(waves, prompt(), Rng.per_sample(range(N)), mask_id=MASK, on_step=on_step, source=source)


def test_forced_tokens_repeat_a_sampled_decoding_step_by_step() -> None:
    for spec in (*BY_TOKENS, *BY_POSITION):
        sampler = SAMPLERS.build(spec)
        sampled, forced = list[Tensor](), list[Tensor]()
        x_0 = run(sampler, seen=sampled)
        assert torch.equal(run(sampler, Forced(x_0), forced), x_0), spec
        # An order by the drawn tokens ranks the given ones, so its path may differ.
        assert spec in BY_TOKENS or all(map(torch.equal, sampled, forced)), spec
        assert torch.equal(run(sampler, Sampled(sampler.temperature, sampler.top_p)), x_0), spec


def test_the_likelihood_of_a_path_is_the_sum_over_its_draws() -> None:
    class Noting(Sampled):
        drawn: Tensor = torch.zeros(N, dtype=torch.float64)

        def propose(self, prediction: Categorical, by: Sampled, rng: Rng) -> Tensor | None:
            tokens = super().propose(prediction, by, rng)
            assert tokens is not None
            assert prediction.where is not None
            log_probs = (prediction.logits.double() / self.temperature).log_softmax(-1)
            own = log_probs.gather(-1, tokens[:, None])[:, 0]
            type(self).drawn = type(self).drawn.index_add(0, prediction.where.nonzero()[:, 0], own)
            return tokens

    sampler = SAMPLERS.build({"type": "ancestral", "steps": 5, "temperature": 0.8})  # every proposal is revealed
    x_0 = run(sampler, Noting(0.8))
    source = Forced(x_0)
    run(sampler, source)
    assert torch.allclose(source.log_prob, Noting.drawn)
    assert (source.log_prob < 0).all()


def test_with_an_exact_denoiser_any_order_of_single_tokens_gives_the_likelihood_of_the_data() -> None:
    joint = torch.tensor([[0.40, 0.05, 0.05], [0.02, 0.08, 0.20], [0.10, 0.05, 0.05]], dtype=torch.float64)
    tokens = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    for spec in ("first_hitting", "autoregressive", {"type": "masked", "order": "entropy", "unmasking": "one"}):
        source = Forced(tokens)
        x_1, rng = torch.full((9, 2), 3), Rng.per_sample(range(9))
        SAMPLERS.build(spec)(posterior(joint), x_1, rng, mask_id=3, source=source)
        assert torch.allclose(source.log_prob.exp(), joint.flatten())


@pytest.mark.parametrize("spec", BY_POSITION, ids=str)
def test_decoding_the_code_of_forced_tokens_gives_them_back(spec: Any) -> None:
    sampler, tokens = SAMPLERS.build(spec), (Rng("tokens").uniform((N, LENGTH)) * MASK).long()
    if sampler.top_p < 1:
        tokens = run(sampler)  # a nucleus leaves no code for other tokens
    tokens = torch.where(prompt() == MASK, tokens, prompt())
    coder = Coder()
    assert torch.equal(run(sampler, Forced(tokens, coder)), tokens)
    assert torch.tensor(coder.rows).bincount().tolist() == [12, 9, 12]
    assert torch.equal(run(sampler, Decoded(coder.finish())), tokens)


def test_the_length_of_the_code_is_the_negative_log_likelihood() -> None:
    sampler, coder = SAMPLERS.build({"type": "ancestral", "steps": 5}), Coder()
    source = Forced(run(sampler), coder)
    run(sampler, source)
    bits = -source.log_prob.sum().item() / torch.tensor(2.0).log().item()
    assert -1 < coder.finish().code.bit_length() - bits < 21, "up to the 20 bits of the coder's counts"


def test_orders_that_need_the_tokens_of_candidates_cannot_be_decoded() -> None:
    for spec in BY_TOKENS:
        with pytest.raises(UserError, match="not known before their positions are chosen; use order random, halton"):
            run(SAMPLERS.build(spec), Decoded(Coder()))


def test_recorded_tokens_need_a_decoding_in_which_they_stay() -> None:
    for spec in ("remdm_cap", "genmd4"):
        for source in (Forced(prompt()), Decoded(Coder())):
            with pytest.raises(UserError, match=r"needs remask none and another unmasking schedule than joint"):
                run(SAMPLERS.build(spec), source)
    with pytest.raises(UserError, match="token source Forced needs discrete tokens"):
        SAMPLERS.build("ancestral")(
            waves,  # type: ignore[arg-type]
            torch.full((1, 4, 2), torch.nan),
            Rng(0),
            mask_id=0,
            source=Forced(prompt()),
        )

"""Likelihood of an answer given a prompt, and the choice among answers."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.core.traits import NetworkTraits
from maskgen.evaluation.metrics.choices import accuracy, answer_nll, read_tasks
from maskgen.evaluation.metrics.pseudo_likelihood import pseudo_nll
from maskgen.models.blockwise import Autoregressive, BlockDiffusion
from maskgen.models.mdlm import MDLM
from maskgen.sample import pseudo

V = 3
PROMPT, ANSWER = torch.tensor([2, 0]), torch.tensor([1, 2, 1, 0])


class Independent:
    """Tokens of a law of their own, whatever is visible: the bound is the likelihood."""

    def __init__(self) -> None:
        self.logits = torch.randn(6, V, generator=torch.Generator().manual_seed(0))

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor) -> Categorical:
        assert bool((x_t[:, :2] == PROMPT).all())
        return Categorical(self.logits.expand(len(x_t), -1, -1)[where], where)


def some(network: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return network.eval()


MASKED = some(MDLM(V, width=8, depth=1, heads=2))


def orders_mean(network: torch.nn.Module) -> float:
    """The bound by its definition: mean over all orders of the sum of -log p of each token given those before."""
    total, n = 0.0, len(ANSWER)
    for order in itertools.permutations(range(n)):
        x_t = torch.cat([PROMPT, torch.full((n,), V)])[None]
        for place in order:
            log_prob = network(x_t, torch.zeros(1)).logits.detach().double().log_softmax(-1)
            total -= float(log_prob[0, len(PROMPT) + place, ANSWER[place]])
            x_t[0, len(PROMPT) + place] = ANSWER[place]
    return total / math.factorial(n)


def test_all_masks_of_a_short_answer_give_the_mean_over_all_orders() -> None:
    found = answer_nll(MASKED, PROMPT, ANSWER, Rng.stream(0), 15, mask_id=V)
    assert (found.error, found.n_draws, found.is_bound) == (0.0, 15, True)
    assert found.nats == pytest.approx(orders_mean(MASKED), rel=1e-5)


def test_draws_agree_with_all_masks_within_their_error() -> None:
    exact = answer_nll(MASKED, PROMPT, ANSWER, Rng.stream(0), 15, mask_id=V).nats
    for seed in range(3):
        found = answer_nll(MASKED, PROMPT, ANSWER.repeat(1), Rng.stream(seed), 14, mask_id=V)
        assert found.error is not None
        assert found.n_draws == 8
    many = [answer_nll(MASKED, PROMPT, ANSWER, Rng.stream(seed), 8, mask_id=V).nats for seed in range(200)]
    mean, spread = sum(many) / 200, torch.tensor(many).std().item() / math.sqrt(200)
    assert abs(mean - exact) < 3 * spread


def test_the_error_is_that_of_repetitions() -> None:
    found = [answer_nll(MASKED, PROMPT, ANSWER.repeat(2), Rng.stream(seed), 16, mask_id=V) for seed in range(200)]
    spread = torch.tensor([one.nats for one in found]).std().item()
    told = math.sqrt(sum((one.error or 0) ** 2 for one in found) / 200)
    assert told == pytest.approx(spread, rel=0.2)


def test_independent_tokens_have_their_likelihood_without_error() -> None:
    network = Independent()
    expected = -network.logits.double().log_softmax(-1)[torch.arange(2, 6), ANSWER].sum().item()
    for draws in (8, 15):
        found = answer_nll(network, PROMPT, ANSWER, Rng.stream(0), draws, mask_id=V)
        assert found.nats == pytest.approx(expected, rel=0.5 if draws == 8 else 1e-6)


def test_an_autoregressive_model_is_exact_and_probabilities_sum_to_one() -> None:
    network = some(Autoregressive(V, width=8, depth=1, heads=2))
    every = torch.cartesian_prod(*[torch.arange(V)] * 3)
    found = [answer_nll(network, PROMPT, answer, Rng.stream(0), 1, mask_id=V) for answer in every]
    assert all(one.error == 0 and not one.is_bound for one in found)
    assert sum(math.exp(-one.nats) for one in found) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_blocks_of_one_token_are_exact_and_longer_ones_a_bound(length: int) -> None:
    network = some(BlockDiffusion(V, block_length=length, width=8, depth=1, heads=2))
    every = torch.cartesian_prod(*[torch.arange(V)] * 3)
    found = [answer_nll(network, PROMPT, answer, Rng.stream(0), 64, mask_id=V) for answer in every]
    assert all(one.is_bound == (length > 1) for one in found)
    total = sum(math.exp(-one.nats) for one in found)
    assert total == pytest.approx(1, rel=1e-5) if length == 1 else total < 1.05


def test_one_token_takes_one_mask() -> None:
    found = answer_nll(MASKED, PROMPT, ANSWER[:1], Rng.stream(0), 128, mask_id=V)
    assert (found.n_draws, found.error) == (1, 0.0)


def test_learned_rates_and_empty_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        answer_nll(MASKED, PROMPT, ANSWER[:0], Rng.stream(0), 4, mask_id=V)
    network = MDLM(V, has_exponents=True, width=8, depth=1, heads=2).eval()
    assert isinstance(network.traits, NetworkTraits)
    with pytest.raises(ValueError, match="learned rates"):
        answer_nll(network, PROMPT, ANSWER, Rng.stream(0), 4, mask_id=V)


def test_accuracy_counts_the_lowest_scores() -> None:
    value, error = accuracy([[1, 2], [3, 2], [1, 5], [0, 1]], [0, 0, 0, 1])
    assert value == 0.5
    assert error == pytest.approx(math.sqrt(0.25 / 3))
    assert accuracy([[1, 2]], [0]) == (1.0, None)


def test_an_answer_is_an_index_or_one_of_the_choices(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(
        '{"prompt": "a", "choices": ["b", "c"], "answer": 1}\n\n{"prompt": "a", "choices": ["b", "c"], "answer": "c"}'
    )
    assert [task.answer for task in read_tasks(file)] == [1, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no tasks at .* there is nothing in it"),
        ("{", "line 1: not a task"),
        ('{"prompt": "a", "choices": ["b", "c"]}', "line 1: not a task"),
        ('{"prompt": 1, "choices": ["b", "c"], "answer": 0}', "prompt must be a text"),
        ('{"prompt": "a", "choices": ["b"], "answer": 0}', "two different choices"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "answer must be one of the choices"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": "d"}', "answer must be one of the choices"),
    ],
)
def test_a_line_that_is_no_task_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        read_tasks(tmp_path / "tasks.jsonl")


def test_a_pseudo_likelihood_scores_each_token_without_a_window_of_its_neighbours() -> None:
    for window in (1, 2, 3, None):
        expected = 0.0
        for place in range(len(ANSWER)):
            x_t = torch.cat([PROMPT, ANSWER])
            last = len(ANSWER) if window is None else place + window
            x_t[len(PROMPT) + place : len(PROMPT) + last] = V
            log_prob = MASKED(x_t[None], torch.zeros(1)).logits.detach().double().log_softmax(-1)
            expected -= float(log_prob[0, len(PROMPT) + place, ANSWER[place]])
        assert pseudo_nll(MASKED, PROMPT, ANSWER, window, mask_id=V) == pytest.approx(expected, abs=1e-5)


def test_tokens_that_are_independent_have_one_pseudo_likelihood_for_all_windows() -> None:
    model = Independent()
    exact = -model.logits.log_softmax(-1)[2:].gather(1, ANSWER[:, None]).sum()
    for window in (1, 2, 4, None):
        assert pseudo_nll(model, PROMPT, ANSWER, window, mask_id=V) == pytest.approx(float(exact), abs=1e-5)


def test_a_pseudo_likelihood_needs_full_attention_and_a_window() -> None:
    for model in (
        Autoregressive(V, width=8, depth=1, heads=2),
        BlockDiffusion(V, block_length=2, width=8, depth=1, heads=2),
    ):
        with pytest.raises(ValueError, match="full attention"):
            pseudo_nll(model.eval(), PROMPT, ANSWER, 1, mask_id=V)
    with pytest.raises(ValueError, match="window 0"):
        pseudo_nll(MASKED, PROMPT, ANSWER, 0, mask_id=V)


def test_the_command_scores_windows(text_kinds: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"prompt": "line 1 of a ", "choices": ["poem", "mope"], "answer": 0}\n')
    table = pseudo.run(str(text_kinds["mdlm"]), file=str(file), windows="1, all", device="cpu")
    assert "accuracy[pseudo-likelihood, window 1]" in table
    assert "accuracy_per_token[left to right]" in table
    with pytest.raises(UserError, match="'x' is no number"):
        pseudo.run(str(text_kinds["mdlm"]), file=str(file), windows="x")
    with pytest.raises(UserError, match="full attention"):
        pseudo.run(str(text_kinds["ar"]), file=str(file), device="cpu")

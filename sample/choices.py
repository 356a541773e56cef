"""`maskgen evaluate --metric choices`: how often a language model prefers the right answer of a task."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.choices import AnswerNll, answer_nll
from maskgen.evaluation.report import Report, publish

from .metric import METRICS, metric
from .pictures import check_writable
from .tasks import TaskSet, read_task_set


@METRICS.register("choices")
@metric("text")
def run(
    source: str,
    /,
    *,
    file: str | None = None,
    draws: int = 128,
    chat: bool = False,
    seed: int = 0,
    output: str | None = None,
    device: str = "auto",
) -> str:
    """Accuracy of choosing among answers by their likelihood given the prompt; tasks from a .jsonl.

    Raises:
        UserError: a checkpoint, file, number of draws or output that cannot be used.
    """
    if draws < 1:
        raise UserError(f"--draws must be at least 1, got {draws}")
    path = check_writable(output, (".json",)) if output else None
    tasks = read_task_set("choices", source, file, chat=chat, device=device)

    def score(row: tuple[Tensor, Tensor], rng: Rng) -> AnswerNll:
        return answer_nll(tasks.network, *row, rng, draws, tasks.schedule, mask_id=tasks.mask_id)

    return publish(_report(tasks, tasks.scores("choices", score, seed), seed, draws), path)


def _report(tasks: TaskSet, found: list[list[AnswerNll]], seed: int, draws: int) -> Report:
    """Accuracy by likelihood, by likelihood a token and a byte, and how exact the likelihoods are."""
    kind = "bound" if any(one.is_bound for row in found for one in row) else "exact"
    nats = [[one.nats for one in row] for row in found]
    n_bytes = [[float(len(choice.encode())) for choice in task.choices] for task in tasks.tasks]
    entries = [
        tasks.accuracy(f"accuracy[{kind}]", nats),
        tasks.accuracy(f"accuracy_per_token[{kind}]", nats, tasks.lengths()),
        tasks.accuracy(f"accuracy_per_byte[{kind}]", nats, n_bytes),
    ]
    right = [row[task.answer] for row, task in zip(nats, tasks.tasks, strict=True)]
    entries.append(tasks.entry(f"nats_of_answer[{kind}]", sum(right) / len(right)))
    errors = [one.error for row in found for one in row if one.error is not None]
    if any(errors):
        rms = math.sqrt(sum(error**2 for error in errors) / len(errors))
        entries.append(tasks.entry("monte_carlo_error[nats of a choice]", rms))
        share = sum(_margin_in_errors(row) < 2 for row in found) / len(found)
        entries.append(tasks.entry("undecided[margin below 2 errors]", share))
    entries = [replace(entry, facts={"draws": draws}, seed=seed) for entry in entries]
    entries.insert(3, tasks.baseline())
    return Report(entries[0], others=entries[1:])


def _margin_in_errors(found: list[AnswerNll]) -> float:
    """Difference of the two likeliest choices over its standard error; infinite if nothing is drawn."""
    first, second = sorted(found, key=lambda one: one.nats)[:2]
    error = math.hypot(first.error or 0.0, second.error or 0.0)
    return (second.nats - first.nats) / error if error else math.inf

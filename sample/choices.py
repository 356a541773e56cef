"""`maskgen evaluate --metric choices`: how often a language model prefers the right answer of a task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import load_text_model, read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.choices import EXAMPLE, AnswerNll, Task, accuracy, answer_nll, read_tasks
from maskgen.evaluation.report import Entry, Made, Report, publish
from maskgen.tokenizers.text.tokenizer import TextTokenizer

from .likelihood import schedule_of
from .metric import METRICS, metric
from .pictures import check_writable


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
    if file is None:
        raise UserError(f"--metric choices needs --file TASKS.jsonl; a line is {EXAMPLE}")
    if draws < 1:
        raise UserError(f"--draws must be at least 1, got {draws}")
    path = check_writable(output, (".json",)) if output else None
    tasks = read_tasks(local_path(file))
    checkpoint = read_checkpoint(source)
    network, tokenizer = load_text_model(checkpoint)
    network.to(pick_device(device))
    scored = []
    for index, task in enumerate(tqdm(tasks, "choices", unit="task", disable=None)):
        rows = task_tokens(task, tokenizer, chat)
        rng, schedule = Rng.stream(seed, "task", index), schedule_of(checkpoint)
        found = [
            answer_nll(network, *row, rng.fork("choice", n), draws, schedule, mask_id=tokenizer.vocab_size)
            for n, row in enumerate(rows)
        ]
        scored.append(Scored(task, [len(answer) for _, answer in rows], found))
    return publish(_report(scored, file, {"seed": seed}, draws), path)


@dataclass(frozen=True)
class Scored:
    """A task with the number of tokens and the likelihood of each of its choices."""

    task: Task
    lengths: list[int]
    found: list[AnswerNll]

    @property
    def margin_in_errors(self) -> float:
        """Difference of the two likeliest choices over its standard error; infinite if nothing is drawn."""
        first, second = sorted(self.found, key=lambda one: one.nats)[:2]
        error = math.hypot(first.error or 0.0, second.error or 0.0)
        return (second.nats - first.nats) / error if error else math.inf


def task_tokens(task: Task, tokenizer: TextTokenizer, is_chat: bool) -> list[tuple[Tensor, Tensor]]:
    """Tokens of the prompt and of each answer."""
    if is_chat:
        prompt = tokenizer.encode_chat([{"role": "user", "content": task.prompt}])
    else:
        prefix = torch.tensor(tokenizer.specials.prefix, dtype=torch.int64)
        prompt = torch.cat([prefix, tokenizer.encode(task.prompt)])
    encode = tokenizer.encode_after if len(prompt) else tokenizer.encode
    return [(prompt, encode(choice)) for choice in task.choices]


def _report(scored: list[Scored], file: str, made: Made, draws: int) -> Report:
    """Accuracy by likelihood, by likelihood a token and a byte, and how exact the likelihoods are."""
    answers, n = [one.task.answer for one in scored], len(scored)
    scales = {
        "accuracy": [[1.0] * len(one.found) for one in scored],
        "accuracy_per_token": [[float(length) for length in one.lengths] for one in scored],
        "accuracy_per_byte": [[float(len(choice.encode())) for choice in one.task.choices] for one in scored],
    }
    of, kind = local_path(file).name, "bound" if any(x.is_bound for one in scored for x in one.found) else "exact"
    facts = {"draws": draws}
    entries = []
    for name, scale in scales.items():
        scores = [
            [x.nats / by for x, by in zip(one.found, row, strict=True)] for one, row in zip(scored, scale, strict=True)
        ]
        value, error = accuracy(scores, answers)
        entries.append(Entry(f"{name}[{kind}]", of, value, n, standard_error=error, facts=facts, **made))
    chance = sum(1 / len(one.found) for one in scored) / n
    entries.append(Entry("accuracy[uniform baseline]", of, chance, n))
    right = [one.found[one.task.answer] for one in scored]
    entries.append(Entry(f"nats_of_answer[{kind}]", of, sum(one.nats for one in right) / n, n, facts=facts, **made))
    errors = [one.error for item in scored for one in item.found if one.error is not None]
    if any(errors):
        rms = math.sqrt(sum(error**2 for error in errors) / len(errors))
        entries.append(Entry("monte_carlo_error[nats of a choice]", of, rms, n, facts=facts, **made))
        share = sum(one.margin_in_errors < 2 for one in scored) / n
        entries.append(Entry("undecided[margin below 2 errors]", of, share, n, facts=facts, **made))
    return Report(entries[0], others=entries[1:])

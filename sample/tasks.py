"""Tasks of a .jsonl, scored by a language model: what the metrics over choices have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import load_text_model, read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.choices import EXAMPLE, Task, accuracy, read_tasks
from maskgen.evaluation.report import Entry
from maskgen.schedules import Schedule
from maskgen.tokenizers.text.tokenizer import TextTokenizer

from .likelihood import schedule_of

Score = TypeVar("Score")


@dataclass(frozen=True)
class TaskSet:
    """Tasks as tokens, and the network that scores them.

    Attributes:
        tasks: of the file.
        rows: tokens (P,) of the prompt and (n,) of the answer, for each choice of each task.
        network: on its device.
        mask_id: V.
        schedule: of its training.
        of: name of the file.
    """

    tasks: list[Task]
    rows: list[list[tuple[Tensor, Tensor]]]
    network: nn.Module
    mask_id: int
    schedule: Schedule
    of: str

    def scores(
        self, label: str, score: Callable[[tuple[Tensor, Tensor], Rng], Score], seed: int = 0
    ) -> list[list[Score]]:
        """A score for each choice of each task; a choice has random numbers of its own."""
        found = []
        for index, rows in enumerate(tqdm(self.rows, label, unit="task", disable=None)):
            rng = Rng.stream(seed, "task", index)
            found.append([score(row, rng.fork("choice", n)) for n, row in enumerate(rows)])
        return found

    def lengths(self) -> list[list[float]]:
        """Tokens of each choice."""
        return [[float(len(answer)) for _, answer in task] for task in self.rows]

    def accuracy(
        self, name: str, scores: Sequence[Sequence[float]], per: Sequence[Sequence[float]] | None = None
    ) -> Entry:
        """Share of the tasks whose answer has the lowest score, divided by `per` if given."""
        if per is not None:
            scores = [[a / b for a, b in zip(*row, strict=True)] for row in zip(scores, per, strict=True)]
        value, error = accuracy(scores, [task.answer for task in self.tasks])
        return replace(self.entry(name, value), standard_error=error)

    def baseline(self) -> Entry:
        """Accuracy of choosing at random."""
        chance = sum(1 / len(task.choices) for task in self.tasks) / len(self.tasks)
        return self.entry("accuracy[uniform baseline]", chance)

    def entry(self, name: str, value: float) -> Entry:
        """A line of the report."""
        return Entry(name, self.of, value, len(self.tasks))


def read_task_set(metric: str, source: str, file: str | None, *, chat: bool, device: str) -> TaskSet:
    """The tasks of a file, for a checkpoint.

    Raises:
        UserError: a checkpoint or file that cannot be used.
    """
    if file is None:
        raise UserError(f"--metric {metric} needs --file TASKS.jsonl; a line is {EXAMPLE}")
    tasks = read_tasks(local_path(file))
    checkpoint = read_checkpoint(source)
    network, tokenizer = load_text_model(checkpoint)
    rows = [task_tokens(task, tokenizer, chat) for task in tasks]
    mask_id, schedule = tokenizer.vocab_size, schedule_of(checkpoint)
    return TaskSet(tasks, rows, network.to(pick_device(device)), mask_id, schedule, local_path(file).name)


def task_tokens(task: Task, tokenizer: TextTokenizer, is_chat: bool) -> list[tuple[Tensor, Tensor]]:
    """Tokens of the prompt and of each answer."""
    if is_chat:
        prompt = tokenizer.encode_chat([{"role": "user", "content": task.prompt}])
    else:
        prefix = torch.tensor(tokenizer.specials.prefix, dtype=torch.int64)
        prompt = torch.cat([prefix, tokenizer.encode(task.prompt)])
    encode = tokenizer.encode_after if len(prompt) else tokenizer.encode
    return [(prompt, encode(choice)) for choice in task.choices]

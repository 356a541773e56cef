"""`maskgen evaluate --metric pseudo-likelihood`: how often a masked language model prefers the right answer."""

from __future__ import annotations

from tqdm import tqdm

from maskgen.checkpoints.checkpoint import load_text_model, read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.evaluation.metrics.choices import EXAMPLE, Task, accuracy, read_tasks
from maskgen.evaluation.metrics.pseudo_likelihood import pseudo_nll
from maskgen.evaluation.report import Entry, Report, publish

from .choices import task_tokens
from .likelihood import schedule_of
from .metric import METRICS, metric
from .pictures import check_writable


@METRICS.register("pseudo-likelihood")
@metric("text")
def run(
    source: str,
    /,
    *,
    file: str | None = None,
    windows: str = "1,2,3,4",
    chat: bool = False,
    seed: int = 0,  # noqa: ARG001 - nothing is drawn
    output: str | None = None,
    device: str = "auto",
) -> str:
    """Accuracy of choosing among answers by pseudo-log-likelihood; windows are numbers of masked tokens, or `all`.

    Raises:
        UserError: a checkpoint, file, window or output that cannot be used.
    """
    if file is None:
        raise UserError(f"--metric pseudo-likelihood needs --file TASKS.jsonl; a line is {EXAMPLE}")
    sizes = _windows(str(windows))
    path = check_writable(output, (".json",)) if output else None
    tasks = read_tasks(local_path(file))
    checkpoint = read_checkpoint(source)
    network, tokenizer = load_text_model(checkpoint)
    network.to(pick_device(device))
    rows = [task_tokens(task, tokenizer, chat) for task in tasks]
    schedule, entries = schedule_of(checkpoint), []
    for name, size in sizes.items():
        try:
            scores = [
                [pseudo_nll(network, *row, size, schedule, mask_id=tokenizer.vocab_size) for row in task]
                for task in tqdm(rows, f"window {name}", unit="task", disable=None)
            ]
        except ValueError as error:
            raise UserError(f"{source}: {error}") from None
        lengths = [[len(answer) for _, answer in task] for task in rows]
        entries += _entries(name, tasks, scores, lengths, local_path(file).name)
    chance = sum(1 / len(task.choices) for task in tasks) / len(tasks)
    entries.append(Entry("accuracy[uniform baseline]", local_path(file).name, chance, len(tasks)))
    return publish(Report(entries[0], others=entries[1:]), path)


def _entries(
    window: str, tasks: list[Task], scores: list[list[float]], lengths: list[list[int]], of: str
) -> list[Entry]:
    """Accuracy by pseudo-log-likelihood, and by that of a token."""
    per_token = [[nats / n for nats, n in zip(*row, strict=True)] for row in zip(scores, lengths, strict=True)]
    kind = "left to right" if window == "all" else f"pseudo-likelihood, window {window}"
    entries = []
    for measure, values in (("accuracy", scores), ("accuracy_per_token", per_token)):
        value, error = accuracy(values, [task.answer for task in tasks])
        entries.append(Entry(f"{measure}[{kind}]", of, value, len(tasks), standard_error=error))
    return entries


def _windows(text: str) -> dict[str, int | None]:
    """Windows by name, of "1,2,all".

    Raises:
        UserError: one is no number above 0.
    """
    found: dict[str, int | None] = {}
    for name in (part.strip() for part in text.strip("[]() ").split(",")):
        if name != "all" and not (name.isdecimal() and int(name) > 0):
            raise UserError(f"windows: {name!r} is no number of masked tokens; write 1,2,3,4 or all")
        found[name] = None if name == "all" else int(name)
    return found

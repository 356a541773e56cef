"""`maskgen evaluate --metric pseudo-likelihood`: how often a masked language model prefers the right answer."""

from __future__ import annotations

from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.pseudo_likelihood import pseudo_nll
from maskgen.evaluation.report import Report, publish

from .metric import METRICS, metric
from .pictures import check_writable
from .tasks import read_task_set


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
    sizes = _windows(str(windows))
    path = check_writable(output, (".json",)) if output else None
    tasks = read_task_set("pseudo-likelihood", source, file, chat=chat, device=device)
    entries = []
    for name, size in sizes.items():

        def score(row: tuple[Tensor, Tensor], _: Rng, size: int | None = size) -> float:
            return pseudo_nll(tasks.network, *row, size, tasks.schedule, mask_id=tasks.mask_id)

        try:
            scores = tasks.scores(f"window {name}", score)
        except ValueError as error:
            raise UserError(f"{source}: {error}") from None
        kind = "left to right" if name == "all" else f"pseudo-likelihood, window {name}"
        entries.append(tasks.accuracy(f"accuracy[{kind}]", scores))
        entries.append(tasks.accuracy(f"accuracy_per_token[{kind}]", scores, tasks.lengths()))
    entries.append(tasks.baseline())
    return publish(Report(entries[0], others=entries[1:]), path)


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

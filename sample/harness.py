"""`maskgen evaluate --metric lm-eval`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import importlib
from typing import Any

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import local_path
from maskgen.evaluation.report import Entry, Report, publish

from .metric import METRICS, metric
from .pictures import check_writable

NEEDED = (
    ("lm_eval", "simple_evaluate"),
    ("lm_eval.tasks", "TaskManager"),
    ("maskgen.sample.harness_model", "HarnessModel"),
)


@METRICS.register("lm-eval")
@metric("text")
def run(
    source: str,
    /,
    *,
    tasks: str = "",
    include_path: str | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
    draws: int = 128,
    chat: bool = False,
    new_tokens: int = 64,
    seed: int = 0,
    output: str | None = None,
    device: str = "auto",
    **choices: Any,
) -> str:
    """Scores of tasks of lm-evaluation-harness, `tasks=arc_easy,piqa`, or of those in a folder, `include_path=DIR`.

    Raises:
        UserError: lm-eval is not installed; a checkpoint, task, sampler or output that cannot be used.
    """
    names = [name.strip() for name in str(tasks).split(",") if name.strip()]
    if not names:
        raise UserError("--metric lm-eval needs tasks=NAME,NAME; `lm_eval ls tasks` lists them")
    path = check_writable(output, (".json",)) if output else None
    folder = None if include_path is None else str(local_path(include_path))
    arguments = {"tasks": names, "num_fewshot": fewshot, "limit": limit, "apply_chat_template": chat}
    found = _evaluated((source, draws, new_tokens, seed, device), choices, folder, arguments)
    entries = [entry for name in names for entry in _entries(name, found, seed)]
    return publish(Report(entries[0], others=entries[1:]), path)


def _evaluated(
    model: tuple[object, ...], choices: dict[str, Any], folder: str | None, arguments: dict[str, Any]
) -> dict[str, Any]:
    """The results of the harness.

    Args:
        model: arguments of `HarnessModel`.
        choices: of its sampler.
        folder: of the tasks; None for those of the harness.
        arguments: of `lm_eval.simple_evaluate`.

    Raises:
        UserError: lm-eval is not installed, or has no such task.
    """
    try:
        evaluate, manager, build = (getattr(importlib.import_module(module), name) for module, name in NEEDED)
        found: dict[str, Any] = evaluate(
            model=build(*model, **choices),
            task_manager=manager(include_path=folder, include_defaults=folder is None),
            bootstrap_iters=0,
            log_samples=False,
            **arguments,
        )
    except ImportError as error:
        raise UserError(f"--metric lm-eval: {error}; pip install 'maskgen[lm-eval]'") from None
    except (ValueError, KeyError, FileNotFoundError, ConnectionError) as error:
        raise UserError(f"lm-eval: {first_line(error)}") from None
    return found


def _entries(task: str, found: dict[str, Any], seed: int) -> list[Entry]:
    """The numbers of a task; keys of the harness are `acc,none` and `acc_stderr,none`."""
    scores = found["results"][task]
    n = int(found["n-samples"].get(task, {}).get("effective", 0)) or None
    numbers = {key: value for key, value in scores.items() if isinstance(value, int | float) and "," in key}
    entries = []
    for key, value in numbers.items():
        name, _, kind = key.partition(",")
        if not name.endswith("_stderr"):
            label = name if kind == "none" else f"{name}[{kind}]"
            entries.append(Entry(label, task, float(value), n, seed=seed, facts={"by": "lm-eval"}))
    return entries

"""`maskgen sample` and `maskgen evaluate`: from a checkpoint of either kind to what was asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.core.errors import UserError
from maskgen.pipelines.image import ImagePipeline
from maskgen.pipelines.load import load
from maskgen.pipelines.text import TextPipeline

from . import diversity, images, inpainting, likelihood, perplexity, probe, texts
from . import evaluate as fidelity

TEXT_ONLY = ("length", "infill", "show_steps")
IMAGE_ONLY = ("classes", "picture", "hole", "animate", "guidance", "guidance_interval")


def sample(source: str, /, *, device: str = "auto", **options: Any) -> str:
    """Sample and write; what to tell the user.

    Raises:
        UserError: a checkpoint or option that cannot be used.
    """
    pipeline = load(source, device=device)
    if isinstance(pipeline, TextPipeline):
        texts.run(pipeline, **_one_prompt(_without(options, IMAGE_ONLY, f"{source} writes text")))
        return options.get("output") or ""
    assert isinstance(pipeline, ImagePipeline)
    chosen = _without(options, TEXT_ONLY, f"{source} makes images")
    if chosen.get("prompts") and pipeline.checkpoint.recipe.captions is None:
        raise UserError(f"--prompt does not go with this checkpoint: {source} was trained without captions")
    chosen["output"] = chosen.get("output") or "samples.png"
    if "hole" in chosen and "picture" not in chosen:
        raise UserError(f"--hole {chosen['hole']} is of a picture: give --picture FILE")
    images.run(pipeline, **chosen)
    return "\n".join(filter(None, (chosen["output"], chosen.get("animate"))))


def _one_prompt(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a text, which has one beginning."""
    prompts = options.pop("prompts", ())
    if len(prompts) > 1:
        raise UserError(f"--prompt: a text has one beginning, got {len(prompts)}")
    return {**options, "prompt": prompts[0]} if prompts else options


def evaluate(source: str, /, *, metrics: Sequence[str] = (), **options: Any) -> str:
    """Score a checkpoint; the tables it prints. Without metrics images are judged by fidelity, text by likelihood.

    Raises:
        UserError: a checkpoint, metric or option that cannot be used.
    """
    is_text = read_checkpoint(source).recipe.kind == "text"
    wanted = tuple(dict.fromkeys(metrics)) or (("likelihood",) if is_text else ("fidelity",))
    groups: dict[str, list[str]] = {}
    for name in wanted:
        groups.setdefault(name if name in METRICS else "fidelity", []).append(name)
    for group, names in groups.items():
        _require(source, group, names[0], is_text)
    _require_options(source, groups, options)
    outputs = _outputs(options.get("output"), list(groups))
    tables = []
    for group, names in groups.items():
        metric = METRICS[group]
        own = {key: value for key, value in options.items() if _takes(metric, key)} | {"output": outputs[group]}
        tables.append(metric.run(source, **own, **({"metrics": names} if group == "fidelity" else {})))
    return "\n\n".join(tables)


@dataclass(frozen=True)
class _Metric:
    """A program, the options that are its own, the kind of checkpoint it is for, whether it takes sampling options."""

    run: Callable[..., str]
    options: frozenset[str]
    is_for_text: bool | None
    is_sampled: bool


METRICS = {
    "fidelity": _Metric(fidelity.run, frozenset({"num", "repeats", "protocol", "weights"}), False, True),
    "inpainting": _Metric(
        inpainting.run, frozenset({"num", "completions", "hole", "protocol", "weights"}), False, True
    ),
    "likelihood": _Metric(likelihood.run, frozenset({"split", "strata"}), None, False),
    "probe": _Metric(probe.run, frozenset(), False, False),
    "generative-perplexity": _Metric(perplexity.run, frozenset({"num", "scorer", "length"}), True, True),
    "diversity": _Metric(diversity.run, frozenset({"num", "length"}), True, True),
}
"""Programs; every other metric goes with fidelity."""


def _takes(metric: _Metric, key: str) -> bool:
    own = {option for one in METRICS.values() for option in one.options}
    return key in {*metric.options, "seed", "output", "device"} or (metric.is_sampled and key not in own)


def _require(source: str, group: str, name: str, is_text: bool) -> None:
    if METRICS[group].is_for_text in (None, is_text):
        return
    kind, others = (
        ("text", "likelihood, generative-perplexity or diversity")
        if is_text
        else ("images", "fidelity, inpainting or likelihood")
    )
    raise UserError(f"--metric {name}: {source} makes {kind}; choose {others}")


def _require_options(source: str, groups: Iterable[str], options: Iterable[str]) -> None:
    for key in options:
        if not any(_takes(METRICS[group], key) for group in groups):
            raise UserError(f"--{key.replace('_', '-')} does not go with this metric of {source}; leave it out")


def _outputs(output: str | None, groups: list[str]) -> dict[str, str | None]:
    """Where each report goes: in a folder, under the metric's name if there are several; fidelity fills a folder."""
    if output is None or (Path(output).suffix and len(groups) == 1):
        return dict.fromkeys(groups, output)
    if Path(output).suffix:
        raise UserError(f"--output {output}: several metrics write several reports; give a folder")
    names = {group: "report" if len(groups) == 1 else group for group in groups}
    return {
        group: output if group == "fidelity" else str(Path(output) / f"{name}.json") for group, name in names.items()
    }


def _without(options: dict[str, Any], others: tuple[str, ...], what: str) -> dict[str, Any]:
    """The options that were given, none of `others` among them; a sampler's argument may be null or false."""
    own = {*TEXT_ONLY, *IMAGE_ONLY, "prompts"}
    given = {k: v for k, v in options.items() if not (k in own and (v is None or v is False or v == ()))}
    wrong = [key for key in others if key in given]
    if wrong:
        name = "class" if wrong[0] == "classes" else wrong[0].replace("_", "-")
        raise UserError(f"--{name} does not go with this checkpoint: {what}")
    return given

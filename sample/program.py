"""`maskgen sample` and `maskgen evaluate`: from a checkpoint of either kind to samples or scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.checkpoints.filling import DTYPES
from maskgen.core.errors import UserError, unknown
from maskgen.evaluation.metrics.scored import FEATURE_METRICS
from maskgen.pipelines.image import ImagePipeline
from maskgen.pipelines.joint import JointPipeline
from maskgen.pipelines.load import LoadOptions, load
from maskgen.pipelines.text import TextPipeline

from . import images, rows, texts
from .metric import FEATURES, METRICS, Kind, metric_of

TEXT_ONLY = ("length", "new_tokens", "infill", "chat", "system", "show_steps")
IMAGE_ONLY = ("classes", "picture", "hole", "strength", "sketch", "structure", "edges", "animate", "scale")
OF_PICTURE, OF_SKETCH = ("hole", "strength"), ("structure", "edges")
NOT_OF_ROWS = (*TEXT_ONLY, "strength", "sketch", "structure", "edges", "animate")
NOT_OF_SKETCH = ("picture", "prompts", "sampler", "guidance_interval", "animate")


def sample(source: str, /, **options: Any) -> str:
    """Sample and write; the paths of the results.

    Raises:
        UserError: a checkpoint or option that cannot be used.
    """
    pipeline = load(source, **_place(options))
    if isinstance(pipeline, JointPipeline):
        return rows.run(pipeline, **_without(options, NOT_OF_ROWS, f"{source} generates rows of several streams"))
    if isinstance(pipeline, TextPipeline):
        texts.run(pipeline, **_beginning(_without(options, IMAGE_ONLY, f"{source} writes text")))
        return options.get("output") or ""
    assert isinstance(pipeline, ImagePipeline)
    chosen = _without(options, TEXT_ONLY, f"{source} makes images")
    if chosen.get("prompts") and pipeline.checkpoint.recipe.captions is None:
        raise UserError(f"--prompt does not go with this checkpoint: {source} was trained without captions")
    chosen["output"] = chosen.get("output") or "samples.png"
    if not chosen.get("hole"):
        chosen.pop("hole", None)
    for names, whole in ((OF_PICTURE, "picture"), (OF_SKETCH, "sketch")):
        for name in names:
            if name in chosen and whole not in chosen:
                raise UserError(f"--{name} is of a {whole}: give --{whole} FILE")
    for name in NOT_OF_SKETCH:
        if "sketch" in chosen and chosen.get(name):
            raise UserError(f"--{name.replace('_', '-')} does not go with --sketch, which has a decoding of its own")
    images.run(pipeline, **chosen)
    return "\n".join(filter(None, (chosen["output"], chosen.get("animate"))))


def _place(options: dict[str, Any]) -> LoadOptions:
    """Takes the options of `maskgen.load` out of those of a command."""
    found = LoadOptions(device=options.pop("device", "auto"), device_map=options.pop("device_map", None))
    if (dtype := options.pop("dtype", None)) is not None:
        found["dtype"] = DTYPES[dtype]
    if limits := options.pop("max_memory", ()):
        found["max_memory"] = dict(_limit(one) for one in limits)
    return found


def _limit(text: str) -> tuple[int | str, str]:
    """`0=10GB` -> (0, "10GB")."""
    device, separator, size = text.partition("=")
    if not separator:
        raise UserError(f"--max-memory is DEVICE=SIZE, for example 0=10GB or cpu=30GB, got {text!r}")
    return (int(device) if device.isdecimal() else device), size


def _beginning(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a text, which has one beginning: a prompt, or a conversation with it as the user's message."""
    prompts = options.pop("prompts", ())
    is_chat, system = options.pop("chat", False), options.pop("system", None)
    if len(prompts) > 1:
        raise UserError(f"--prompt: a text has one beginning, got {len(prompts)}")
    if not is_chat:
        if system is not None:
            raise UserError("--system is a message of a conversation; give --chat as well")
        return {**options, "prompt": prompts[0]} if prompts else options
    if not prompts:
        raise UserError("--chat answers a message: give it by --prompt TEXT")
    turns = [] if system is None else [{"role": "system", "content": system}]
    return {**options, "messages": [*turns, {"role": "user", "content": prompts[0]}]}


def evaluate(source: str, /, *, metrics: Sequence[str] = (), **options: Any) -> str:
    """Score a checkpoint; the tables it prints. Without metrics the default one of images or text is computed.

    Raises:
        UserError: a checkpoint, metric or option that cannot be used.
    """
    kind: Kind = "text" if read_checkpoint(source).recipe.kind == "text" else "image"
    groups = _grouped(tuple(dict.fromkeys(metrics)) or (_default(kind),))
    for group, names in groups.items():
        if not metric_of(group).is_for(kind):
            others = ", ".join(name for name in METRICS.names() if metric_of(name).is_for(kind))
            raise UserError(f"--metric {names[0]}: {source} generates {_PLURAL[kind]}; choose from {others}")
    for key in options:
        if not any(metric_of(group).takes(key) for group in groups):
            raise UserError(f"--{key.replace('_', '-')} does not go with this metric of {source}; leave it out")
    outputs = _outputs(options.get("output"), list(groups))
    tables = []
    for group, names in groups.items():
        metric = metric_of(group)
        own = {key: value for key, value in options.items() if metric.takes(key)} | {"output": outputs[group]}
        tables.append(metric(source, **own, **({FEATURES: names} if FEATURES in metric.options else {})))
    return "\n\n".join(tables)


_PLURAL = {"image": "images", "text": "text"}


def _default(kind: Kind) -> str:
    """The metric of checkpoints of a kind if none is chosen: the one that is for this kind alone comes first."""
    found = [name for name in METRICS.names() if metric_of(name).is_default and metric_of(name).is_for(kind)]
    return next((name for name in found if metric_of(name).kind == kind), found[0])


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Programs and the metrics each computes: those of features go with the one program that takes them.

    Raises:
        SpecError: an unknown metric.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        if name in METRICS.names():
            groups.setdefault(name, []).append(name)
        elif name in FEATURE_METRICS.names():
            (group,) = (one for one in METRICS.names() if FEATURES in metric_of(one).options)
            groups.setdefault(group, []).append(name)
        else:
            raise UserError(unknown("metric", name, sorted([*METRICS.names(), *FEATURE_METRICS.names()])))
    return groups


def _outputs(output: str | None, groups: list[str]) -> dict[str, str | None]:
    """Where each report goes: in a folder, under the metric's name if there are several."""
    if output is None or (Path(output).suffix and len(groups) == 1):
        return dict.fromkeys(groups, output)
    if Path(output).suffix:
        raise UserError(f"--output {output}: several metrics write several reports; give a folder")
    names = {group: "report" if len(groups) == 1 else group for group in groups}
    return {
        group: output if metric_of(group).fills_folder else str(Path(output) / f"{name}.json")
        for group, name in names.items()
    }


def _without(options: Mapping[str, object], others: tuple[str, ...], what: str) -> dict[str, Any]:
    """The options that were given, none of `others` among them; a sampler's argument may be null or false."""
    own = {*TEXT_ONLY, *IMAGE_ONLY, "prompts"}
    given = {k: v for k, v in options.items() if not (k in own and (v is None or v is False or v == ()))}
    wrong = [key for key in others if key in given]
    if wrong:
        name = "class" if wrong[0] == "classes" else wrong[0].replace("_", "-")
        raise UserError(f"--{name} does not go with this checkpoint: {what}")
    return given

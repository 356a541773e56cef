"""`maskgen sample` and `maskgen evaluate`: from a checkpoint of either kind to what was asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maskgen.checkpoint import read_checkpoint
from maskgen.errors import UserError

from . import evaluate as fidelity
from . import images, likelihood, perplexity, texts
from .image_pipeline import ImagePipeline
from .pipeline import load
from .text_pipeline import TextPipeline

TEXT_ONLY = ("length", "infill", "show_steps")
IMAGE_ONLY = ("classes", "picture", "hole", "animate", "guidance")


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


def evaluate(source: str, /, *, metric: str | None = None, **options: Any) -> str:
    """Score a checkpoint; the table it prints. Without `metric` images are judged by fidelity, text by likelihood.

    Raises:
        UserError: a checkpoint, metric or option that cannot be used.
    """
    is_text = read_checkpoint(source).recipe.is_text
    chosen = METRICS[metric or ("likelihood" if is_text else "fidelity")]
    if chosen.is_for_text not in (None, is_text):
        kind, others = (
            ("text", "likelihood or generative-perplexity") if is_text else ("images", "fidelity or likelihood")
        )
        raise UserError(f"--metric {metric}: {source} makes {kind}; choose {others}")
    own = {option for one in METRICS.values() for option in one.options}
    for key in options:
        if key in own - chosen.options or not (
            chosen.is_sampled or key in {*chosen.options, "seed", "output", "device"}
        ):
            raise UserError(f"--{key.replace('_', '-')} does not go with this metric of {source}; leave it out")
    report: str = chosen.run(source, **options)
    return report


@dataclass(frozen=True)
class _Metric:
    """A program, the options that are its own, the kind of checkpoint it is for, whether it takes sampling options."""

    run: Callable[..., str]
    options: frozenset[str]
    is_for_text: bool | None
    is_sampled: bool


METRICS = {
    "fidelity": _Metric(fidelity.run, frozenset({"num", "extractor"}), False, True),
    "likelihood": _Metric(likelihood.run, frozenset({"split", "strata"}), None, False),
    "generative-perplexity": _Metric(perplexity.run, frozenset({"num", "scorer", "length"}), True, True),
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

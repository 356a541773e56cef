"""`maskgen cost`: cost of a training, computed before it starts and without its data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from maskgen.checkpoints.checkpoint import load_tokenizer
from maskgen.checkpoints.target_source import load_target_source
from maskgen.core.errors import UserError
from maskgen.core.streams import Stream, TokenLayout
from maskgen.recipes.budget import plan
from maskgen.recipes.build import DataFacts, System, build_system, possible_sizes, text_layout
from maskgen.recipes.cost import Cost, Macs, Subject, cost_of, gpu_hours, measure, subject
from maskgen.recipes.load import load_recipe, parse_recipe
from maskgen.recipes.rows import row_tokenizer
from maskgen.recipes.schema import Recipe, anywhere
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.image.latent import KLTokenizer

COMPARED = (0.75, 0.5, 0.25)
"""Keep ratios in every table of a recipe that can drop tokens."""


TIMED = 300_000_000
"""Larger networks are not built for real: weights and gradients would take gigabytes."""


@dataclass(frozen=True)
class Assumed:
    """What the user says of data and tokenizers that are not here; None for the usual."""

    n_classes: int | None = None
    vocab_size: int | None = None
    latent_channels: int = 4


def run(
    source: str,
    overrides: Sequence[str] = (),
    *,
    gpu: str = "h100",
    price: float | None = None,
    mfu: float = 0.4,
    is_measured: bool = True,
    **assumed: Any,
) -> str:
    """The cost of a recipe as a table.

    Args:
        gpu, mfu, price: hours are projected for one GPU at this share of its peak; USD an hour.
        is_measured: also time some steps on this machine.
        assumed: the fields of `Assumed`.

    Raises:
        UserError: a recipe, GPU or tokenizer that cannot be used.
    """
    recipe = load_recipe(source, overrides)
    gpu_hours(0.0, gpu, mfu)
    unseen = Assumed(**assumed)
    with torch.device("meta"):
        subjects = _subjects(recipe, unseen)
    cost = cost_of(recipe.train, subjects, COMPARED if _can_drop(recipe) else ())
    lines = [f"{source}: {cost.n_parameters:,} parameters", *_phases(cost), "", *_table(cost), ""]
    lines += _totals(cost, gpu, price, mfu)
    if is_measured and cost.n_parameters > TIMED:
        lines.append(f"this machine: not timed, more than {TIMED:,} parameters")
    elif is_measured:
        lines += _measured(recipe, unseen, cost)
    return "\n".join(lines)


def brief(cost: Cost) -> str:
    """A line for the log of a training."""
    parts = []
    for (resolution, ratio), macs in cost.macs.items():
        whole = cost.macs[resolution, 1.0].total
        share = f" ({macs.total / whole:.2f} of unmasked)" if ratio < 1 else ""
        parts.append(f"{_amount(macs.total)} MACs at keep ratio {ratio:g}{share}")
    return f"a sample's forward pass: {', '.join(parts)}; the whole training {cost.flops:.3g} FLOPs"


def cost_of_system(system: System) -> Cost:
    """The cost of a training run whose tokenizer and data are there."""
    recipe, facts, subjects = system.recipe, system.facts, {}
    with torch.device("meta"):
        for resolution in dict.fromkeys((None, *(phase.resolution for phase in recipe.train.phases))):
            sized, layout = recipe.at(resolution), system.layout
            if resolution is not None:
                facts = replace(facts, image_shape=sized.image_shape(), built_for=None)
                layout = load_tokenizer(sized, sized.image_shape()).layout
            subjects[resolution] = subject(_on_meta(sized, facts, layout))
    return cost_of(recipe.train, subjects)


def _on_meta(recipe: Recipe, facts: DataFacts, layout: TokenLayout | None) -> System:
    """The system to count; a tokenizer that is trained is built on the CPU, as its quantiser reads values."""
    device = torch.device("cpu") if recipe.task == "tokenizer" else nullcontext()
    with torch.device("cpu"):
        source = load_target_source(recipe)
    with device, possible_sizes():
        return build_system(anywhere(recipe), facts, layout=layout, source=source)


def _subjects(recipe: Recipe, assumed: Assumed) -> dict[int | None, Subject]:
    resolutions = dict.fromkeys((None, *(phase.resolution for phase in recipe.train.phases)))
    return {resolution: _subject(recipe.at(resolution), assumed) for resolution in resolutions}


def _subject(recipe: Recipe, assumed: Assumed) -> Subject:
    return subject(_on_meta(recipe, *_assumed(recipe, assumed)))


def _assumed(recipe: Recipe, assumed: Assumed) -> tuple[DataFacts, TokenLayout | None]:
    """Facts and layout of a recipe, from what is there and what the user gives instead."""
    if recipe.kind == "text":
        facts = DataFacts(length=recipe.row_length())
        return facts, text_layout(assumed.vocab_size or _vocab_size(recipe), facts.length)
    if recipe.streams is not None:
        return _row_facts(recipe)
    n_classes = _classes(recipe) if assumed.n_classes is None else assumed.n_classes
    caption_shape = None if recipe.captions is None else recipe.captions.shape()
    facts = DataFacts(n_classes, recipe.image_shape(), caption_shape=caption_shape)
    return facts, _image_layout(recipe, assumed) if recipe.task == "generator" else None


def _row_facts(recipe: Recipe) -> tuple[DataFacts, TokenLayout]:
    """Facts and layout of rows of several streams, whose sizes come from the data."""
    with torch.device("cpu"):
        source, captions = recipe.build_data(), None
        if recipe.has_text:
            split = source.split("train")
            captions = recipe.build_caption_tokenizer(cast(Sequence[str], split.part("caption", range(len(split)))))
        facts = DataFacts.of(source)
        return facts, row_tokenizer(recipe, facts, load_tokenizer(recipe, source.image_shape), captions).layout


def _vocab_size(recipe: Recipe) -> int:
    if isinstance(recipe.tokenizer, dict) and recipe.tokenizer.get("vocab_size"):  # of an own BPE: at most
        return int(recipe.tokenizer["vocab_size"])
    try:
        with torch.device("cpu"):
            return recipe.build_text_tokenizer(recipe.build_text()).vocab_size
    except UserError as error:
        raise UserError(f"the vocabulary is made from the text, which is not here: give --vocab N ({error})") from None


def _image_layout(recipe: Recipe, assumed: Assumed) -> TokenLayout:
    shape = recipe.image_shape()
    if recipe.tokenizer_source is None:
        name, arguments = TOKENIZERS.check(recipe.tokenizer or "")
        entry = TOKENIZERS.get(name)
        if isinstance(entry, type) and issubclass(entry, KLTokenizer):  # its weights may be on the hub
            sizes = entry.sizes_of(shape, **arguments, latent_channels=assumed.latent_channels)
            return TokenLayout.of(Stream("image", "image", 0, sizes["grid"], sizes["token_width"]))
        return recipe.build_tokenizer(shape).layout
    try:
        with torch.device("cpu"):
            return load_tokenizer(recipe, shape).layout
    except UserError as error:
        raise UserError(
            f"{error}\nto count without it, give its type instead of `from`: 'tokenizer={{type: vq, ...}}'"
        ) from None


def _classes(recipe: Recipe) -> int:
    """How many classes the data have; 1,000 where they are not here."""
    try:
        return len(recipe.build_data().classes)
    except UserError:
        return 1000


def _can_drop(recipe: Recipe) -> bool:
    """Whether the recipe could train with dropped tokens."""
    tree = recipe.model_dump(mode="json", exclude_none=True)
    tree["train"] |= {"keep_ratio": 0.5, "phases": []}
    try:
        parse_recipe(tree)
    except UserError:
        return False
    return True


def _table(cost: Cost) -> Iterator[str]:
    """A row a resolution and keep ratio: MACs, share of unmasked, the network's stages."""
    stages = list(dict.fromkeys(stage for macs in cost.macs.values() for stage in macs.stages))
    rows = [["resolution", "keep ratio", "MACs", "of unmasked", *stages]]
    for (resolution, ratio), macs in sorted(cost.macs.items(), key=lambda item: (item[0][0] or 0, -item[0][1])):
        share = macs.total / cost.macs[resolution, 1.0].total
        rows.append([str(resolution or "-"), f"{ratio:g}", _amount(macs.total), f"{share:.3f}", *_stages(macs, stages)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _stages(macs: Macs, stages: Sequence[str]) -> list[str]:
    return [_amount(macs.stages.get(stage, 0.0)) for stage in stages]


def _totals(cost: Cost, gpu: str, price: float | None, mfu: float) -> Iterator[str]:
    settings = cost.settings
    share = cost.flops / cost.unmasked_flops
    yield (
        f"{settings.steps:,} steps: {cost.flops:.3e} FLOPs (3 forward passes a step, a MAC is 2 FLOPs), "
        f"{share:.3f} of the same steps without dropped tokens"
    )
    hours = gpu_hours(cost.flops, gpu, mfu)
    money = "" if price is None else f", {hours * price:,.2f} USD at {price:g} USD an hour"
    yield f"{gpu} at {mfu:.0%} of its peak: {hours:,.2f} GPU hours{money}"


def _phases(cost: Cost) -> Iterator[str]:
    for stretch in plan(cost.settings):
        kept = ", ".join(f"{ratio:g}" for ratio in stretch.keep_ratios)
        size = f", resolution {stretch.resolution}" if stretch.resolution else ""
        yield f"phase {stretch.index + 1}: {len(stretch):,} steps of {stretch.batch_size}, keep ratio {kept}{size}"


def _measured(recipe: Recipe, assumed: Assumed, cost: Cost) -> Iterator[str]:
    """Samples a second of forward and backward passes here, unmasked and at the run's lowest keep ratio."""
    what = _subject(recipe, assumed)
    size = max(1, min(recipe.train.batch_size, 16, int(1e11 / cost.macs[None, 1.0].total)))
    for ratio in dict.fromkeys((1.0, recipe.train.lowest_keep_ratio)):
        speed = measure(what, size, ratio, 3)
        yield f"this machine, keep ratio {ratio:g}, {size} at a time: {speed:,.1f} samples/s"


def _amount(value: float) -> str:
    """1,234,567 -> 1.235 M"""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3f} {name}"
    return f"{value:g}"

"""The start from another checkpoint: its weights, frozen parts, and low-rank changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType

import torch
from safetensors.torch import save_file
from torch import nn

from maskgen.checkpoints.adapters import (
    BASE,
    Base,
    base_tensors,
    digest_of,
    fill_base,
    required_base,
    weights_in,
)
from maskgen.checkpoints.checkpoint import (
    MODEL,
    Checkpoint,
    CheckpointError,
    load_system,
    load_tokenizer,
    read_checkpoint,
)
from maskgen.checkpoints.transfer import NEW, Match, RowSources, transfer
from maskgen.core.devices import device_of
from maskgen.core.errors import UserError
from maskgen.core.files import obey_umask
from maskgen.core.rng import fold
from maskgen.data.base import ImageSource
from maskgen.nn.lora import add_lora, matching
from maskgen.recipes.build import DataFacts
from maskgen.recipes.checks import traits_of_model
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.joint.rows import RowTokenizer
from maskgen.tokenizers.text.tokenizer import TextTokenizer

from .parts import Parts


@dataclass(frozen=True)
class Origin:
    """Where the weights of a run came from.

    Attributes:
        info: what each of its checkpoints says of it, `start` and `base`.
        notes: lines for the start of the run.
    """

    info: Mapping[str, object]
    notes: tuple[str, ...] = ()


def source_of(recipe: Recipe) -> Checkpoint | None:
    """The checkpoint that the recipe starts from, None for newly initialised weights.

    Raises:
        UserError: there is none, or it is of another task or kind of data.
    """
    if recipe.start is None:
        return None
    source = read_checkpoint(recipe.start.checkpoint)
    before, after = ((one.task, one.kind) for one in (source.recipe, recipe))
    if before != after:
        raise UserError(
            f"start.checkpoint: {recipe.start.checkpoint} is a {before[0]} of {before[1]}, the recipe trains a "
            f"{after[0]} of {after[1]}; start from one of the same kind"
        )
    return source


def known_of(recipe: Recipe, source: Checkpoint | None) -> DataFacts:
    """What a network takes over from the checkpoint it starts from: architecture, and the grid of its positions.

    Positions by a formula are those of the checkpoint's grid, brought to the new one; learned ones are interpolated.
    """
    if source is None:
        return DataFacts()
    if recipe.kind != "image" or recipe.task != "generator" or traits_of_model(recipe).has_fixed_grid:
        return DataFacts(architecture=source.facts.architecture)
    facts = source.facts
    shape = facts.built_for or source.image_shape
    return DataFacts(built_grid=facts.built_grid or load_tokenizer(source.recipe, shape, source.path).grid)


def begin(parts: Parts, recipe: Recipe, source: Checkpoint | None, directory: Path, *, is_main: bool) -> Origin:
    """Fill a newly built network from the recipe's start, freeze parts of it, add low-rank changes.

    Args:
        parts: of the run.
        recipe: of the run.
        source: of `source_of`.
        directory: of the run; the weights below low-rank changes are kept in it.
        is_main: this process writes.

    Raises:
        UserError: weights that do not fit, or a pattern that matches nothing.
    """
    info: dict[str, object] = {}
    notes: list[str] = []
    trained: list[str] = []
    network, below, weights = parts.module, {}, "ema"
    if source is not None and recipe.start is not None:
        weights = recipe.start.weights
        below = weights_in(source.path, weights)
        done = transfer(network, below, _match(parts, recipe, source), recipe.start.checkpoint)
        network.load_state_dict(done.state)
        digest, named = digest_of(below), recipe.start.model_dump(include={"checkpoint", "weights"})
        info["start"] = {**named, "digest": digest, "step": source.step, "recipe": source.recipe.summary}
        trained = sorted(done.changed & {name for name, _ in network.named_parameters()})
        kind = "averaged" if weights == "ema" else "raw"
        notes += [f"from {recipe.start.checkpoint}: {kind} weights of step {source.step:,}, digest {digest[:12]}"]
        notes += done.notes
    if recipe.lora is not None:
        below = below or {name: value.detach().clone() for name, value in network.state_dict().items()}
        checkpoint = "" if recipe.start is None else recipe.start.checkpoint
        base = Base(source=checkpoint, weights=weights, digest=digest_of(below), trained=trained)
        info["base"] = base
        if is_main:
            _keep(directory / BASE, below)
    _restrict(network, recipe, trained)
    return Origin(info, (*notes, *_shares(network)))


def go_on(parts: Parts, recipe: Recipe, start: Checkpoint) -> Origin:
    """The same for a run that is resumed: what its checkpoint does not hold is below its low-rank changes.

    Raises:
        UserError: the weights below low-rank changes are gone or have been changed.
    """
    info = {key: start.info[key] for key in ("start", "base") if key in start.info}
    trained: list[str] = []
    if recipe.lora is not None:
        base = required_base(start.info.get("base"), start.path)
        trained = base["trained"]
        if unknown_names := set(trained) - {name for name, _ in parts.module.named_parameters()}:
            raise CheckpointError(f"{start.path}: {min(unknown_names)!r}, which it says was trained, is no parameter")
        try:
            below = base_tensors(base, start.path, parts.module.state_dict())
            fill_base(parts.module, start.tensors(), below)
        except RuntimeError as error:
            raise CheckpointError(f"{start.path}: the weights below its changes do not fit: {error}") from None
    _restrict(parts.module, recipe, trained)
    return Origin(info)


def _match(parts: Parts, recipe: Recipe, source: Checkpoint) -> Match:
    """How tokens, classes and grids of a checkpoint correspond to those of a run."""
    assert recipe.start is not None
    skip, after = recipe.start.skip, parts.tokenizer
    if isinstance(after, TextTokenizer):
        before = source.text_tokenizer()
        return Match(RowSources.by_name(before.token_names(), after.token_names()), skip=skip)
    assert isinstance(parts.source, ImageSource)
    if isinstance(after, RowTokenizer):
        _require_same_rows(after, source)
        return Match(skip=skip)
    classes = RowSources.by_name(source.classes, parts.source.classes)
    if after is None:
        return Match(classes=classes, skip=skip)
    is_equal = source.recipe.tokenizer == recipe.tokenizer and source.image_shape == parts.source.image_shape
    if not is_equal or recipe.tokenizer_source is not None:
        other = load_tokenizer(source.recipe, source.image_shape, source.path).to(device_of(after))
    else:
        other = after
    ids, n_before = range(after.vocab_size), other.vocab_size
    rows = list(ids) if _is_same(other, after) else [NEW] * len(ids)
    return Match(RowSources(rows, n_before, [str(token) for token in ids]), classes, (other.grid, after.grid), skip)


def _require_same_rows(after: RowTokenizer, source: Checkpoint) -> None:
    """Check that tokens of several streams mean the same in a checkpoint and a run.

    Raises:
        UserError: they do not.
    """
    before = load_system(source).tokenizer
    if before is None or before.fingerprint() != after.fingerprint():
        raise UserError(
            f"start.checkpoint: the rows of {source.path} have other streams or tokenizers; start from a checkpoint "
            "with the same, or leave start out"
        )


def _is_same(one: ImageTokenizer, other: ImageTokenizer) -> bool:
    """Whether two tokenizers give a token the same meaning."""
    first, second = one.state_dict(), other.state_dict()
    return (
        type(one) is type(other)
        and one.vocab_size == other.vocab_size
        and first.keys() == second.keys()
        and all(torch.equal(value, second[name]) for name, value in first.items())
    )


def _keep(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the weights below low-rank changes into the run directory."""
    folder.mkdir(exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / MODEL)
    obey_umask(folder / MODEL)


def _restrict(network: nn.Module, recipe: Recipe, trained: list[str]) -> None:
    """Add low-rank changes, and freeze what is not trained.

    Args:
        network: filled.
        recipe: of the run.
        trained: parameters that are trained whole beside low-rank changes, as parts of them are new.

    Raises:
        UserError: a pattern matches nothing, or nothing is left to train.
    """
    if recipe.lora is not None:
        parameters = {name: network.get_parameter(name) for name in trained}
        torch.manual_seed(fold(recipe.seed, "lora"))
        add_lora(network, recipe.lora)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
    freeze(network, recipe.train.freeze)


def freeze(network: nn.Module, patterns: tuple[str, ...]) -> None:
    """Exclude tensors from training; a part all of whose tensors are excluded stays in evaluation mode.

    So the running statistics of a frozen part do not change, and it has no dropout.

    Raises:
        UserError: a pattern matches nothing, or nothing is left to train.
    """
    if not patterns:
        return
    names = list(network.state_dict())
    frozen = matching(names, patterns, "train.freeze")
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"train.freeze: {', '.join(patterns)} leaves nothing to train; name less")
    for name, part in network.named_modules():
        own = [key for key in names if key.startswith(f"{name}.")]
        if name and own and frozen.issuperset(own):
            part.train = MethodType(_in_evaluation, part)


def _in_evaluation(part: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - the signature of `train`
    """`train` of a frozen part."""
    return nn.Module.train(part, False)


def _shares(network: nn.Module) -> tuple[str, ...]:
    """How many parameters are trained, where it is not all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    n_all, n_trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    return () if n_all == n_trained else (f"trained: {n_trained:,} of {n_all:,} parameters",)

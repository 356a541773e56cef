"""Checks that need several parts of a recipe. What one part knows alone it checks itself: see `maskgen.core.check`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, cast

from maskgen.core.check import CheckContext, check_part
from maskgen.core.predictions import NO_SPREAD
from maskgen.core.registry import Registry
from maskgen.core.traits import NetworkTraits, declared_traits, traits_of
from maskgen.data.base import DATASETS
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES, Objective, traits_of_objective
from maskgen.processes import PROCESSES, Process
from maskgen.recipes.answers import check_answers
from maskgen.recipes.budget import plan
from maskgen.recipes.rows import check_row_guidance, check_rows, kinds_of
from maskgen.recipes.schema import Recipe
from maskgen.recipes.tree import RecipeError
from maskgen.samplers import MaskedSampler
from maskgen.samplers.masked.loop import NO_NOISE, NO_PROBABILITIES
from maskgen.samplers.masked.order import ORDERS
from maskgen.strategies import STRATEGIES
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.base import kind_of


def check_together(recipe: Recipe) -> None:
    """Refuse keys that another key makes useless or impossible.

    Raises:
        RecipeError: one of them, by key, with the reason and the way out.
    """
    _check_kinds(recipe)
    if recipe.captions is not None:
        _check_captions(recipe)
    check_rows(recipe)
    objective = recipe.build_objective(recipe.stand_in)  # the same for any number of tokens
    _check_training(recipe)
    _check_views(recipe, objective)
    if recipe.task == "generator":
        context = _context(recipe, objective)
        _run_checks(recipe, context)
        _check_objective(recipe, context)
        _check_strategy(recipe, context, objective)
        (check_row_guidance if recipe.streams else _check_guidance)(recipe, context.traits, objective)


def check_phases(recipe: Recipe) -> None:
    """Check that accumulation divides the batch, and that data and tokenizer can change resolution.

    Raises:
        RecipeError: one cannot.
    """
    for stretch in plan(recipe.train):
        if stretch.batch_size % stretch.accumulate:
            raise RecipeError(
                f"train.batch_size must be a multiple of train.accumulate, got {stretch.batch_size} and "
                f"{stretch.accumulate}"
            )
    resolution = _resolution(recipe)
    if resolution is None:
        return
    key, data = f"train.phases: resolution {resolution}", DATASETS.check(recipe.data, "data")[0]
    if recipe.task != "generator" or not _declared(DATASETS, data).has_size:
        raise RecipeError(f"{key} needs a generator of image data with a `size`, {data} has none; leave it out")
    if recipe.tokenizer_source is not None:
        raise RecipeError(f"{key}: tokenizer {recipe.tokenizer_source} is for images of one size; leave it out")


def traits_of_model(recipe: Recipe) -> NetworkTraits:
    """The traits of the recipe's network; the defaults for a recipe without one."""
    if recipe.model is None:
        return NetworkTraits()
    name, arguments = MODELS.check(recipe.model)
    return declared_traits(MODELS.get(name), arguments)


def _context(recipe: Recipe, objective: Objective) -> CheckContext:
    name, arguments = MODELS.check(recipe.model or "")
    defaults = {key: one.default for key, one in inspect.signature(MODELS.get(name)).parameters.items()}
    return CheckContext(
        kind=recipe.kind,
        has_discrete_tokens=recipe.has_discrete_tokens,
        traits=traits_of_model(recipe),
        model=defaults | arguments,
        given=OBJECTIVES.check(recipe.objective)[1],
        process=recipe.build_process(recipe.stand_in),
        objective=objective,
        keep_ratio=recipe.train.lowest_keep_ratio,
        resolution=_resolution(recipe),
        has_views=recipe.train.views is not None,
        has_previews=recipe.train.preview_every > 0,
        has_pixels=recipe.has_pixels,
        has_answers=recipe.has_answers,
    )


def _run_checks(recipe: Recipe, context: CheckContext) -> None:
    """The checks of the network, the process, the sampler and the objective themselves."""
    parts = (MODELS.get(_name(recipe)), context.process, context.objective)
    try:
        for part in parts:
            check_part(part, context)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if context.resolution is not None and context.traits.has_fixed_grid:
        key = f"train.phases: resolution {context.resolution}"
        raise RecipeError(f"{key}: model {_name(recipe)} is for one grid of tokens; leave it out")
    if not recipe.is_field:
        _check_decoding(recipe, context)
    elif recipe.guidance.ramp == "revealed":
        raise RecipeError("guidance.ramp: revealed counts masked tokens, a Gaussian process has none; choose another")


def _check_training(recipe: Recipe) -> None:
    """Training keys that the task or the tokens make impossible."""
    train, task = recipe.train, recipe.task
    if task == "generator":
        if train.flip and recipe.has_discrete_tokens:
            raise RecipeError("train.flip: true mirrors images, this generator trains on stored tokens; leave it out")
        return
    if task == "classifier" and train.gradient_checkpointing:
        raise RecipeError("train.gradient_checkpointing: would update running statistics twice a batch; leave it out")
    if train.lowest_keep_ratio < 1:
        raise RecipeError(f"train.keep_ratio: {train.lowest_keep_ratio} drops tokens, a {task} has none; use 1")
    if train.document_attention:
        raise RecipeError("train.document_attention: only a text has documents; leave it out")


def _check_kinds(recipe: Recipe) -> None:
    """Whether data, tokenizer, model and objective are for the same kind of data and tokens."""
    is_generator, kind = recipe.task == "generator", recipe.kind
    of_kind = [name for name in TOKENIZERS.names() if (kind_of(name) == "text") == (kind == "text")]
    if kind == "text" and not is_generator:
        raise RecipeError(f"text needs a model and a tokenizer: give tokenizer: {_or(of_kind)}")
    if recipe.tokenizer is not None and recipe.tokenizer_source is None:
        name = TOKENIZERS.check(recipe.tokenizer)[0]
        if name not in of_kind:
            raise RecipeError(f"tokenizer: {name} is not for {_plural(kind)}; choose from {', '.join(of_kind)}")
    elif kind == "text":
        raise RecipeError(
            "tokenizer: a text tokenizer is made from the data or read from a file, not `from` a checkpoint"
        )
    if recipe.model is None:
        return
    model, objective = _name(recipe), OBJECTIVES.check(recipe.objective)[0]
    entry = MODELS.get(model)
    traits = traits_of(entry)
    if bool(traits.tokens) != is_generator:
        raise RecipeError(f"model: {model} {'takes no' if is_generator else 'needs a'} tokenizer; change either")
    if is_generator:
        _check_tokens(recipe, model, traits)
    for one in kinds_of(recipe):
        if one not in traits.streams:
            able = [name for name in MODELS.names() if one in _traits(name).streams and _traits(name).tokens]
            raise RecipeError(f"model: {model} is not for {_plural(one)}; choose from {', '.join(able)}")
    if traits.objectives and objective not in traits.objectives:
        raise RecipeError(f"objective: {model} is trained by {_or(traits.objectives)}, not by {objective}")


def _check_tokens(recipe: Recipe, model: str, traits: NetworkTraits) -> None:
    """Whether process and network are for the tokens that the tokenizer makes."""
    if traits.is_field != recipe.is_field:
        able = [name for name in PROCESSES.names(Process) if _declared(PROCESSES, name).is_field == traits.is_field]
        process = PROCESSES.check(recipe.process)[0]
        raise RecipeError(f"process: model {model} needs {_or(able)}, not {process}; change either")
    made, other = ("discrete", "continuous") if recipe.has_discrete_tokens else ("continuous", "discrete")
    if made not in traits.tokens:
        raise RecipeError(f"tokenizer: its tokens are {made}, model {model} needs {other} ones; change either")


def _check_decoding(recipe: Recipe, context: CheckContext) -> None:
    """Whether the sampler of masked tokens works with tokens of this kind and with the network's predictions."""
    sampler, is_discrete = cast(MaskedSampler, recipe.build_sampler()), context.has_discrete_tokens
    if not is_discrete and sampler.needs_probabilities:
        raise RecipeError(f"sampler: {NO_PROBABILITIES}")
    if context.traits.predicts_points:
        if sampler.temperature != 1:
            raise RecipeError(f"sampler.{NO_SPREAD}")
    elif not is_discrete and not sampler.has_fitting_temperature:
        raise RecipeError(f"sampler.{NO_NOISE}")
    if is_discrete and isinstance(recipe.sampler, dict) and "head" in recipe.sampler:
        raise RecipeError("sampler.head: it draws continuous tokens, these are discrete numbers; leave it out")
    if recipe.guidance.ramp == "revealed" and sampler.needs_probabilities:
        able = [name for name in ORDERS.names() if not _declared(ORDERS, name).needs_prediction]
        raise RecipeError(
            "guidance.ramp: revealed needs the tokens that a step unmasks before the network is evaluated, so an order "
            f"{_or(able)} and top_p 1; change either"
        )


def _check_captions(recipe: Recipe) -> None:
    """Whether there are captions to embed, and a network that takes them."""
    data = DATASETS.check(recipe.data, "data")[0]
    if not _declared(DATASETS, data).has_captions:
        able = [name for name in DATASETS.names() if _declared(DATASETS, name).has_captions]
        raise RecipeError(f"captions: {data} has none; take data {_or(able)}, or leave the key out")
    model = None if recipe.model is None else _name(recipe)
    if model is None or not _traits(model).takes_captions:
        able = [name for name in MODELS.names() if _traits(name).takes_captions]
        raise RecipeError(
            f"captions: {model or 'a tokenizer'} takes none; take model {_or(able)}, or leave the key out"
        )


def _check_views(recipe: Recipe, objective: Objective) -> None:
    """Whether a contrastive term has two views of each image and a network that maps them to vectors, or none of it."""
    given = {
        "objective.contrastive": objective.contrastive is not None,
        "model.projection above 0": traits_of_model(recipe).has_projection,
        "train.views": recipe.train.views is not None,
    }
    if any(given.values()) and not all(given.values()):
        missing = " and ".join(name for name, is_given in given.items() if not is_given)
        there = " and ".join(name for name, is_given in given.items() if is_given)
        raise RecipeError(f"{there}: needs {missing}; give all three, or none")


def _check_objective(recipe: Recipe, context: CheckContext) -> None:
    """Keys of training and network that only some objectives and networks take account of."""
    model, name, kept = _name(recipe), OBJECTIVES.check(recipe.objective)[0], context.keep_ratio
    objective, traits = cast(Objective, context.objective), context.traits
    if kept < 1 and not objective.traits.drops_tokens:
        raise RecipeError(f"train.keep_ratio: objective {name} drops no tokens; use 1, got {kept}")
    if kept < 1 and traits.subset_is_visible:
        raise RecipeError(f"train.keep_ratio: {model} computes visible tokens as it is; use 1, got {kept}")
    if kept < 1 and not traits.drops_tokens:
        raise RecipeError(f"train.keep_ratio: model {model} drops no tokens; use 1, got {kept}")
    if recipe.has_answers:
        check_answers(recipe, objective, traits)
    if recipe.train.document_attention:
        if recipe.kind != "text" or not traits.takes_documents or not objective.traits.takes_documents:
            models = [one for one in MODELS.names() if _traits(one).takes_documents]
            objectives = [one for one in OBJECTIVES.names() if traits_of_objective(one).takes_documents]
            raise RecipeError(
                f"train.document_attention: only text with model {_or(models)} and objective {_or(objectives)} has it; "
                "leave it out"
            )
        if kept < 1:
            raise RecipeError(
                f"train.keep_ratio: dropped tokens do not go with train.document_attention; use 1, got {kept}"
            )
    if traits.has_exponents != objective.traits.learns_exponents:
        able = [one for one in OBJECTIVES.names() if traits_of_objective(one).learns_exponents]
        raise RecipeError(
            f"model.has_exponents: true goes with objective {_or(able)}, which learns them; change either"
        )


def _check_strategy(recipe: Recipe, context: CheckContext, objective: Objective) -> None:
    """Whether the objective draws masks by the process's strategy, and the network offers what it requires."""
    process: Any = context.process
    strategy, of_process = objective.strategy, process.strategy
    if strategy is None and of_process is not None and not of_process.is_independent:
        name = OBJECTIVES.check(recipe.objective)[0]
        raise RecipeError(f"process.strategy: objective {name} draws masks of its own; leave it out")
    if strategy is None or strategy.requires is None or context.traits.offers(strategy.requires):
        return
    key = "objective.strategy" if of_process is None else "process.strategy"
    name = next(name for name in STRATEGIES.names() if STRATEGIES.get(name) is type(strategy))
    model, switch = _name(recipe), f"has_{strategy.requires}"
    lacks = f"{name} requires {strategy.requires} of the network"
    if switch in MODELS.arguments(model):
        raise RecipeError(f"{key}: {lacks}; set model.{switch}: true")
    required = {name: _declared(STRATEGIES, name).requires for name in STRATEGIES.names()}
    able = [name for name, method in required.items() if method is None or context.traits.offers(method)]
    raise RecipeError(f"{key}: {lacks}, which model {model} does not compute; choose from {', '.join(able)}")


def _check_guidance(recipe: Recipe, traits: NetworkTraits, objective: Objective) -> None:
    """Whether there is a condition for guidance, and a null condition that training has seen."""
    scale, dropout = recipe.guidance.scale, objective.label_dropout
    if not traits.conditions:
        if scale != 1:
            has_key = "condition" in MODELS.arguments(_name(recipe))
            what = "model.condition none" if has_key else f"model {_name(recipe)}"
            raise RecipeError(f"guidance.scale: {what} has no classes to be guided by; use 1, got {scale}")
        return
    if traits.has_null_label:
        if scale != 1 and not dropout:
            raise RecipeError(
                f"guidance.scale: {scale} needs a null label that was trained; set objective.label_dropout above 0, or "
                "use 1"
            )
    elif dropout or scale != 1:
        raise RecipeError(
            "model.has_null_label: false leaves nothing to drop a label for: objective.label_dropout must be 0 and "
            f"guidance.scale 1, got {dropout} and {scale}"
        )


def _resolution(recipe: Recipe) -> int | None:
    """The first image size that a phase gives."""
    return next((phase.resolution for phase in recipe.train.phases if phase.resolution is not None), None)


def _name(recipe: Recipe) -> str:
    return MODELS.check(recipe.model or "")[0]


def _traits(model: str) -> NetworkTraits:
    """Traits of a registered network, whatever its keys."""
    return traits_of(MODELS.get(model))


def _declared(registry: Registry[Any], name: str) -> Any:
    """A registered class, for what it declares."""
    return registry.get(name)


def _or(names: Iterable[str]) -> str:
    *before, last = names
    return f"{', '.join(before)} or {last}" if before else last


def _plural(kind: str) -> str:
    return kind if kind == "text" else f"{kind}s"

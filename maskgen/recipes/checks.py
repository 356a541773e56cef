"""What no part of a recipe can know alone: whether they are made for each other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from maskgen.core.predictions import NO_SPREAD
from maskgen.core.traits import NetworkTraits, declared_traits
from maskgen.data.base import DATASETS
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES, MaskedRegression, Objective, traits_of_objective
from maskgen.objectives.weights import Edm
from maskgen.processes import PROCESSES, Gaussian
from maskgen.recipes.budget import plan
from maskgen.recipes.schema import Recipe
from maskgen.recipes.tree import RecipeError
from maskgen.samplers import MaskedSampler
from maskgen.samplers.masked.loop import NO_NOISE, NO_PROBABILITIES
from maskgen.strategies import STRATEGIES
from maskgen.tokenizers import TOKENIZERS, ImageTokenizer


def check_together(recipe: Recipe) -> None:
    """What no part can know alone: a key that another makes useless or impossible."""
    is_generator = recipe.task == "generator"
    _check_kinds(recipe)
    if recipe.captions is not None:
        _check_captions(recipe)
    # Its values do not depend on how many tokens there are.
    objective = recipe.build_objective(0 if recipe.is_continuous else 2)
    if is_generator and recipe.train.flip and not recipe.is_continuous:
        raise RecipeError("train.flip: true mirrors images, this generator trains on stored tokens; leave it out")
    if recipe.task == "classifier" and recipe.train.gradient_checkpointing:
        raise RecipeError("train.gradient_checkpointing: would update running statistics twice a batch; leave it out")
    kept = recipe.train.lowest_keep_ratio
    if not is_generator and kept < 1:
        raise RecipeError(f"train.keep_ratio: {kept} drops tokens, a {recipe.task} has none; use 1")
    _check_views(recipe, objective)
    if is_generator:
        _check_objective(recipe)
        _check_strategy(recipe, objective)
    elif recipe.train.document_attention:
        raise RecipeError("train.document_attention: only a text has documents; leave it out")
    if recipe.is_text:
        if recipe.guidance.scale != 1:
            raise RecipeError(
                f"guidance.scale: text has no classes to be guided by; use 1, got {recipe.guidance.scale}"
            )
        return
    if recipe.guidance.scale != 1 and recipe.model is not None and _condition(recipe) == "none":
        model = MODELS.check(recipe.model)[0]
        has_key = "condition" in inspect.signature(MODELS.get(model)).parameters
        what = "model.condition none" if has_key else f"model {model}"
        raise RecipeError(f"guidance.scale: {what} has no classes to be guided by; use 1, got {recipe.guidance.scale}")
    has_null = _traits(recipe).has_null_label
    dropout, scale = objective.label_dropout, recipe.guidance.scale
    if scale != 1 and not dropout and has_null and is_generator:
        raise RecipeError(
            f"guidance.scale: {scale} needs a null that was trained; set objective.label_dropout above 0, or use 1"
        )
    if not has_null and (dropout or scale != 1):
        raise RecipeError(
            "model.has_null_label: false leaves nothing to drop a label for: objective.label_dropout must be 0 and "
            f"guidance.scale 1, got {dropout} and {scale}"
        )


def _traits(recipe: Recipe) -> NetworkTraits:
    """What the recipe's network can do; the defaults for a recipe without one."""
    if recipe.model is None:
        return NetworkTraits()
    model, arguments = MODELS.check(recipe.model)
    return declared_traits(MODELS.get(model), arguments)


def _condition(recipe: Recipe) -> Any:
    """The value of the model's key `condition`, given or default; `none` for a network that takes no classes."""
    model, arguments = MODELS.check(recipe.model or "")
    parameter = inspect.signature(MODELS.get(model)).parameters.get("condition")
    if parameter is None:
        traits = _traits(recipe)
        return "none" if traits.tokens and not traits.takes_classes else None
    return arguments.get("condition", parameter.default)


def _check_views(recipe: Recipe, objective: Any) -> None:
    """A contrastive term needs two views of each image, and a network that makes vectors of them."""
    makes = MODELS.check(recipe.model)[1].get("projection", 0) if recipe.model is not None else 0
    given = {
        "objective.contrastive": getattr(objective, "contrastive", None) is not None,
        "model.projection (of mage) above 0": bool(makes),
        "train.views": recipe.train.views is not None,
    }
    if any(given.values()) and not all(given.values()):
        missing = " and ".join(name for name, is_given in given.items() if not is_given)
        there = " and ".join(name for name, is_given in given.items() if is_given)
        raise RecipeError(f"{there}: needs {missing}; give all three, or none")
    if all(given.values()) and _condition(recipe) == "token":
        raise RecipeError("model.condition: token tells both views their class, by which they are alike; use none")


def _check_kinds(recipe: Recipe) -> None:
    """Whether data, tokenizer, model and objective are made for each other."""
    is_generator = recipe.task == "generator"
    if recipe.is_text and not is_generator:
        raise RecipeError("text needs a model and a tokenizer: tokenizer: characters, say")
    if recipe.tokenizer is not None and recipe.tokenizer_source is None:
        name = TOKENIZERS.check(recipe.tokenizer)[0]
        entry = TOKENIZERS.get(name)
        if recipe.is_text == (inspect.isclass(entry) and issubclass(entry, ImageTokenizer)):
            raise RecipeError(f"tokenizer: {name} is not for {'text' if recipe.is_text else 'images'}; choose another")
    elif recipe.is_text:
        raise RecipeError(
            "tokenizer: a text tokenizer is made from the data or read from a file, not `from` a checkpoint"
        )
    if recipe.model is None:
        return
    model, objective = MODELS.check(recipe.model)[0], OBJECTIVES.check(recipe.objective)[0]
    wanted = inspect.signature(MODELS.get(model)).parameters
    if bool({"vocab_size", "token_width"} & set(wanted)) != is_generator:
        raise RecipeError(f"model: {model} {'takes no' if is_generator else 'needs a'} tokenizer; change either")
    trained_by: tuple[str, ...] = declared_traits(MODELS.get(model)).objectives
    if is_generator:
        _check_tokens(recipe, model, trained_by)
    if recipe.is_text and "grid" in wanted:
        raise RecipeError(f"model: {model} lives on a grid of image tokens; for text choose mdlm, bd3 or ar")
    if objective not in trained_by:
        raise RecipeError(f"objective: {model} is trained by {' or '.join(trained_by)}, not by {objective}")


def _check_tokens(recipe: Recipe, model: str, trained_by: tuple[str, ...]) -> None:
    """Whether process and network are for tokens of one kind, and the tokenizer makes them."""
    is_gaussian = any(traits_of_objective(name).process == "gaussian" for name in trained_by)
    if is_gaussian != recipe.is_gaussian:
        raise RecipeError(
            f"process: model {model} needs {'gaussian' if is_gaussian else 'absorbing'}, not "
            f"{PROCESSES.check(recipe.process)[0]}; change either"
        )
    wanted = inspect.signature(MODELS.get(model)).parameters
    if ("token_width" if recipe.is_continuous else "vocab_size") not in wanted:
        kinds = ("continuous", "numbers of a vocabulary")
        made, needed = kinds if recipe.is_continuous else kinds[::-1]
        raise RecipeError(f"tokenizer: its tokens are {made}, model {model} needs {needed}; change either")
    if "head" in wanted:
        head = MODELS.check(recipe.model or "")[1].get("head", wanted["head"].default)
        if head.is_continuous != recipe.is_continuous:
            made, fits = ("vectors", "diffusion") if recipe.is_continuous else ("numbers", "categorical")
            raise RecipeError(f"model.head: it is not for tokens that are {made}; use {fits}")
    if not recipe.is_gaussian:
        _check_decoding(recipe)
    elif recipe.guidance.ramp == "revealed":
        raise RecipeError("guidance.ramp: revealed is of tokens that are masked, not of a field; choose another")


def _check_decoding(recipe: Recipe) -> None:
    """Whether the sampler of masked tokens is for tokens of this kind, and the head of the network too."""
    sampler = cast(MaskedSampler, recipe.build_sampler())
    if recipe.is_continuous and sampler.needs_probabilities:
        raise RecipeError(f"sampler: {NO_PROBABILITIES}")
    if _traits(recipe).predicts_points:
        if sampler.temperature != 1:
            raise RecipeError(f"sampler.{NO_SPREAD}")
    elif recipe.is_continuous and not sampler.has_fitting_temperature:
        raise RecipeError(f"sampler.{NO_NOISE}")
    if not recipe.is_continuous and isinstance(recipe.sampler, dict) and "head" in recipe.sampler:
        raise RecipeError("sampler.head: it draws tokens that are vectors, these are numbers; leave it out")
    if recipe.guidance.ramp == "revealed" and sampler.needs_probabilities:
        raise RecipeError(
            "guidance.ramp: revealed needs to know what a step reveals before the network is asked, so an order random "
            "or halton and top_p 1; change either"
        )


def _check_captions(recipe: Recipe) -> None:
    """Whether there are captions to be embedded, and a network that takes them."""
    data = DATASETS.check(recipe.data, "data")[0]
    if not getattr(DATASETS.get(data), "has_captions", False):
        raise RecipeError(f"captions: {data} has none; take data captioned_folder, or leave the key out")
    model = "" if recipe.model is None else MODELS.check(recipe.model)[0]
    if not model or "caption_width" not in inspect.signature(MODELS.get(model)).parameters:
        raise RecipeError(f"captions: {model or 'a tokenizer'} takes none; take model microdit, or leave the key out")


def _check_objective(recipe: Recipe) -> None:
    """Keys that only some objectives of a generator heed."""
    model, arguments = MODELS.check(recipe.model or "")
    objective, train = OBJECTIVES.check(recipe.objective)[0], recipe.train
    kept = train.lowest_keep_ratio
    if kept < 1 and objective not in ("masked_tokens", "denoising"):
        raise RecipeError(f"train.keep_ratio: objective {objective} drops no tokens; use 1, got {kept}")
    if kept < 1 and _traits(recipe).subset_is_visible:
        raise RecipeError(f"train.keep_ratio: {model} computes visible tokens as it is; use 1, got {kept}")
    if objective == "denoising":
        _check_masking(recipe, kept)
    if objective == "masked_regression":
        _check_regression(recipe)
    _check_sizes(recipe)
    if train.document_attention and (not recipe.is_text or model != "mdlm" or objective != "masked_tokens"):
        raise RecipeError(
            "train.document_attention: only a text model of type mdlm with objective masked_tokens can; leave it out"
        )
    if train.document_attention and kept < 1:
        raise RecipeError(
            f"train.keep_ratio: dropped tokens do not go with train.document_attention; use 1, got {kept}"
        )
    if arguments.get("has_exponents", False) != (objective == "state_dependent"):
        raise RecipeError(
            "model.has_exponents: true goes with objective state_dependent, which learns them; change either"
        )


def _check_strategy(recipe: Recipe, objective: Objective) -> None:
    """Whether the objective draws masks by the strategy there is, and the network can say what it asks."""
    strategy = objective.strategy
    of_process = getattr(getattr(objective, "process", None), "strategy", None)
    if strategy is None and of_process is not None and not of_process.is_independent:
        name = OBJECTIVES.check(recipe.objective)[0]
        raise RecipeError(f"process.strategy: objective {name} draws masks of its own; leave it out")
    if strategy is None or strategy.requires is None:
        return
    model, arguments = MODELS.check(recipe.model or "")
    network = MODELS.get(model)
    able = [
        name for name in STRATEGIES.names() if hasattr(network, cast(Any, STRATEGIES.get(name)).requires or "forward")
    ]
    key = "objective.strategy" if of_process is None else "process.strategy"
    name = next(name for name in STRATEGIES.names() if STRATEGIES.get(name) is type(strategy))
    if not hasattr(network, strategy.requires):
        lacks = f"requires {strategy.requires} of the network, which model {model} does not compute"
        raise RecipeError(f"{key}: {name} {lacks}; choose from {', '.join(able)}")
    if strategy.requires == "difficulty" and not arguments.get("has_difficulty"):
        raise RecipeError(f"{key}: {name} needs a network that predicts its losses; set model.has_difficulty: true")


def _check_regression(recipe: Recipe) -> None:
    """Whether there is something to decode a part of, and no preview of what is no picture."""
    arguments, objective = MODELS.check(recipe.model or "")[1], cast(MaskedRegression, recipe.build_objective(0))
    if objective.decode_ratio < 1 and not getattr(arguments.get("decoder"), "is_independent", False):
        raise RecipeError(
            f"objective.decode_ratio: {objective.decode_ratio} of the masked patches needs a decoder in which they do "
            "not look at each other; take model.decoder cross, or 1"
        )
    if not objective.makes_tokens and recipe.train.preview_every:
        raise RecipeError("train.preview_every: normalised patches are no image; use 0, or objective.normalise false")


def _check_sizes(recipe: Recipe) -> None:
    """Whether the network's sizes fit each other, and a decoder of masked patches the encoder."""
    model, arguments = MODELS.check(recipe.model or "")
    network = cast(Any, MODELS.get(model))
    given = {key: one.default for key, one in inspect.signature(network).parameters.items()} | arguments
    if hasattr(network, "require_sizes"):
        _ask("model", network.require_sizes, given)
    if "decoder" in given:
        _ask("model.decoder", given["decoder"].require_fit, given["depth"], given.get("encoder_sees") == "all")


def _check_masking(recipe: Recipe, kept: float) -> None:
    """Whether the network's masking fits what the trainer and the process do."""
    model, arguments = MODELS.check(recipe.model or "")
    masking = arguments.get("masking", inspect.signature(MODELS.get(model)).parameters["masking"].default)
    if kept < 1 and not masking.drops:
        raise RecipeError(f"train.keep_ratio: model.masking none drops no tokens; choose another or use 1, got {kept}")
    process, objective = cast(Gaussian, recipe.build_process(0)), recipe.build_objective(0)
    if masking.reconstructs and process.target == "eps" and getattr(objective, "reconstruction_weight", 0):
        raise RecipeError(
            "process.target: eps says nothing of x_0 where all is noise, which maskdit's reconstruction needs; use "
            "edm, v, flow or x_0, or objective.reconstruction_weight 0"
        )
    if arguments.get("has_variance"):
        _ask("model.has_variance", process.require_reverse_steps)
    given = OBJECTIVES.check(recipe.objective)[1]
    if given.get("keep_spread") and kept == 1:
        raise RecipeError(
            f"objective.keep_spread: {given['keep_spread']} of train.keep_ratio 1; drop tokens, or leave it out"
        )
    if "reconstruction_weight" in given and not masking.reconstructs:
        raise RecipeError("objective.reconstruction_weight: only model.masking maskdit reconstructs; leave it out")
    if isinstance(given.get("weight"), Edm) and given["weight"].sigma_data != process.sigma_data:
        raise RecipeError(
            f"objective.weight: edm has sigma_data {given['weight'].sigma_data}, the process {process.sigma_data}; "
            "give both the same"
        )


def _ask(key: str, check: Callable[..., None], *arguments: Any) -> None:
    """What a part itself refuses, said of a key."""
    try:
        check(*arguments)
    except ValueError as error:
        raise RecipeError(f"{key}: {error}") from None


def check_phases(recipe: Recipe) -> None:
    """Batches that micro-batches fill, and resolutions that data, tokenizer and network can change to."""
    for stretch in plan(recipe.train):
        if stretch.batch_size % stretch.accumulate:
            raise RecipeError(
                f"train.batch_size must be a multiple of train.accumulate, got {stretch.batch_size} and "
                f"{stretch.accumulate}"
            )
    resolutions = [phase.resolution for phase in recipe.train.phases if phase.resolution is not None]
    if not resolutions:
        return
    key, data = f"train.phases: resolution {resolutions[0]}", DATASETS.check(recipe.data, "data")[0]
    if recipe.task != "generator" or "size" not in DATASETS.arguments(data):
        raise RecipeError(f"{key} needs a generator of image data with a `size`, {data} has none; leave it out")
    if recipe.tokenizer_source is not None:
        raise RecipeError(f"{key}: tokenizer {recipe.tokenizer_source} is for images of one size; leave it out")
    model, arguments = MODELS.check(recipe.model or "")
    if getattr(arguments.get("masking"), "fixed_grid", False) or arguments.get("positions") == "learned":
        raise RecipeError(
            f"{key}: masking mdt and learned positions are for one grid of tokens; use model.positions rotary "
            "(maskgit) or sincos (dit), or leave it out"
        )
    if not hasattr(MODELS.get(model), "set_grid"):
        raise RecipeError(f"{key}: model {model} is for one grid of tokens; leave it out")

"""Checks of recipes whose rows are a prompt and an answer."""

from __future__ import annotations

from maskgen.core.traits import NetworkTraits
from maskgen.data.base import DATASETS
from maskgen.objectives import OBJECTIVES, Objective, traits_of_objective
from maskgen.recipes.schema import Recipe
from maskgen.recipes.tree import RecipeError


def check_answers(recipe: Recipe, objective: Objective, traits: NetworkTraits) -> None:
    """Check that prompts are left unmasked, and that rows have one length if the network needs it.

    Raises:
        RecipeError: they are not.
    """
    data, arguments = DATASETS.check(recipe.data, "data")
    if not objective.traits.takes_answers:
        able = " or ".join(one for one in OBJECTIVES.names() if traits_of_objective(one).takes_answers)
        name = OBJECTIVES.check(recipe.objective)[0]
        raise RecipeError(f"objective: {name} would learn the prompts of data {data} too; take {able}")
    if recipe.train.document_attention:
        raise RecipeError(f"train.document_attention: a row of data {data} is one document; leave it out")
    if traits.has_fixed_grid and arguments.get("padding") != "row":
        raise RecipeError("data.padding: this network takes rows of one length; set it to row")

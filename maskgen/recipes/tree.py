"""The text of a recipe: found by name or file, its base merged in, keys overridden. Says nothing of what keys mean."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from maskgen.core.errors import UserError, closest
from maskgen.core.files import local_path, read_regular
from maskgen.core.yaml_reader import MOST_CHARACTERS, YamlError, read_yaml
from maskgen.recipes.shipped import recipe_names, recipe_text


class RecipeError(UserError):
    """A recipe that cannot be read or built."""


def read_tree(source: str, above: tuple[str, ...] = ()) -> dict[str, object]:
    """The tree of a named recipe or a file, its `base:` merged in; `above` are those it is a base of."""
    if source in above:
        raise RecipeError(f"base: {' -> '.join([*above, source])} goes round in a circle")
    tree = _parse_yaml(*_find(source))
    base = tree.pop("base", None)
    if base is None:
        return tree
    beside = local_path(source).parent / str(base)  # a file's base may be a file beside it
    return _merge(read_tree(str(beside if beside.is_file() else base), (*above, source)), tree)


def _find(source: str) -> tuple[str, str]:
    """(where, text) of a recipe."""
    path = local_path(source)
    if source.endswith((".yaml", ".yml")) or path.is_file():
        try:
            return source, read_regular(path, 4 * MOST_CHARACTERS).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RecipeError(f"cannot read recipe {source}: {reason}") from None
    names = recipe_names()
    found = [name for name in names if name == source] or [name for name in names if name.split("/")[-1] == source]
    if len(found) == 1:
        return found[0], recipe_text(found[0])
    if found:
        raise RecipeError(f"recipe {source!r} is ambiguous: {', '.join(found)}")
    hint = closest(source, [*names, *(name.split("/")[-1] for name in names)])
    raise RecipeError(f"no recipe or YAML file {source!r}; {hint}`maskgen recipes` lists them")


def _parse_yaml(where: str, text: str) -> dict[str, object]:
    try:
        tree = read_yaml(text)
    except YamlError as error:
        raise RecipeError(f"{where} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys")
    return tree


def _merge(base: dict[str, object], change: Mapping[str, object]) -> dict[str, object]:
    """`change` over `base`, recursively; a part of another type replaces the whole part."""
    merged = copy.deepcopy(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping) and _is_same_part(old, value):
            merged[key] = _merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _is_same_part(old: Mapping[str, object], new: Mapping[str, object]) -> bool:
    is_trained = "from" in old or "from" in new
    return not is_trained and new.get("type", old.get("type")) == old.get("type")


def put(tree: dict[str, object], key: str, value: object) -> None:
    """Set the value of a dotted key `a.b.c`; a part that is named only becomes a mapping.

    Raises:
        RecipeError: a key below a value that has no keys.
    """
    *parents, last = key.replace("-", "_").split(".")
    place = tree
    for parent in parents:
        inner = place.get(parent)
        if inner is None or isinstance(inner, str):
            inner = place[parent] = {} if inner is None else {"type": inner}
        if not isinstance(inner, dict):
            raise RecipeError(f"{key}: {parent} is a value ({inner!r}), it has no keys")
        place = inner
    place[last] = value

"""Overrides `a.b.c=value` of the command line: a key of text takes its value literally, any other reads it as YAML.

So `data.path=2024`, `data.path=no` and `data.path='a #b'` are a folder's name and neither a number, a truth value nor a
comment. `data.path=my.txt` alone takes the place of a text that has no path, as the King James Bible.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from maskgen.core.registry import Registry, SpecError
from maskgen.core.yaml_reader import YamlError, read_yaml
from maskgen.data.base import DATASETS
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES
from maskgen.processes import PROCESSES
from maskgen.recipes.schema import Recipe
from maskgen.recipes.tree import RecipeError, put
from maskgen.samplers import FIELD_SAMPLERS, SAMPLERS
from maskgen.tokenizers import TOKENIZERS

PARTS: Mapping[str, tuple[Registry[Any], ...]] = {
    "data": (DATASETS,), "tokenizer": (TOKENIZERS,), "process": (PROCESSES,), "model": (MODELS,),
    "objective": (OBJECTIVES,), "sampler": (SAMPLERS, FIELD_SAMPLERS),
}  # fmt: skip
"""Registries of the parts that a recipe names."""


def apply_overrides(tree: dict[str, object], changes: Sequence[str]) -> None:
    """Apply `key=value` texts to the tree of a recipe, in order.

    Raises:
        RecipeError: not `key=value`, a value that is not YAML, or a key below a value.
    """
    pairs = [_split(change) for change in changes]
    take_own_text(tree, {key for key, _ in pairs})
    after = copy.deepcopy(tree)  # as far as it can be known what each part is
    for key, text in pairs:
        put(after, key, _plain(text))
    for key, text in pairs:
        put(tree, key, _value(after, key, text))


def take_own_text(tree: dict[str, object], keys: Collection[str]) -> None:
    """Make room for the `data.path` among keys that change: it takes the place of a text without one, as the Bible."""
    data = tree.get("data")
    name = data.get("type") if isinstance(data, Mapping) else data
    if "data.path" not in keys or {"data", "data.type"} & set(keys) or name not in DATASETS.names():
        return
    source: Any = DATASETS.get(str(name))
    if source.kind == "text" and "path" not in inspect.signature(source).parameters:
        put(tree, "data.type", "text_file")


def _split(change: str) -> tuple[str, str]:
    key, separator, text = change.partition("=")
    if not separator or not key:
        raise RecipeError(f"an override is key=value, got {change!r}")
    return key.replace("-", "_"), text


def _plain(text: str) -> object:
    try:
        return read_yaml(text)
    except YamlError:
        return text


def _value(tree: Mapping[str, object], key: str, text: str) -> object:
    """The value of a key, by the type that it has in this tree."""
    hints = _alternatives(_hint(tree, key.split(".")))
    if hints and all(_is_text(hint) or hint is type(None) for hint in hints):
        is_none = type(None) in hints and text in ("null", "~", "")
        return None if is_none else _unquoted(text)
    try:
        return read_yaml(text)
    except YamlError as error:
        raise RecipeError(f"{key}: the value {text!r} is not YAML: {error}") from None


def _unquoted(text: str) -> str:
    """The text; one in quotes, as YAML writes text, without them."""
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:
        value = _plain(text)
        return value if isinstance(value, str) else text
    return text


def _hint(tree: Mapping[str, object], keys: Sequence[str]) -> object:
    """The type of the value at a key; None if it is unknown."""
    first, rest = keys[0], keys[1:]
    field = Recipe.model_fields.get(first)
    if field is None or not rest:
        return None if field is None else field.annotation
    if first in PARTS:
        return _hint_of_part(PARTS[first], tree.get(first), rest)
    return _hint_below(field.annotation, tree.get(first), rest)


def _hint_of_part(registries: Sequence[Registry[Any]], spec: object, keys: Sequence[str]) -> object:
    name = spec.get("type") if isinstance(spec, Mapping) else spec
    for registry in registries:
        if isinstance(name, str) and name in registry.names():
            try:
                hint = registry.hints(name).get(keys[0])
            except SpecError:
                return None
            inner = spec.get(keys[0]) if isinstance(spec, Mapping) else None
            return hint if len(keys) == 1 else _hint_below(hint, inner, keys[1:])
    return None


def _hint_below(hint: object, value: object, keys: Sequence[str]) -> object:
    """The type at keys inside a value of a type: settings with keys of their own, or a nested part."""
    for option in _alternatives(hint):
        if isinstance(option, type) and issubclass(option, BaseModel) and keys[0] in option.model_fields:
            inner = option.model_fields[keys[0]].annotation
            below = value.get(keys[0]) if isinstance(value, Mapping) else None
            return inner if len(keys) == 1 else _hint_below(inner, below, keys[1:])
        registry = Registry.of(option)
        if registry is not None:
            return _hint_of_part((registry,), value, keys)
    return None


def _alternatives(hint: object) -> list[object]:
    """The types of a union, without annotations."""
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [option for part in get_args(hint) for option in _alternatives(part)]
    return [] if hint is None else [hint]


def _is_text(hint: object) -> bool:
    if get_origin(hint) is Literal:
        return all(isinstance(choice, str) for choice in get_args(hint))
    return hint in (str, Path)

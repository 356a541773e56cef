"""Overrides of the command line: text where a key takes text, YAML elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from maskgen.recipes.load import load_recipe
from maskgen.recipes.overrides import apply_overrides
from maskgen.recipes.tree import RecipeError, read_tree

ODD = (
    "a9 #b",
    "2024",
    "no",
    "null",
    "x: y",
    "[br]",
    "~",
    "1e3",
    "2024-01-01",
    "'",
    '"',
    "- a",
    "{a}",
    "&a",
    "*a",
    "!x",
    "",
)


def applied(*changes: str) -> dict[str, Any]:
    tree = read_tree("fashion-maskgit")
    apply_overrides(tree, changes)
    return tree


def test_a_key_of_text_takes_its_value_literally() -> None:
    for text in ODD:
        assert applied("data.type=folder", f"data.path={text}")["data"]["path"] == text
        assert applied(f"data.path={text}", "data.type=folder")["data"]["path"] == text  # in any order
        assert applied("data.type=hub", f"data.name={text}")["data"]["name"] == text
        assert applied(f"summary={text}")["summary"] == text
        assert applied("captions.encoder=x", f"captions.subfolder={text}")["captions"]["subfolder"] == text


def test_a_key_of_text_that_may_be_missing_takes_null_too() -> None:
    for text in ODD:
        expected = None if text in ("null", "~", "") else text
        assert applied("data.type=hub", f"data.label-column={text}")["data"]["label_column"] == expected
        assert applied("data.type=fashion_mnist", f"data.path={text}")["data"]["path"] == expected


def test_text_in_quotes_is_what_the_quotes_hold() -> None:
    for text in ('"a b"', "'a b'"):
        assert applied("data.type=folder", f"data.path={text}")["data"]["path"] == "a b"


def test_other_keys_are_yaml_as_before() -> None:
    tree = applied(
        "train.steps=7", "train.flip=no", "data={type: folder, path: x}", "model.depth=2", "tokenizer=patches"
    )
    assert (tree["train"]["steps"], tree["train"]["flip"], tree["model"]["depth"]) == (7, False, 2)
    assert tree["data"] == {"type": "folder", "path": "x"}
    assert tree["tokenizer"] == "patches"
    assert applied("sampler.steps=3", "sampler.schedule={type: cosine}")["sampler"]["schedule"] == {"type": "cosine"}


def test_values_that_are_no_yaml_or_too_much_of_it_are_named() -> None:
    for text in ("[1", "2024-13-45", "[" * 100, "&a [*a]", "9" * 5000):
        with pytest.raises(RecipeError, match=r"train\.steps: the value .* is not YAML"):
            load_recipe("fashion-maskgit", [f"train.steps={text}"])


def test_a_path_alone_takes_the_place_of_a_text_that_has_none() -> None:
    tree: dict[str, object] = {"data": {"type": "kjv", "length": 96}}
    apply_overrides(tree, ["data.path=my.txt"])
    assert tree["data"] == {"type": "text_file", "path": "my.txt", "length": 96}
    assert (
        load_recipe("text/kjv-md4", {"data.path": "my.txt"}).data
        == load_recipe("text/kjv-md4", ["data.path=my.txt"]).data
    )
    for changes in (["data.path=x", "data.type=kjv"], ["data.path=x", "data=kjv"]):  # what is said stands
        said: dict[str, object] = {"data": "kjv"}
        apply_overrides(said, changes)
        assert "text_file" not in str(said)
    images: dict[str, object] = {"data": "digits"}
    apply_overrides(images, ["data.path=x"])
    assert images["data"] == {"type": "digits", "path": "x"}  # refused when it is checked

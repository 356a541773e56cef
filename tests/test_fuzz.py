"""Random keys and values of small recipes of every family: a step of training, or a refusal of at most three lines.

`MASKGEN_FUZZ=5000 pytest tests/test_fuzz.py` runs more examples than the suite does, of another seed with
`--hypothesis-seed 1`.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskgen.cli import main
from maskgen.core.errors import UserError
from maskgen.recipes.load import load_recipe

EXAMPLES = int(os.environ.get("MASKGEN_FUZZ", "500"))
TRAINED_SHARE = 10
"""One valid example in so many is trained for a step; all of them when more examples are asked for by hand."""

SMALL = ("model.width=16", "model.depth=2", "model.heads=2", "train.steps=1", "train.batch_size=4", "train.warmup=0")
BRIEF = ("train.preview_every=0", "train.validation_rows=4", "train.tensorboard=false", "train.log_every=1")
DIGITS = ("data=digits",)
PATCHES = ("data=digits", "tokenizer={type: patches, size: 2}")
SHADES = ("data=digits", "tokenizer={type: pixels, levels: 4}")
DECODER = ("model.decoder.width=16", "model.decoder.depth=1", "model.decoder.heads=2")
HEAD = ("model.head.width=16", "model.head.depth=1")
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "image/digits-maskgit": (),
    "image/digits-deferred": ("model.masking.width=16",),
    "image/digits-pixels-md4": (),
    "image/fashion-mae": (*PATCHES, *DECODER),
    "image/fashion-mae-ropim": PATCHES,
    "image/fashion-simmim": PATCHES,
    "image/fashion-diffmae": (*PATCHES, *DECODER),
    "image/fashion-crate": PATCHES,
    "image/fashion-mar": (*PATCHES, *HEAD),
    "image/fashion-emigm": (*PATCHES, *HEAD),
    "image/fashion-mage-c": SHADES,
    "image/fashion-interpolants": SHADES,
    "image/fashion-maskmamba": (*SHADES, "model.mixer.first.head_width=8"),
    "image/fashion-naive": DIGITS,
    "image/fashion-dit": PATCHES,
    "image/fashion-mdt": (*PATCHES, "model.depth=4"),
    "image/fashion-maskdit": (*PATCHES, "model.masking.width=16"),
    "text/kjv-md4": ("model.lora={rank: 2}",),
    "text/kjv-genmd4": (),
    "text/kjv-bd3": ("model.block_length=8",),
    "text/kjv-ar": (),
    "text/kjv-mixer-md4": (),
}
SIZES = (
    "width",
    "depth",
    "heads",
    "steps",
    "batch_size",
    "length",
    "size",
    "levels",
    "codes",
    "dim",
    "factor",
    "n_",
    "rank",
    "alpha",
)
ODD = [
    "-1", "0", "1", "2", "3", "7", "0.5", "-0.5", "1.5", "nan", ".inf", "-.inf", "true", "no", "null", "''", "x", "[]",
    "[1, 2]", "{}", "{type: x}", "{type: linear}", "cosine", "random", "none", "1e-9", "'1'", "a b", "2024-01-01",
    "{a: {b: {c: 1}}}", "[[[]]]", "\u00e9", "linear", "token", "rotary",
]  # fmt: skip
LARGE = ["1000000000", "1e300", "-1000000000000"]


def keys_of(tree: object, path: str = "") -> list[str]:
    """Every key of a resolved recipe, dotted."""
    if not isinstance(tree, Mapping):
        return []
    found = []
    for key, value in tree.items():
        place = f"{path}.{key}" if path else str(key)
        found += [place, *keys_of(value, place)]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("fuzz")
    (home / "poem.txt").write_text("to be or not to be, that is the question\n" * 60)
    return home


def recipe_of(family: str, home: Path) -> list[str]:
    text = (f"data={{type: text_file, path: {home / 'poem.txt'}, length: 16}}",) if family.startswith("text/") else ()
    return [family, *SMALL, *BRIEF, *text, *FAMILIES[family]]


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, list[tuple[int, str, str]], bool]:
    """A family, and changes: number of a key, a suffix of it, and a value; whether it is trained."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    change = st.tuples(
        st.integers(0, 10_000), st.sampled_from(["", "", "", "", "x", ".x"]), st.sampled_from(ODD + LARGE)
    )
    return family, draw(st.lists(change, min_size=1, max_size=3)), draw(st.integers(1, TRAINED_SHARE)) == 1


def overrides_of(words: list[str], changes: list[tuple[int, str, str]]) -> list[str]:
    keys = sorted(keys_of(load_recipe(words[0], words[1:]).model_dump(mode="json")))
    found = []
    for number, suffix, value in changes:
        key = keys[number % len(keys)] + suffix
        is_size = any(part in key.rpartition(".")[2] for part in SIZES)
        found.append(f"{key}={'2' if value in LARGE and is_size else value}")
    return found


def refusal_of(words: list[str]) -> Exception | None:
    """The error of a recipe, None if it is valid."""
    try:
        load_recipe(words[0], words[1:])
    except Exception as error:
        return error
    return None


def outcome(words: list[str]) -> tuple[int, str]:
    """Exit code and output of a command in this process."""
    said, before = io.StringIO(), sys.argv
    sys.argv = ["maskgen", *words]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            main()
    except SystemExit as stop:
        return int(stop.code or 0), said.getvalue()
    finally:
        sys.argv = before
    return 0, said.getvalue()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipe_of_a_family_is_valid(family: str, place: Path) -> None:
    assert refusal_of(recipe_of(family, place)) is None


@pytest.mark.timeout(900 + 4 * EXAMPLES)
def test_a_changed_recipe_trains_or_is_refused_in_three_lines(place: Path) -> None:
    number = iter(range(10**9))

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 500, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutations())
    def check(example: tuple[str, list[tuple[int, str, str]], bool]) -> None:
        family, changes, is_trained = example
        words = recipe_of(family, place)
        words += overrides_of(words, changes)
        refusal = refusal_of(words)
        if refusal is not None:
            assert isinstance(refusal, UserError), f"{words}: {refusal!r}"
            assert len(str(refusal).splitlines()) <= 3 + len(changes), f"{words}: {refusal}"
        elif is_trained or EXAMPLES > 500:
            output = place / f"run-{next(number)}"
            code, said = outcome(["train", *words, "train.steps=1", "--output", str(output), "--device", "cpu"])
            assert code in (0, 2, 4), f"{words}: exit code {code}\n{said}"
            assert "Traceback" not in said, f"{words}\n{said}"
            assert not multiprocessing.active_children(), f"{words}: processes of the training are still there"
            shutil.rmtree(output, ignore_errors=True)

    check()

"""The comparison of two checkouts finds what differs, and nothing where they are the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_benchmarks import ROOT, script

TABLE: dict[str, Any] = yaml.safe_load((ROOT / "benchmarks" / "equality.yaml").read_text())


def compare(before: Path, after: Path, *options: str | Path) -> tuple[int, str]:
    """Exit code, and what is printed."""
    command = [sys.executable, ROOT / "benchmarks" / "equality.py", before, after, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("kind", ["losses", "resume"])
def test_every_family_is_of_groups_that_are_there(kind: str) -> None:
    for family in TABLE[kind].values():
        assert set(family) <= {"recipe", "groups", "overrides", "samples"}
        assert set(family["groups"]) <= set(TABLE["groups"])


def test_the_first_difference_is_told() -> None:
    verdict = script("equality").verdict
    one = {"step 1: train/loss": "1.5", "tensor": "a" * 64}
    assert verdict(one, dict(one)) == "equal, 2 values"
    assert verdict(one, one | {"step 1: train/loss": "1.25"}) == "DIFFERENT (step 1: train/loss: 1.5 != 1.25; 1 of 2)"
    assert verdict(one, one | {"tensor": "b" * 64}) == f"DIFFERENT (tensor: {'a' * 12} != {'b' * 12}; 1 of 2)"


def test_a_value_of_one_side_alone_is_a_difference() -> None:
    verdict = script("equality").verdict
    assert verdict({"old name": "1"}, {"new name": "1"}) == "DIFFERENT (old name: 1 != nothing; 2 of 2)"


def test_what_fails_alike_on_both_sides_is_not_equal() -> None:
    failed = {"failed": "UserError: no"}
    assert script("equality").verdict(failed, failed) == "FAILED (before: UserError: no; after: UserError: no)"


def test_all_is_equal_only_where_every_family_is() -> None:
    all_equal = script("equality").all_equal
    equal, different = {"verdict": "equal, 2 values"}, {"verdict": "DIFFERENT (x: 1 != 2; 1 of 1)"}
    assert all_equal({"a": equal, "b": equal})
    assert not all_equal({"a": equal, "b": different})


@pytest.mark.slow
def test_a_checkout_equals_itself_and_not_one_with_another_learning_rate(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "runs", ".*", "*.egg-info")
    for name in ("maskgen", "train", "sample", "configs"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=ignored)
    recipe = tmp_path / "copy" / "configs" / "text" / "kjv-md4.yaml"  # the base of kjv-ar too, and of no image recipe
    recipe.write_text(recipe.read_text().replace("lr: 6.0e-3", "lr: 6.1e-3"))
    ask = ("--only", "losses", "--family", "ar", "maskgit", "--output", tmp_path / "report.json")
    code, said = compare(ROOT, tmp_path / "copy", *ask)
    assert code == 1
    assert "losses:ar                DIFFERENT (step 2: train/loss: " in said
    families = json.loads((tmp_path / "report.json").read_text())["families"]
    assert families["losses:maskgit"]["differences"] == {}
    assert families["losses:maskgit"]["verdict"].startswith("equal, ")

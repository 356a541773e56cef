"""Laws of phases, keep-ratio curves and learning rates: all functions of the step."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from maskgen.recipes.budget import KeepCurve, Phase, TrainSettings, learning_rate, plan, stretch_at
from maskgen.recipes.load import load_recipe, parse_recipe
from maskgen.recipes.tree import RecipeError
from tests.tiny import TOKENIZER, tree


def settings(**values: Any) -> TrainSettings:
    return TrainSettings.model_validate(values)


@pytest.mark.parametrize(
    ("kind", "dropped"), [("cosine", [0.5, 0.426777, 0.25, 0]), ("cosine4", [0.5, 0.364277, 0.125, 0])]
)
def test_maskdits_curves_have_its_values(kind: Any, dropped: list[float]) -> None:
    curve = KeepCurve(type=kind, start=0.5, end=1.0, levels=5)  # stretches at 0, 1/4, 1/2, 3/4, 1 of the curve
    found = [1 - curve.at(share) for share in (0.0, 0.2, 0.4, 0.99)]
    assert found == pytest.approx(dropped, abs=1e-6)


@given(
    st.sampled_from(["linear", "cosine", "cosine4"]),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(2, 20),
    st.integers(1, 300),
)
def test_a_curve_takes_few_values_from_start_to_end(kind: Any, start: float, end: float, levels: int, n: int) -> None:
    curve = KeepCurve(type=kind, start=start, end=end, levels=levels)
    (stretch,) = plan(settings(steps=n, keep_ratio=curve))
    values = [stretch.keep_ratio_at(step) for step in range(n)]
    assert len(set(values)) <= min(levels, n)
    assert values[0] == pytest.approx(start)
    assert all(min(start, end) - 1e-12 <= value <= max(start, end) + 1e-12 for value in values)
    assert sorted(values, reverse=start > end) == pytest.approx(values)
    if n >= levels:
        assert values[-1] == end
    assert stretch.keep_ratios == {value: values.count(value) for value in dict.fromkeys(values)}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(1, 200))
def test_phases_cover_every_step_once_in_proportion(parts: list[int], total: int) -> None:
    stretches = plan(settings(steps=total, phases=[{"steps": n} for n in parts]))
    assert [step for one in stretches for step in range(one.first, one.last)] == list(range(total))
    for stretch in stretches:
        assert len(stretch) == pytest.approx(parts[stretch.index] * total / sum(parts), abs=1)
        assert stretch_at(settings(steps=total, phases=[{"steps": n} for n in parts]), stretch.first) == stretch


def test_without_phases_there_is_one() -> None:
    (stretch,) = plan(settings(steps=7, keep_ratio=0.5, batch_size=6))
    assert (stretch.first, stretch.last, stretch.keep_ratio, stretch.batch_size) == (0, 7, 0.5, 6)


def test_steps_are_the_sum_of_the_phases_unless_they_are_given() -> None:
    phases = [{"steps": 8}, {"steps": 2}]
    assert settings(phases=phases).steps == 10
    assert [len(one) for one in plan(settings(phases=phases, steps=100))] == [80, 20]


def test_a_phase_takes_from_the_run_what_it_does_not_say() -> None:
    phases = [{"steps": 4}, {"steps": 2, "keep_ratio": 1, "batch_size": 4}, {"steps": 1, "accumulate": 2}]
    first, second, third = plan(settings(phases=phases, keep_ratio=0.25, batch_size=8))
    assert [one.keep_ratio for one in (first, second, third)] == [0.25, 1, 0.25]
    assert [one.batch_size for one in (first, second, third)] == [8, 4, 8]
    assert [one.accumulate for one in (first, second, third)] == [1, 1, 2]
    assert [one.images for one in (first, second, third)] == [0, 32, 40]


def test_the_rate_goes_on_over_phases_that_say_nothing_of_it() -> None:
    plain, phased = (
        settings(steps=20, warmup=3),
        settings(phases=[{"steps": 12}, {"steps": 8, "keep_ratio": 0.5}], warmup=3),
    )
    assert [learning_rate(step, plain) for step in range(20)] == [learning_rate(step, phased) for step in range(20)]


def test_a_phase_with_a_rate_of_its_own_has_it_over_its_own_steps() -> None:
    phases = [{"steps": 4}, {"steps": 4, "lr": 2.0, "lr_schedule": "cosine", "lr_floor": 0.5}, {"steps": 2, "lr": 3.0}]
    run = settings(phases=phases, lr=1.0, lr_schedule="constant", warmup=2)
    rates = [learning_rate(step, run) for step in range(10)]
    assert rates[:4] == [0.5, 1, 1, 1]
    assert rates[4:8] == pytest.approx([2.0, 1.8535534, 1.5, 1.1464466])
    assert rates[8:] == [3, 3]


def test_a_cosine_ends_at_its_floor() -> None:
    assert learning_rate(10, settings(steps=10, warmup=0, lr=2.0, lr_floor=0.25)) == pytest.approx(0.5)


FOLDER = {"type": "folder", "path": "x", "size": 8, "channels": 1}


def phased(*phases: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return tree(train={"phases": list(phases)}, **changes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (phased({"keep_ratio": 0.5}), ["train.phases.0.steps: missing"]),
        (phased({"steps": 0}), ["train.phases.0.steps", "greater than or equal to 1", "got 0"]),
        (phased({"steps": 1, "kep_ratio": 1}), ["train.phases.0.kep_ratio: unknown key", "keep_ratio", "resolution"]),
        (phased({"steps": 1, "keep_ratio": 2}), ["train.phases.0.keep_ratio: ", "less than or equal to 1, got 2"]),
        (
            phased({"steps": 1, "keep_ratio": {"type": "sine", "start": 0.1, "end": 1}}),
            ["train.phases.0.keep_ratio.type", "'cosine4'", "'sine'"],
        ),
        (
            phased({"steps": 1, "keep_ratio": {"type": "linear", "begin": 0.1, "start": 0.1, "end": 1}}),
            ["keep_ratio.begin: unknown key; accepted here: end, levels, start, type"],
        ),
        (phased({"steps": 1, "batch_size": 3, "accumulate": 2}), ["multiple of train.accumulate, got 3 and 2"]),
        (phased({"steps": 1, "resolution": 16}, data="fashion_mnist"), ["resolution 16", "fashion_mnist has none"]),
        (phased({"steps": 1, "keep_ratio": 0.5}, **TOKENIZER, model=None), ["a tokenizer has none"]),
        (
            phased({"steps": 1, "resolution": 16}, data=FOLDER, tokenizer={"from": "y"}),
            ["resolution 16: tokenizer y is for images of one size"],
        ),
        (
            phased({"steps": 1, "resolution": 64}, **(TOKENIZER | {"data": FOLDER, "model": None})),
            ["resolution 64 needs a generator"],
        ),
    ],
)  # fmt: skip
def test_a_faulty_phase_is_named_with_its_key(content: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(content)
    for word in words:
        assert word in str(error.value)


def test_a_phased_recipe_comes_back_from_its_dump() -> None:
    curve = {"type": "cosine4", "start": 0.25, "end": 1.0}
    recipe = parse_recipe(phased({"steps": 3, "keep_ratio": curve}, {"steps": 2, "lr": 0.1}))
    assert parse_recipe(yaml.safe_load(recipe.dump())) == recipe
    assert parse_recipe(yaml.safe_load(recipe.dump(is_brief=True))) == recipe
    assert isinstance(recipe.train.phases[0], Phase)


def test_phases_can_be_given_on_the_command_line() -> None:
    recipe = load_recipe(
        "digits-maskgit", ["train.phases=[{steps: 9, keep_ratio: 0.25}, {steps: 1}]", "train.steps=20"]
    )
    assert [(len(one), one.keep_ratio) for one in plan(recipe.train)] == [(18, 0.25), (2, 1.0)]


def test_a_recipe_at_a_resolution_has_data_of_that_size() -> None:
    recipe = parse_recipe(tree(data=FOLDER))
    assert recipe.image_shape() == (1, 8, 8)
    assert recipe.at(16).image_shape() == (1, 16, 16)
    assert recipe.at(None) is recipe

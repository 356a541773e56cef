"""Laws of the registries: everything is checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import pytest

from maskgen.core.registry import Registry, SpecError
from maskgen.samplers import SAMPLERS
from maskgen.samplers.masked.unmasking import UNMASKINGS, Scheduled
from maskgen.schedules import SCHEDULES, Cosine, Linear, Polynomial


class Shape:
    """The base of the toy registry."""


SHAPES: Registry[Shape] = Registry("shape", Shape, derived=("area",))


@SHAPES.register("box")
@dataclass(frozen=True)
class Box(Shape):
    """A box.

    Of boards.
    """

    width: int
    area: int = 0
    inside: Shape | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")


def test_a_name_alone_builds_with_defaults() -> None:
    assert SCHEDULES.build("cosine") == Cosine()


def test_arguments_reach_the_constructor() -> None:
    assert SCHEDULES.build({"type": "polynomial", "power": 3}) == Polynomial(3.0)


def test_a_nested_spec_is_built_by_the_registry_of_its_type() -> None:
    unmasking = UNMASKINGS.build({"type": "schedule", "schedule": {"type": "polynomial", "power": 3}})
    assert unmasking == Scheduled(Polynomial(3.0))


def test_a_nested_spec_may_be_optional() -> None:
    assert SHAPES.build({"type": "box", "width": 2, "inside": {"type": "box", "width": 1}}) == Box(2, inside=Box(1))
    assert SHAPES.build({"type": "box", "width": 2, "inside": None}) == Box(2)


def test_an_object_passes_where_a_spec_is_wanted() -> None:
    assert UNMASKINGS.build({"type": "schedule", "schedule": Linear()}) == Scheduled(Linear())


def test_a_derived_argument_is_given_by_the_builder_and_never_a_key() -> None:
    assert SHAPES.build({"type": "box", "width": 2}, area=9, volume=1) == Box(2, area=9)
    assert SHAPES.arguments("box") == ["width", "inside"]
    with pytest.raises(SpecError, match="area: unknown key"):
        SHAPES.build({"type": "box", "width": 2, "area": 9})


def test_check_leaves_defaults_out() -> None:
    assert SCHEDULES.check({"type": "polynomial"}) == ("polynomial", {})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sine", r"at\.it: unknown schedule 'sine'; .*choose from .*cosine"),
        ({"power": 2}, r"at\.it: a schedule needs `type:`; choose from .*cosine"),
        (3, r"at\.it: a schedule is a name or a mapping with `type:`, got 3"),
        ({"type": "polynomial", "pwer": 2}, r"at\.it\.pwer: unknown key; did you mean power\? accepted here: power"),
        ({"type": "cosine", "power": 2}, r"at\.it\.power: unknown key; accepted here: none"),
        ({"type": "polynomial", "power": "big"}, r"at\.it\.power: input should be a valid number.*, got 'big'"),
        ({"type": "polynomial", "power": -1}, r"at\.it: power must be positive, got -1"),
    ],
)
def test_a_fault_names_its_place_its_value_and_the_choices(spec: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SCHEDULES.build(spec, "at.it")  # type: ignore[arg-type]


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(SpecError, match="width: missing"):
        SHAPES.build("box")


def test_a_fault_in_a_nested_part_names_the_choices() -> None:
    with pytest.raises(SpecError, match=r"sampler\.schedule: unknown schedule 'sine'; .*choose from"):
        SAMPLERS.build({"type": "maskgit", "schedule": "sine"}, "sampler")


def test_a_nested_part_that_says_what_it_got_is_not_said_to_have_got_itself() -> None:
    with pytest.raises(SpecError) as caught:
        SHAPES.build({"type": "box", "width": 2, "inside": {"type": "box", "width": 0}}, "at")
    assert str(caught.value) == "at.inside: width must be at least 1, got 0"


def test_every_fault_has_a_line_of_its_own() -> None:
    with pytest.raises(SpecError) as caught:
        SAMPLERS.build({"type": "maskgit", "stps": 3, "temperature": "hot"})
    assert {line.split(":")[0] for line in str(caught.value).splitlines()} == {"stps", "temperature"}


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="shape 'box' is registered twice"):
        SHAPES.register("box")(Box)


def test_the_summary_is_the_first_line_of_the_docstring() -> None:
    assert SHAPES.summary("box") == "A box."


def test_names_are_sorted_and_each_can_be_got() -> None:
    assert SCHEDULES.names() == sorted(SCHEDULES.names())
    assert SCHEDULES.get("cosine") is Cosine
    with pytest.raises(SpecError, match="unknown schedule 'sine'"):
        SCHEDULES.get("sine")


class Looks(TypedDict, total=False):
    """Keys that several shapes share."""

    colour: str
    inside: Shape | None


class Painted(Shape):
    """A shape with looks."""

    def __init__(self, area: int = 0, **looks: Unpack[Looks]) -> None:
        self.area, self.looks = area, looks


def test_shared_keys_are_checked_like_own_ones_and_given_only_where_they_were() -> None:
    shapes: Registry[Shape] = Registry("painted shape", derived=("area",))
    shapes.register("painted")(Painted)
    assert shapes.arguments("painted") == ["colour", "inside"]
    built = shapes.build({"type": "painted", "inside": {"type": "box", "width": 3}}, area=7)
    assert isinstance(built, Painted)
    assert (built.area, built.looks) == (7, {"inside": Box(3)})
    for wrong, words in (({"colour": 3}, "colour: "), ({"size": 3}, "accepted here: colour, inside")):
        with pytest.raises(SpecError, match=words):
            shapes.build({"type": "painted", **wrong})


def test_a_nested_part_may_have_to_be_of_one_type() -> None:
    class Shape:
        pass

    shapes: Registry[Shape] = Registry("shape", Shape)

    @shapes.register("round")
    class Round(Shape):
        pass

    @shapes.register("square")
    class Square(Shape):
        pass

    boxes: Registry[Any] = Registry("box")

    @boxes.register("box")
    class Box:
        def __init__(self, shape: Square) -> None:
            self.shape = shape

    Box.__init__.__annotations__["shape"] = Square  # a class in a function has no name outside it
    assert isinstance(boxes.build({"type": "box", "shape": "square"}).shape, Square)
    with pytest.raises(SpecError, match="a shape here is square, got 'round'"):
        boxes.build({"type": "box", "shape": "round"})
    for spec in ({"width": 3}, "oval"):
        with pytest.raises(SpecError, match="choose from square, got"):
            boxes.build({"type": "box", "shape": spec})


def test_a_renamed_key_is_accepted_under_both_names_with_one_notice(caplog: pytest.LogCaptureFixture) -> None:
    registry: Registry[Any] = Registry("dish")

    @registry.register("soup", renamed={"heat": "spice"})
    def soup(spice: int = 1) -> int:
        return spice

    assert soup() == registry.build("soup") == 1
    assert [registry.build({"type": "soup", key: 2}, "dinner") for key in ("spice", "heat", "heat")] == [2, 2, 2]
    assert caplog.messages == ["dinner.heat is now called dinner.spice; the former name is still accepted"]
    assert registry.arguments("soup") == ["spice"]
    with pytest.raises(SpecError, match=r"dinner\.heat is the former name of dinner\.spice; give one of them"):
        registry.build({"type": "soup", "heat": 1, "spice": 2}, "dinner")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), ".nan", "-inf"])
def test_no_number_of_a_part_may_be_infinite_or_none(value: object) -> None:
    with pytest.raises(SpecError, match=r"^schedule\.power: input should be a"):
        SCHEDULES.check({"type": "polynomial", "power": value}, "schedule")

"""The scores of a checkpoint, `maskgen evaluate --metric NAME`: a registry of programs.

A metric is a function in a file of this folder:

    @METRICS.register("entropy")
    @metric("text")
    def run(source: str, /, *, num: int = 64, seed: int = 0, output: str | None = None, device: str = "auto",
            **choices: Any) -> str:

Keyword parameters are its options, given as --num or num=64. With `**choices` it also takes the options of sampling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from maskgen.core import catalogue
from maskgen.core.registry import Registry

Kind = Literal["image", "text"]
SHARED = frozenset({"seed", "output", "device"})
"""Options of every metric."""

FEATURES = "metrics"
"""Parameter of the metric that computes the metrics of features beside it."""


@dataclass(frozen=True)
class Metric:
    """A program that scores a checkpoint and returns a table.

    Attributes:
        function: the program.
        kind: of the checkpoints it is for; None for both.
        is_default: whether it runs for checkpoints of its kinds if no metric is chosen.
        fills_folder: whether --output DIR receives samples beside the report.
    """

    function: Callable[..., str]
    kind: Kind | None = None
    is_default: bool = False
    fills_folder: bool = False

    def __call__(self, source: str, /, **options: object) -> str:
        return self.function(source, **options)

    @property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())

    @property
    def options(self) -> set[str]:
        """Keyword parameters."""
        return {one.name for one in self._parameters if one.kind is one.KEYWORD_ONLY}

    def takes(self, key: str) -> bool:
        """Whether an option goes with this metric: one of its own, or one of sampling if it samples."""
        is_sampled = any(one.kind is one.VAR_KEYWORD for one in self._parameters)
        return key in self.options or (is_sampled and key not in _all_options())

    def is_for(self, kind: Kind) -> bool:
        """Whether it scores checkpoints of a kind."""
        return self.kind in (None, kind)


METRICS: Registry[str] = Registry("metric", home="maskgen.sample:METRICS")


def metric(
    kind: Kind | None = None, *, is_default: bool = False, fills_folder: bool = False
) -> Callable[[Callable[..., str]], Metric]:
    """Decorator: a function is the program of a metric."""
    return lambda function: Metric(function, kind, is_default, fills_folder)


def metric_of(name: str) -> Metric:
    """The program of a metric.

    Raises:
        SpecError: there is none of that name.
    """
    found = METRICS.get(name)
    assert isinstance(found, Metric)
    return found


def _all_options() -> set[str]:
    """Options that belong to some metric."""
    assert METRICS.home is not None
    known = {key for entry in catalogue.entries(METRICS.home).values() for key in entry.parameters[1:]}
    run_time = {
        key
        for name in METRICS.names()
        if name not in catalogue.entries(METRICS.home)
        for key in metric_of(name).options
    }
    return (known | run_time) - SHARED

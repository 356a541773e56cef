"""A law over many cases as one test."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any


def each(names: str, cases: Iterable[Any] | Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: run a test for every case, in order; a failure names its case.

    Args:
        names: parameters of the test that a case fills, as of `pytest.mark.parametrize`: ``"name, value"``.
        cases: values, tuples of values for several names; or a mapping of labels to them.
    """
    parameters = [name.strip() for name in names.split(",")]
    labelled = list(cases.items()) if isinstance(cases, Mapping) else [(repr(case), case) for case in cases]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @wraps(test)
        def run(**fixtures: Any) -> None:
            for label, case in labelled:
                values = (case,) if len(parameters) == 1 else case
                try:
                    test(**fixtures, **dict(zip(parameters, values, strict=True)))
                except BaseException as error:
                    error.add_note(f"case: {label}")
                    raise

        rest = [value for name, value in signature.parameters.items() if name not in parameters]
        run.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
        return run

    return decorate

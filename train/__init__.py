"""The training program, installed as `maskgen.train`: a module that can be called, `maskgen.train(recipe, ...)`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal


class _Callable(ModuleType):
    """A module that can be called: `maskgen.train` stays one name, whether or not the program has been imported."""

    def __call__(
        self,
        recipe: object,
        overrides: Sequence[str] | Mapping[str, object] = (),
        output: str | Path | None = None,
        *,
        resume: bool | Literal["auto"] = False,
        device: str = "auto",
        start: str | Path | None = None,
    ) -> Path:
        """See `maskgen.train`, declared where the library's public names are."""
        program = importlib.import_module(f"{__name__}.program")
        checkpoint: Path = program.run(
            recipe, overrides, output, resume, device, None if start is None else {"checkpoint": str(start)}
        )
        return checkpoint


sys.modules[__name__].__class__ = _Callable

"""The base of every error that is the user's to mend: shown as one or two lines, never as a traceback."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its message, or its type where there is no message.

    Of a file that the system refuses, its reason without error number and name.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def system_message(error: OSError) -> str:
    """What the system refused: `FILE: no such file or directory`."""
    names = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)
    ]
    return ": ".join([" to ".join(names), first_line(error)] if names else [first_line(error)])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's MemoryError, or what PyTorch raises on a CPU or an accelerator."""
    signs = (
        "out of memory",
        "can't allocate memory",
        "cannot allocate memory",
        "not enough memory",
        "cudnn_status_not_",
    )
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
    )


class UserError(ValueError):
    """Something given from outside is wrong; the message names the value, the choices and the way out.

    `code` is the exit code of the program: 2 unless a subclass has its own.
    """

    code = 2


class OutOfMemory(UserError):
    """A step did not fit; the message names the settings to change."""

    code = 3


class Diverged(UserError):
    """The loss was NaN or infinite for a run of steps."""

    code = 4


class DiskFull(UserError):
    """A file could not be written because the disk is full; earlier files are whole."""

    code = 5


def closest(name: str, choices: Iterable[str]) -> str:
    """`did you mean X or Y? `, for a name that is not one of the choices; empty if none is similar."""
    folded = {choice.lower().replace("_", "-"): choice for choice in choices}
    close = difflib.get_close_matches(name.lower().replace("_", "-"), folded, 3, 0.6)
    return f"did you mean {' or '.join(folded[key] for key in close)}? " if close else ""


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """Message for a name that is not one of the choices: the similar ones first, then all of them."""
    names = list(choices)
    return f"unknown {kind} {name!r}; {closest(name, names)}choose from {', '.join(names)}"

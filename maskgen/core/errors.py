"""The base of every error that is the user's to mend: shown as one or two lines, never as a traceback."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What an error says in one line: the first of its message, or its type where there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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

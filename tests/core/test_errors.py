"""What is said of an error that is not ours."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from maskgen.core.errors import first_line, system_message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\ntwo"), "one"),
        (ConnectionResetError(), "ConnectionResetError"),
        (RuntimeError("  \n"), "RuntimeError"),
        (OSError(errno.ENOENT, "No such file or directory", "x"), "no such file or directory"),
        (OSError("one\ntwo"), "one"),
    ],
)
def test_an_error_is_one_line_and_never_none(error: Exception, said: str) -> None:
    assert first_line(error) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOENT, "No such file or directory", "x"), "x: no such file or directory"),
        (OSError(errno.ENOENT, "No such file or directory", b"x\xff"), "x\udcff: no such file or directory"),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, Path("b")), "a to b: cross-device link"),
        (OSError(errno.EBADF, "Bad file descriptor"), "bad file descriptor"),
        (OSError(errno.EBADF, "Bad file descriptor", 3), "bad file descriptor"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_what_the_system_refused_names_the_file_and_no_error_number(error: OSError, said: str) -> None:
    assert system_message(error) == said

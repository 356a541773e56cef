"""What is said of an error that is not ours."""

from __future__ import annotations

import pytest

from maskgen.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\ntwo"), "one"),
        (ConnectionResetError(), "ConnectionResetError"),
        (RuntimeError("  \n"), "RuntimeError"),
    ],
)
def test_an_error_is_one_line_and_never_none(error: Exception, said: str) -> None:
    assert first_line(error) == said

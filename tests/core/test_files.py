"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskgen.core.files import atomic


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as file:  # noqa: PT012 - the block is what fails
        file.write(b"half of the ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_ends_well_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.txt"
    for text in (b"old", b"new"):
        with atomic(path) as file:
            file.write(text)
    assert path.read_bytes() == b"new"

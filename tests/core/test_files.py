"""Files: whole or not there, never through a link, with the user's permissions, and read within bounds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskgen.core.errors import UserError
from maskgen.core.files import (
    STALE,
    atomic,
    is_disk_full,
    local_path,
    obey_umask,
    parse_json,
    read_json,
    read_regular,
    remove_stale_drafts,
    write_json,
)
from maskgen.core.lock import NAME, RunLock, is_held
from maskgen.core.terminal import first_few, printable


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


def test_every_file_obeys_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for mask in (0o022, 0o027, 0o077, 0o002):
            os.umask(mask)
            write_json(tmp_path / f"{mask}.json", {})
            private = tmp_path / f"{mask}.bin"
            os.close(os.open(private, os.O_CREAT | os.O_WRONLY, 0o600))
            obey_umask(private)
            with RunLock(tmp_path):
                pass
            for path in (tmp_path / f"{mask}.json", private, tmp_path / NAME):
                assert path.stat().st_mode & 0o777 == 0o666 & ~mask
            (tmp_path / NAME).unlink()
    finally:
        os.umask(before)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep")
    (tmp_path / "a.json").symlink_to(target)
    write_json(tmp_path / "a.json", {"a": 1})
    assert target.read_text() == "keep"
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_lock_is_never_a_link_a_pipe_or_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep")
    for number, make in enumerate(
        (Path.symlink_to, Path.hardlink_to, lambda path, _: os.mkfifo(path), lambda path, _: path.mkdir())
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder / NAME, target)
        with pytest.raises(UserError, match=r"\.lock cannot serve as a lock: .*; remove it"), RunLock(folder):
            pass
        assert target.read_text() == "keep"


@pytest.mark.parametrize("content", ["[1]", "null", "{", '{"pid": "x", "host": 3}', '{"pid": -1}', "[" * 100_000, "\0"])
def test_a_lock_with_strange_content_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    os.utime(tmp_path / NAME, (0, 0))
    assert not is_held(tmp_path)
    with RunLock(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    killed = (
        "import os, pathlib; from maskgen.core.files import atomic\nwith atomic(pathlib.Path('t.bin')): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", killed], cwd=tmp_path, check=False)
    (old,) = tmp_path.iterdir()
    elsewhere, forgotten = tmp_path / ".a.00000000-1-0", tmp_path / ".b.00000000-1-0"
    ours = tmp_path / f".tokens.bin.{os.getpid()}"
    others = [tmp_path / name for name in (".hidden", "a.1", ".cache")]
    for path in (elsewhere, forgotten, ours, *others):
        path.touch()
    os.utime(forgotten, (time.time() - STALE - 1,) * 2)
    remove_stale_drafts(tmp_path)
    assert not old.exists()
    assert set(tmp_path.iterdir()) == {elsewhere, ours, *others}
    remove_stale_drafts(tmp_path / "gone")


def test_what_is_read_is_a_regular_file_of_bounded_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(bytes(11))
    for name, message in (
        ("pipe", "not a regular"),
        ("zero", "not a regular"),
        ("large", "11 bytes, more than the 10"),
    ):
        with pytest.raises(OSError, match=message):
            read_regular(tmp_path / name, 10)
    assert read_regular(tmp_path / "large") == bytes(11)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "nul", "[1"])
def test_json_that_is_none_or_too_deep_is_a_value_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "a.json")


def test_json_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json holds no JSON object"):
        read_json(tmp_path / "a.json")


def test_paths_of_users_are_expanded_or_refused_in_one_sentence() -> None:
    assert local_path("~/x") == Path.home() / "x"
    assert local_path("./~y/x") == Path("~y/x")
    with pytest.raises(UserError, match=r"~no-such-user/x: there is no user 'no-such-user'; write \./~no-such-user/x"):
        local_path("~no-such-user/x")
    with pytest.raises(UserError, match="contains a NUL character"):
        local_path("a\0b")


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    full = OSError(28, "No space left on device")
    for error in (full, OSError(122, "Disk quota exceeded")):
        assert is_disk_full(error)
    behind = RuntimeError("while writing")
    behind.__cause__ = full
    assert is_disk_full(behind)
    assert not is_disk_full(OSError(13, "Permission denied"))
    assert not is_disk_full(None)


def test_unsafe_characters_are_shown_as_escapes() -> None:
    assert printable("a\x1b[31m\x9b\n\t\u202eb\udcff é 日 😀") == "a\\x1b[31m\\x9b\\n\\t\\u202eb\\udcff é 日 😀"
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"
    assert first_few(["a", "b", "c"], 2) == "a, b and 1 more"

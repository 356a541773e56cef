"""Weights are looked for here first; what is missing or damaged is one message, and no code in a file is run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from maskgen.evaluation.protocols.weight_files import (
    INCEPTION,
    INCEPTION_SCRIPT,
    WeightsError,
    WeightsFile,
    read_tensors,
)

CONTENT = b"weights"
FILE = WeightsFile(("one.pth", "other.pth"), "http://127.0.0.1:9/one.pth", hashlib.sha256(CONTENT).hexdigest()[:8])


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("MASKGEN_WEIGHTS", raising=False)


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    return path


def test_the_places_are_asked_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = put(tmp_path / "torch" / "hub" / "checkpoints" / "other.pth")
    assert FILE.find() == hub
    variable, given = put(tmp_path / "var" / "one.pth"), put(tmp_path / "mine.pth")
    monkeypatch.setenv("MASKGEN_WEIGHTS", os.pathsep.join([str(tmp_path), str(variable.parent)]))
    assert FILE.find() == variable
    monkeypatch.setenv("MASKGEN_WEIGHTS", str(variable))
    assert FILE.find() == variable
    assert FILE.find(str(given)) == given
    assert FILE.find(str(variable.parent)) == variable


def test_a_variable_that_names_nothing_usable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = put(tmp_path / "torch" / "hub" / "checkpoints" / "one.pth")
    script = put(tmp_path / "script.pt")
    for name, message in ((script, r"needs one\.pth, ending in \.pth"), (tmp_path / "none", "not there")):
        monkeypatch.setenv("MASKGEN_WEIGHTS", str(name))
        with pytest.raises(WeightsError, match=message):
            FILE.find()
    mine = put(tmp_path / "mine.pth")
    monkeypatch.setenv("MASKGEN_WEIGHTS", os.pathsep.join([str(script), str(mine)]))
    assert FILE.find() == mine, "one variable names files of two kinds"
    monkeypatch.setenv("MASKGEN_WEIGHTS", str(tmp_path))
    assert FILE.find() == hub, "a folder may lack it"


def test_given_weights_that_are_not_there_are_never_replaced(tmp_path: Path) -> None:
    put(tmp_path / "torch" / "hub" / "checkpoints" / "one.pth")
    with pytest.raises(WeightsError, match=r"--weights .*gone\.pth: no such file"):
        FILE.find(str(tmp_path / "gone.pth"))


@pytest.mark.parametrize("file", [INCEPTION, INCEPTION_SCRIPT])
def test_offline_one_message_says_which_file_from_where_and_how_to_give_it(file: WeightsFile) -> None:
    with pytest.raises(WeightsError) as caught:
        file.find()
    for part in (file.names[0], file.url, file.sha256, "--weights", "MASKGEN_WEIGHTS"):
        assert part in str(caught.value)


def test_what_is_fetched_is_checked_and_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    source = put(tmp_path / "server" / "one.pth")
    good = WeightsFile(FILE.names, source.as_uri(), FILE.sha256)
    assert good.find().read_bytes() == CONTENT
    assert good.find() == tmp_path / "torch" / "hub" / "checkpoints" / "one.pth"
    other = WeightsFile(("new.pth",), source.as_uri(), "0" * 64)
    with pytest.raises(WeightsError, match="what came has SHA-256"):
        other.find()
    assert [path.name for path in (tmp_path / "torch" / "hub" / "checkpoints").iterdir()] == ["one.pth"]


def test_a_server_that_is_not_there_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(WeightsError, match="could not be fetched"):
        FILE.find()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth is damaged or holds more than tensors"):
        read_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "a.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:200])
    for name in ("cut.pth", "none.pth"):
        with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
            read_tensors(tmp_path / name)
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="not a state dict"):
        read_tensors(tmp_path / "list.pth")

"""Laws of telling paths from hub ids, without any network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from maskgen.core.hub import download, hub_or_folder, is_hub_id


@pytest.mark.parametrize("source", ["owner/name", "a-b/c.d_e", "CompVis/ldm-4"])
def test_owner_and_name_are_a_hub_id(source: str) -> None:
    assert is_hub_id(source)


@pytest.mark.parametrize("source", ["name", "./a/b", "../b", "/a/b", "~/b", "a/b/c", "a b/c", "a/", "/", "", "a\\b/c"])
def test_nothing_else_is_a_hub_id(source: str) -> None:
    assert not is_hub_id(source)


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name")
    Path("owner/name").mkdir(parents=True)
    assert not is_hub_id("owner/name")
    assert hub_or_folder("owner/name") == str(Path("owner/name"))


def test_a_folder_or_an_id_and_else_an_error(tmp_path: Path) -> None:
    assert hub_or_folder(str(tmp_path)) == str(tmp_path)
    assert hub_or_folder("nobody/nothing") == "nobody/nothing"
    with pytest.raises(FileNotFoundError, match=r"'./gone', and it is not a hub id"):
        hub_or_folder("./gone")


@pytest.mark.parametrize(("offline", "words"), [("", "nobody/x.*ConnectionError$"), ("1", "HF_HUB_OFFLINE is set")])
def test_a_hub_that_does_not_answer_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, offline: str, words: str
) -> None:
    def fail(source: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    with pytest.raises(FileNotFoundError, match=words):
        download("nobody/x", ["*"])

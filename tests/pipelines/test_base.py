"""The pipeline: what a sample depends on, which classes there are, saving and loading."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import maskgen
from maskgen.core.errors import UserError


def test_a_sample_depends_on_its_own_seed_and_class_only(digits_run: Path) -> None:
    pipeline = maskgen.load(str(digits_run))
    many = pipeline(16, ["3", "7"], seed=5, steps=4)
    alone = pipeline(1, ["7"], seed=5 + 9, steps=4)
    assert torch.equal(many.tokens[9], alone.tokens[0])
    assert torch.equal(pipeline(16, ["3", "7"], seed=5, steps=4, batch_size=3).tokens, many.tokens)


def test_classes_are_names_or_ids_taken_in_turn(digits_run: Path) -> None:
    pipeline = maskgen.load(str(digits_run))
    assert pipeline.labels(["1", 4], 5).tolist() == [1, 4, 1, 4, 1]  # type: ignore[union-attr]
    assert pipeline.labels("all", 12).tolist() == [*range(10), 0, 1]  # type: ignore[union-attr]
    assert pipeline.labels(["none"], 2).tolist() == [-1, -1]  # type: ignore[union-attr]
    with pytest.raises(UserError, match="unknown class 'eleven'"):
        pipeline.labels(["eleven"], 1)


def test_what_is_saved_loads_and_samples_the_same(digits_run: Path, tmp_path: Path) -> None:
    pipeline = maskgen.load(str(digits_run))
    pipeline.save_pretrained(tmp_path / "copy")
    again = maskgen.load(str(tmp_path / "copy"))
    assert torch.equal(pipeline(3, steps=2).pixels, again(3, steps=2).pixels)


def test_another_sampler_starts_from_its_own_defaults(digits_run: Path) -> None:
    pipeline = maskgen.load(str(digits_run))
    assert pipeline.with_sampler("halton").sampler.steps == 32
    assert pipeline.with_sampler(temperature=0.5).sampler.temperature == 0.5
    assert pipeline.with_sampler(guidance=7.0).guidance.scale == 7.0


@pytest.mark.parametrize("num", [0, -1])
def test_fewer_than_one_sample_is_refused(digits_run: Path, num: int) -> None:
    with pytest.raises(UserError, match="num"):
        maskgen.load(str(digits_run))(num)


class Hub:
    """What huggingface_hub's client is asked for, and the files of what is uploaded."""

    asked: ClassVar[dict[str, Any]] = {}
    is_down = False

    def __init__(self, token: str | None = None) -> None:
        self.asked["token"] = token

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        if self.is_down:
            raise OSError("no route to the hub\nand more")
        self.asked |= {"private": private, "exist_ok": exist_ok}
        return SimpleNamespace(repo_id=f"someone/{repo_id.split('/')[-1]}")

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.asked |= {"repo": repo_id, "files": files, "message": commit_message}
        return f"https://hub/{repo_id}"


def test_what_is_pushed_to_the_hub_is_what_is_saved(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    pipeline = maskgen.load(str(digits_run))
    assert pipeline.push_to_hub("me/digits", private=True, token="t") == "https://hub/someone/digits"
    pipeline.save_pretrained(tmp_path / "digits", push_to_hub=True)
    saved = {path.name: path.read_bytes() for path in (tmp_path / "digits").iterdir()}
    assert set(saved) == {"model.safetensors", "recipe.yaml", "checkpoint.json", "README.md"}
    assert Hub.asked["files"] == saved
    assert Hub.asked["message"] == "digits, step 4"
    assert b"library_name: maskgen" in saved["README.md"]


def test_a_hub_that_cannot_be_reached_is_said_in_a_line(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "is_down", True)
    with pytest.raises(UserError, match=r"^me/x cannot be uploaded: no route to the hub$"):
        maskgen.load(str(digits_run)).push_to_hub("me/x")

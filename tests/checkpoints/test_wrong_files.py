"""Files that are no checkpoint of a known layout: one message each, which says what is wrong with it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from maskgen.checkpoints.convert.conversion import dry_run, run
from maskgen.core.errors import UserError
from tests.checkpoints.test_files import Runs, saved, small_dit

FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {}
"""Name -> what makes the file, and what the message says."""


def fault(message: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        FAULTS[make.__name__.replace("_", " ")] = (make, message)
        return make

    return add


def dit(**changes: Tensor | None) -> dict[str, Tensor]:
    state = {key: value.clone() for key, value in small_dit().items()}
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


def sharded(folder: Path, homes: dict[str, str] | None = None) -> Path:
    """A folder of Hugging Face with its weights in two files."""
    state, parts = dit(), ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
    given = {name: parts[index % 2] for index, name in enumerate(state)}
    for part in parts:
        save_file({name: state[name] for name in state if given[name] == part}, folder / part)
    index = {"metadata": {}, "weight_map": {**given, **(homes or {})}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@fault(r"no file .*; download the public checkpoint first")
def nothing_there(folder: Path) -> Path:
    return folder / "none.pt"


@fault(r"is empty; download it again")
def an_empty_file(folder: Path) -> Path:
    (folder / "a.pt").touch()
    return folder / "a.pt"


@fault(r"holds no files of weights \(nothing\); give one file")
def an_empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@fault(r"holds several files of weights \(a.pt, b.pt\); give one file")
def a_folder_of_many(folder: Path) -> Path:
    for name in ("a.pt", "b.pt"):
        saved(folder / name, dit())
    return folder


@fault(r"holds no files of weights \(README.md\); give one file")
def a_folder_without_weights(folder: Path) -> Path:
    (folder / "README.md").write_text("weights: see the link")
    return folder


@fault(r"it is damaged, or holds code, which is never run")
def a_page_in_place_of_a_download(folder: Path) -> Path:
    (folder / "a.pt").write_text("<!DOCTYPE html><title>Sign in</title>")
    return folder / "a.pt"


@fault(r"it is damaged, or holds code, which is never run")
def code_in_a_pickle(folder: Path) -> Path:
    return saved(folder / "a.pt", {"model": dit(), "hook": Runs(folder / "was_run")})


@fault(r"it is damaged, or holds code, which is never run")
def a_truncated_archive(folder: Path) -> Path:
    whole = saved(folder / "a.pt", dit()).read_bytes()
    (folder / "a.pt").write_bytes(whole[: len(whole) // 2])
    return folder / "a.pt"


@fault(r"is damaged, cut off or no .safetensors file")
def truncated_safetensors(folder: Path) -> Path:
    save_file(dit(), folder / "a.safetensors")
    whole = (folder / "a.safetensors").read_bytes()
    (folder / "a.safetensors").write_bytes(whole[:-1000])
    return folder / "a.safetensors"


@fault(r"is damaged, cut off or no .safetensors file")
def a_pickle_under_another_name(folder: Path) -> Path:
    return saved(folder / "a.pt", dit()).rename(folder / "a.safetensors")


@fault(r"is damaged or no .npz archive")
def an_archive_that_is_none(folder: Path) -> Path:
    (folder / "a.npz").write_bytes(b"PK\3\4 and nothing more")
    return folder / "a.npz"


@fault(r"holds object|holds .*, not numbers")
def objects_in_an_archive(folder: Path) -> Path:
    np.savez(folder / "a.npz", weights=np.array([{"a": 1}], dtype=object))
    return folder / "a.npz"


@fault(r"is damaged or no checkpoint of flax or torch")
def truncated_flax(folder: Path) -> Path:
    array = msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"\0" * 8)))
    (folder / "a.msgpack").write_bytes(msgpack.packb({"params": {"a": array}})[:-3])
    return folder / "a.msgpack"


@fault(r"is damaged or no checkpoint of flax or torch: an array float32 \(3,\) has 8 bytes")
def flax_with_a_false_header(folder: Path) -> Path:
    array = msgpack.ExtType(1, msgpack.packb(((3,), "float32", b"\0" * 8)))
    (folder / "a.msgpack").write_bytes(msgpack.packb({"params": {"a": array}}))
    return folder / "a.msgpack"


@fault(r"holds a list, not tensors by name")
def a_list(folder: Path) -> Path:
    return saved(folder / "a.pt", [torch.ones(2)])


@fault(r"holds no tensors at its top or under .*; it has epoch \(int\), args \(dict\)")
def settings_alone(folder: Path) -> Path:
    return saved(folder / "a.pt", {"epoch": 3, "args": {"lr": 1e-4}})


@fault(r"holds both ema and model weights; choose with --weights")
def two_sets_of_weights(folder: Path) -> Path:
    return saved(folder / "a.pt", {"model": dit(), "ema": dit()})


@fault(r"fit none of the layouts .*; it holds 2 tensors: conv1.weight \(64, 3, 7, 7\), fc.bias \(1000,\)")
def another_network(folder: Path) -> Path:
    return saved(folder / "a.pt", {"conv1.weight": torch.ones(64, 3, 7, 7), "fc.bias": torch.ones(1000)})


@fault(r"a width of 400 was never published, so its heads are unknown; published: \[384, 768, 1024, 1152\]")
def another_size(folder: Path) -> Path:
    return saved(folder / "a.pt", dit(**{"x_embedder.proj.weight": torch.ones(400, 4, 2, 2)}))


@fault(r"does not fill the network: trunk.blocks.0.mlp.expand.bias is missing$")
def a_tensor_missing(folder: Path) -> Path:
    return saved(folder / "a.pt", dit(**{"blocks.0.mlp.fc1.bias": None}))


@fault(r"blocks.0.extra.weight is no tensor of a DiT; is the file of another network\?")
def a_tensor_too_many(folder: Path) -> Path:
    return saved(folder / "a.pt", dit(**{"blocks.0.extra.weight": torch.ones(2)}))


@fault(r"does not fill the network: trunk.blocks.0.mlp.contract.weight is \(384, 1000\), not \(384, 1536\)")
def a_tensor_of_another_shape(folder: Path) -> Path:
    return saved(folder / "a.pt", dit(**{"blocks.0.mlp.fc2.weight": torch.ones(384, 1000)}))


@fault(r"pos_embed holds other positions than the sines and cosines")
def trained_positions(folder: Path) -> Path:
    return saved(folder / "a.pt", dit(pos_embed=torch.ones(1, 16, 384)))


@fault(r"two tensors have the same name apart from prefixes")
def the_same_tensor_twice(folder: Path) -> Path:
    return saved(folder / "a.pt", {"module.a": torch.ones(1), "a": torch.ones(1)})


@fault(r"model-2-of-2.safetensors is missing, a part of the checkpoint; download it too")
def a_missing_shard(folder: Path) -> Path:
    (sharded(folder) / "model-2-of-2.safetensors").unlink()
    return folder


@fault(r"points to '../secret.safetensors', which is no .safetensors file of its folder")
def a_shard_outside_of_the_folder(folder: Path) -> Path:
    return sharded(folder, {"pos_embed": "../secret.safetensors"})


@fault(r"points to '/etc/passwd', which is no .safetensors file of its folder")
def a_shard_that_is_no_weights(folder: Path) -> Path:
    return sharded(folder, {"pos_embed": "/etc/passwd"})


@fault(r"lacks another.weight, which the index says it holds; download it again")
def an_index_of_another_checkpoint(folder: Path) -> Path:
    return sharded(folder, {"another.weight": "model-1-of-2.safetensors"})


@fault(r"has no weight_map, which says where each tensor is; download it again")
def an_index_without_a_map(folder: Path) -> Path:
    (sharded(folder) / "model.safetensors.index.json").write_text("{}")
    return folder


@fault(r"config.json is no readable JSON")
def a_damaged_configuration(folder: Path) -> Path:
    (sharded(folder) / "config.json").write_text("{")
    return folder


@fault(r"holds quantised weights; convert the checkpoint in full precision instead")
def quantised_by_its_configuration(folder: Path) -> Path:
    (sharded(folder) / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    return folder


@fault(r"holds quantised weights; convert the checkpoint in full precision instead")
def quantised_by_its_tensors(folder: Path) -> Path:
    quantised = {"layers.0.q_proj.qweight": torch.ones(2, 2, dtype=torch.int32)}
    save_file(quantised, folder / "model.safetensors")
    return folder


@fault(r"holds quantised weights \(GGUF\)")
def a_gguf_file(folder: Path) -> Path:
    (folder / "a.gguf").write_bytes(b"GGUF")
    return folder / "a.gguf"


@fault(r"is a diffusers pipeline without transformer, unet, vqvae, vae; download it whole")
def half_a_pipeline(folder: Path) -> Path:
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_file_is_refused_in_one_message(name: str, tmp_path: Path) -> None:
    make, message = FAULTS[name]
    file, output = make(tmp_path), tmp_path / "out"
    with pytest.raises(UserError, match=message) as found:
        run(str(file), str(output))
    assert str(found.value).count("\n") <= 1
    assert len(str(found.value)) < 700
    assert not output.exists()
    assert not (tmp_path / "was_run").exists()


def test_there_are_more_than_twenty_kinds_of_wrong_files() -> None:
    assert len(FAULTS) > 20


def test_a_message_names_what_is_wrong_with_options_too(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pt", dit())
    given: tuple[tuple[dict[str, Any], str], ...] = (
        ({"layout": "dti"}, "unknown layout 'dti'; did you mean .*dit? choose"),
        ({"layout": "mdtv2"}, "in the layout of dit, not of mdtv2; use --layout dit"),
        ({"weights": "ema"}, "holds one set of weights; leave out --weights ema"),
    )
    for options, message in given:
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            run(str(file), str(tmp_path / "out"), **options)


def test_a_dry_run_reads_no_weights_and_says_what_is_needed(tmp_path: Path) -> None:
    state = dit()
    save_file(state, tmp_path / "a.safetensors")
    found = dry_run(str(tmp_path / "a.safetensors"), dtype="bf16")
    n = sum(value.numel() for name, value in state.items() if name != "pos_embed")
    assert f"{n:,} in 21 tensors" in found
    assert f"{2 * n / 1e9:,.3f} GB\n" in found
    assert "stabilityai/sd-vae-ft-ema" in found


def test_an_archive_may_hold_arrays_of_flax_in_parts(tmp_path: Path) -> None:
    from maskgen.checkpoints.convert.files import read_state

    def array(values: list[float]) -> Any:
        return msgpack.ExtType(1, msgpack.packb(((len(values),), "float32", np.array(values, np.float32).tobytes())))

    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 2}}
    chunked["chunks"] = {"0": array([1, 2, 3]), "1": array([4])}  # type: ignore[assignment]
    (tmp_path / "a.msgpack").write_bytes(msgpack.packb({"params": {"layer": {"kernel": chunked}}}))
    assert read_state(tmp_path / "a.msgpack")["layer/kernel"].tolist() == [[1, 2], [3, 4]]
    np.savez(tmp_path / "b.npz", **{"layer/kernel": np.eye(2, dtype=np.float32)})
    assert zipfile.is_zipfile(tmp_path / "b.npz")
    assert read_state(tmp_path / "b.npz")["layer/kernel"].tolist() == [[1, 0], [0, 1]]


def test_averages_without_names_are_named_by_the_weights(tmp_path: Path) -> None:
    from maskgen.checkpoints.convert.files import read_state

    model = {"backbone.a": torch.ones(2), "backbone.rotary.inv_freq": torch.ones(3), "backbone.b": torch.ones(4)}
    tree = {"state_dict": model, "ema": {"decay": 0.9, "shadow_params": [torch.zeros(2), torch.zeros(4)]}}
    found = read_state(saved(tmp_path / "a.ckpt", tree), "ema")
    assert [float(value.sum()) for value in found.values()] == [0, 3, 0]
    tree["ema"]["shadow_params"] = [torch.zeros(5)]  # type: ignore[index]
    with pytest.raises(UserError, match="the averages do not fit the names of the weights; use --weights model"):
        read_state(saved(tmp_path / "a.ckpt", tree), "ema")

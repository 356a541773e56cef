"""Files and folders of published checkpoints, read without ever running what is in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from maskgen.checkpoints.convert.arrays import read_msgpack, read_npz_tensors
from maskgen.checkpoints.convert.published import Published, Tree, WeightsKind
from maskgen.checkpoints.convert.torch_files import read_torch
from maskgen.checkpoints.stored import StoredTensors
from maskgen.core.errors import UserError
from maskgen.core.files import read_json
from maskgen.core.terminal import first_few, printable

NESTS: Mapping[WeightsKind, tuple[str, ...]] = {
    "ema": ("ema", "model_ema", "ema_params", "ema_state_dict"),
    "model": ("model", "state_dict", "model_state_dict", "module", "params", "target"),
}
"""Keys under which training programs nest weights; `module` is DeepSpeed's, `params` and `target` are flax's."""

ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npz", ".msgpack", ".flax")
FLAX = (".msgpack", ".flax")
WHOLE = ("model", "diffusion_pytorch_model", "pytorch_model", "flax_model")
"""Names of weights in a Hugging Face folder, in order of preference."""

NETWORKS = ("transformer", "unet", "vqvae", "vae")
"""Folders of the network in a diffusers pipeline, in order of preference."""

_PREFIXES = re.compile(r"^(?:(?:_orig_mod|module|model|dit)\.)+")
_QUANTISED = re.compile(r"\.(qweight|qzeros|absmax|quant_map|weight_scale|weight_scale_inv|SCB)(\.|$)")


def read_published(path: Path, weights: WeightsKind | None = None, image_size: int | None = None) -> Published:
    """A published checkpoint: a file, or a folder of Hugging Face or diffusers.

    Args:
        path: .pt, .pth, .ckpt, .bin, .safetensors, .npz or .msgpack (flax), or a folder with such and a config.json.
        weights: see `_unnested`.
        image_size: kept in what is returned.

    Raises:
        UserError: nothing there, more than tensors and settings in it, quantised weights, shards that are missing, or
            weights that must be chosen or are not there.
    """
    if path.is_dir():
        found = _of_folder(path, weights)
    elif path.is_file():
        found = Published(read_state(path, weights), files=(path,))
    else:
        raise UserError(f"no file {path}; download the public checkpoint first")
    if "quantization_config" in found.config or any(_QUANTISED.search(name) for name in found.state):
        raise UserError(f"{path} holds quantised weights; convert the checkpoint in full precision instead")
    return replace(found, image_size=image_size)


def read_state(path: Path, weights: WeightsKind | None = None) -> Mapping[str, Tensor]:
    """The tensors of one file by their names, prefixes of wrappers stripped; see `read_published`."""
    if path.suffix == ".gguf":
        raise UserError(f"{path} holds quantised weights (GGUF); convert the checkpoint in full precision instead")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; download it again")
    if path.suffix == ".safetensors":
        if weights is not None:
            raise UserError(f"{path} holds one set of weights; leave out --weights {weights}")
        return stripped(StoredTensors.of(path))
    tree = _read_tree(path)
    nested = tree.get("state")
    if isinstance(nested, Mapping) and isinstance(nested.get("model"), Mapping):  # Composer's
        tree = nested
    chosen = _unnested(tree, weights, path)
    state = _flat(chosen["params"] if [*chosen] == ["params"] else chosen)
    if not state:
        keys = ", ".join(key for keys in NESTS.values() for key in keys)
        raise UserError(f"{path} holds no tensors at its top or under {keys}; it has {_seen(tree)}")
    return stripped(state)


def stripped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors without the prefixes that wrappers of a network put before their names.

    Raises:
        UserError: two tensors would have one name.
    """
    names = {_PREFIXES.sub("", name): name for name in state}
    if len(names) != len(state):
        raise UserError("two tensors have the same name apart from prefixes (module., model.); is it one checkpoint?")
    if isinstance(state, StoredTensors):
        return state.renamed(names)
    return {new: state[old] for new, old in names.items()}


def _read_tree(path: Path) -> Tree:
    if path.suffix == ".npz":
        return read_npz_tensors(path)
    if path.suffix in FLAX or (path.suffix == ".ckpt" and not _is_torch(path)) or not path.suffix:
        return read_msgpack(path)
    return read_torch(path)


def _is_torch(path: Path) -> bool:
    """Whether a file is a zip archive or a pickle, as torch writes them."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def _unnested(tree: Tree, weights: WeightsKind | None, path: Path) -> Tree:
    """The weights in a training checkpoint.

    Args:
        tree: of the file.
        weights: `ema` for the average, `model` for the last weights; None where the file has one set only.
        path: for messages.

    Raises:
        UserError: a choice missing or impossible.
    """
    found = {name: key for name, keys in NESTS.items() for key in keys if isinstance(tree.get(key), Mapping)}
    if not found:
        if weights is not None:
            raise UserError(f"{path} holds one set of weights; leave out --weights {weights}")
        return tree
    if weights is None and len(found) > 1:
        raise UserError(f"{path} holds both {' and '.join(found)} weights; choose with --weights")
    if weights is not None and weights not in found:
        raise UserError(f"{path} holds no {weights} weights, only {' and '.join(found)}")
    chosen: Tree = tree[next(iter(found.values())) if weights is None else found[weights]]
    if isinstance(chosen.get("shadow_params"), list):
        if "model" not in found:
            raise UserError(f"{path} holds an average without names and no weights that name it; use --weights model")
        return _named(chosen["shadow_params"], _flat(tree[found["model"]]), path)
    return chosen


def _named(shadow: list[Tensor], state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Averages that are stored as a list in the order of the network's parameters, by name.

    Entries of the state that are no parameters (buffers) have no average and keep their value.

    Raises:
        UserError: the list does not fit the state.
    """
    named, left = dict(state), iter(shadow)
    value = next(left, None)
    for name, old in state.items():
        if value is not None and old.shape == value.shape:
            named[name] = value
            value = next(left, None)
    if value is not None:
        raise UserError(f"{path}: the averages do not fit the names of the weights; use --weights model")
    return named


def _flat(tree: Tree) -> dict[str, Tensor]:
    """Tensors by name; those of a tree of flax by their path, with slashes between its levels."""
    found = {str(name): value for name, value in tree.items() if isinstance(value, Tensor)}
    if not found:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                found |= {f"{name}/{path}": tensor for path, tensor in _flat(value).items()}
    return found


def _of_folder(folder: Path, weights: WeightsKind | None) -> Published:
    """A folder of Hugging Face: its weights, whole or in shards, and its config.json."""
    if (folder / "model_index.json").is_file():
        part = next((folder / name for name in NETWORKS if (folder / name).is_dir()), None)
        if part is None:
            raise UserError(f"{folder} is a diffusers pipeline without {', '.join(NETWORKS)}; download it whole")
        return replace(_of_folder(part, weights), folder=folder)
    config = _config(folder / "config.json")
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is not None:
        homes = _shards(index)
        state = stripped(StoredTensors.of_shards(homes))
        return Published(state, config, folder, tuple(sorted(set(homes.values()))))
    path = _weights_in(folder)
    return Published(read_state(path, weights), config, folder, (path,))


def _config(path: Path) -> Mapping[str, object]:
    try:
        return read_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable JSON: {error}") from None


def _weights_in(folder: Path) -> Path:
    """The only file with weights, or the one of Hugging Face's name."""
    files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
    known = [path for stem in WHOLE for path in files if path.stem == stem]
    if known:
        return known[0]
    if len(files) != 1:
        there = first_few([path.name for path in files or sorted(folder.iterdir())]) or "nothing"
        raise UserError(f"{folder} holds {'several' if files else 'no'} files of weights ({there}); give one file")
    return files[0]


def _shards(index: Path) -> dict[str, Path]:
    """Tensor -> file of a checkpoint in several files.

    Raises:
        UserError: no readable index, a file outside of the folder, or one that is missing.
    """
    homes = _config(index).get("weight_map")
    if not isinstance(homes, Mapping) or not homes:
        raise UserError(f"{index} has no weight_map, which says where each tensor is; download it again")
    for name in sorted(set(map(str, homes.values()))):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise UserError(f"{index} points to {printable(name)!r}, which is no .safetensors file of its folder")
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name} is missing, a part of the checkpoint; download it too")
    return {str(name): index.parent / str(file) for name, file in homes.items()}


def _seen(tree: Tree) -> str:
    return printable(first_few([f"{key} ({type(value).__name__})" for key, value in tree.items()]) or "nothing")

"""Public checkpoint files, read without ever running what is in them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from maskgen.core.errors import UserError

Weights = Literal["ema", "model"]
NAMES: Mapping[Weights, tuple[str, ...]] = {"ema": ("ema", "model_ema"), "model": ("model", "state_dict")}
_SCALARS = {type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")}
SETTINGS: list[Any] = [
    argparse.Namespace,
    *((PurePosixPath, f"pathlib.{name}") for name in ("PosixPath", "PurePosixPath", "Path")),
    *((PureWindowsPath, f"pathlib.{name}") for name in ("WindowsPath", "PureWindowsPath")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *_SCALARS,
]
"""What the settings of a training run may hold beside plain values: paths that touch no disk, numbers of NumPy."""

_PREFIXES = re.compile(r"^(?:(?:_orig_mod|module|model|dit)\.)+")


def read_state(path: Path, weights: Weights | None = None) -> dict[str, Tensor]:
    """The tensors of a .pt, .pth or .safetensors file by their names, prefixes of wrappers stripped.

    Args:
        weights: `ema` for the average in a training checkpoint, `model` for the last weights; None where the file has
            one set only.

    Raises:
        UserError: no such file, one with more than tensors and settings, or a choice missing or impossible.
    """
    tree = _load(path)
    nested = tree.get("state")
    if isinstance(nested, Mapping) and isinstance(nested.get("model"), Mapping):  # Composer's
        tree = nested
    found = {name: key for name, keys in NAMES.items() for key in keys if isinstance(tree.get(key), Mapping)}
    if found:
        if weights is None and len(found) > 1:
            raise UserError(f"{path} holds both {' and '.join(found)} weights; choose with --weights")
        if weights is not None and weights not in found:
            raise UserError(f"{path} holds no {weights} weights, only {' and '.join(found)}")
        tree = tree[next(iter(found.values())) if weights is None else found[weights]]
    elif weights is not None:
        raise UserError(f"{path} holds one set of weights; leave out --weights {weights}")
    state = {_PREFIXES.sub("", str(name)): value for name, value in tree.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(
            f"{path} holds no tensors at its top or under {', '.join(key for keys in NAMES.values() for key in keys)}"
        )
    return state


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"no file {path}; download the public checkpoint first")
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        with torch.serialization.safe_globals(SETTINGS):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged or hostile file can raise anything; torch's own message advises to unpickle it
        raise UserError(
            f"{path} cannot be read as tensors and plain settings: it is damaged, or holds code, which is never run"
        ) from None
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__}, not tensors by name")
    return tree

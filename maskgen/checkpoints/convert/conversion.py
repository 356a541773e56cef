"""`maskgen convert`: a published checkpoint -> a maskgen checkpoint."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import MODEL, write_checkpoint
from maskgen.checkpoints.convert.converter import CONVERTERS, Converter
from maskgen.checkpoints.convert.files import Weights, read_state
from maskgen.core.errors import UserError, unknown
from maskgen.core.files import local_path
from maskgen.core.yaml_reader import read_yaml
from maskgen.models import MODELS
from maskgen.recipes.load import load_recipe, parse_recipe


def run(file: str, output: str, layout: str | None = None, weights: Weights | None = None) -> Path:
    """Read a published file, check that it fills the network exactly, and write a checkpoint; returns where.

    Args:
        file: .pt, .pth or .safetensors.
        output: directory of the checkpoint.
        layout: name of a converter; None to recognise it from names and shapes of the tensors.
        weights: which weights to take from a file that holds both.

    Raises:
        UserError: a file that cannot be read safely or is of another network, or a directory in use.
    """
    state = read_state(local_path(file), weights)
    name = _layout(state, layout, file)
    converter = CONVERTERS.build(name)
    tensors = converter.tensors(state)
    spec = converter.spec(state)
    side = math.isqrt(state[converter.positions].shape[-2])
    n_classes = len(tensors["labels.weight"]) - converter.n_null
    _check(spec, tensors, side, n_classes)
    _check_tokenizer(converter, spec, tensors, file)
    recipe = parse_recipe(read_yaml(load_recipe(converter.recipe(spec)).dump()) | {"model": spec})
    info: dict[str, object] = {
        "step": 0, "classes": [str(label) for label in range(n_classes)],
        "image_shape": (3, *(side * converter.pixels,) * 2), "seconds": 0.0,
        "device": "cpu", "maskgen": importlib.metadata.version("maskgen"), "torch": torch.__version__,
        "command": f"maskgen convert {Path(file).name} --layout {name}", "summary": f"{recipe.summary}, converted",
    }  # fmt: skip
    path = local_path(output)
    write_checkpoint(path, recipe, {MODEL: tensors}, info)
    return path


def _layout(state: Mapping[str, Tensor], layout: str | None, file: str) -> str:
    """The layout of a file, which must be the given one if one is given.

    Raises:
        UserError: no layout fits, or another one than the given does.
    """
    if layout is not None and layout not in CONVERTERS.names():
        raise UserError(unknown("layout", layout, CONVERTERS.names()))
    found = [name for name in CONVERTERS.names() if CONVERTERS.build(name).recognises(state)]
    if layout is None and len(found) != 1:
        fits = "several of the layouts" if found else "none of the layouts"
        choices = ", ".join(found or CONVERTERS.names())
        raise UserError(f"the tensors of {file} fit {fits} {choices}; choose one with --layout")
    if layout is not None and found and layout not in found:
        raise UserError(f"{file} holds weights in the layout of {found[0]}, not of {layout}; use --layout {found[0]}")
    return layout or found[0]


def _check_tokenizer(
    converter: Converter, spec: Mapping[str, object], tensors: Mapping[str, Tensor], file: str
) -> None:
    """Hold the width of a token against that of the recipe's tokenizer.

    Raises:
        UserError: it is another one, so the file belongs to another autoencoder.
    """
    width = tensors["embedding.weight"].shape[1]
    if width != converter.token_width:
        raise UserError(
            f"{file} was trained on tokens of {width} numbers, but the autoencoder of {converter.recipe(spec)} gives "
            f"{converter.token_width}; networks on other autoencoders (DC-AE) cannot be converted"
        )


def _check(spec: Mapping[str, object], tensors: Mapping[str, Tensor], side: int, n_classes: int) -> None:
    """Hold the tensors against the network, which takes no memory.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    with torch.device("meta"):
        network = MODELS.build(
            spec, vocab_size=0, token_width=tensors["embedding.weight"].shape[1], grid=(side, side), n_classes=n_classes
        )
    needed = {key: value.shape for key, value in network.state_dict().items()}
    given = {key: value.shape for key, value in tensors.items()}
    wrong = sorted(key for key in needed.keys() | given.keys() if needed.get(key) != given.get(key))
    if wrong:
        raise UserError(
            f"the file does not fill the network: {', '.join(wrong[:3])} of {len(wrong)} are missing or differ in shape"
        )

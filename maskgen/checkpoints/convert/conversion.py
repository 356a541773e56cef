"""`maskgen convert`: a public checkpoint becomes one of ours."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import MODEL, write_checkpoint
from maskgen.checkpoints.convert.dit import dit, dit_spec
from maskgen.checkpoints.convert.files import Weights, read_state
from maskgen.checkpoints.convert.mar import emigm, emigm_spec, mar, mar_spec
from maskgen.checkpoints.convert.maskdit import maskdit, maskdit_spec
from maskgen.checkpoints.convert.mdtv2 import mdtv2, mdtv2_spec
from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.yaml_reader import read_yaml
from maskgen.models import MODELS
from maskgen.recipes.load import load_recipe, parse_recipe

Name = Literal["dit", "mdtv2", "maskdit", "mar", "emigm"]


@dataclass(frozen=True)
class Layout:
    """A public layout: its tensors under our names, the network they fit, and the recipe whose the rest is.

    `positions` names a tensor (1, L, D) there; `n_null` rows of the labels here are for no class.
    """

    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    spec: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    recipe: str
    positions: str = "pos_embed"
    n_null: int = 1


LAYOUTS: Mapping[Name, Layout] = {
    "dit": Layout(dit, dit_spec, "image/imagenet-dit-xl"),
    "mdtv2": Layout(mdtv2, mdtv2_spec, "image/imagenet-mdtv2-xl"),
    "maskdit": Layout(maskdit, maskdit_spec, "image/imagenet-maskdit-xl"),
    "mar": Layout(mar, mar_spec, "image/imagenet-mar-b", "diffusion_pos_embed_learned", 0),
    "emigm": Layout(emigm, emigm_spec, "image/imagenet-emigm-b", "diffusion_pos_embed_learned", 0),
}
AUTOENCODER_SIDE = 8
"""Pixels a latent stands for, on a side."""


def run(layout: Name, file: str, output: str, weights: Weights | None = None) -> Path:
    """Read a public file, check that it fills the network exactly, and write a checkpoint; returns where.

    Raises:
        UserError: a file that cannot be read safely or is of another network, or a directory in use.
    """
    found = LAYOUTS[layout]
    state = read_state(local_path(file), weights)
    tensors = found.convert(state)
    spec = found.spec(state)
    side, n_classes = math.isqrt(state[found.positions].shape[-2]), len(tensors["labels.weight"]) - found.n_null
    _check(spec, tensors, side, n_classes)
    recipe = parse_recipe(read_yaml(load_recipe(found.recipe).dump()) | {"model": spec})
    shape = (3, *(side * 2 * AUTOENCODER_SIDE,) * 2)
    info: dict[str, Any] = {
        "step": 0, "classes": [str(label) for label in range(n_classes)], "image_shape": shape, "seconds": 0.0,
        "device": "cpu", "maskgen": importlib.metadata.version("maskgen"), "torch": torch.__version__,
        "command": f"maskgen convert {layout} {Path(file).name}", "summary": f"{recipe.summary}, converted",
    }  # fmt: skip
    path = local_path(output)
    write_checkpoint(path, recipe, {MODEL: tensors}, info)
    return path


def _check(spec: Mapping[str, Any], tensors: Mapping[str, Tensor], side: int, n_classes: int) -> None:
    """Hold the tensors against the network, which takes no memory.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    with torch.device("meta"):
        network = MODELS.build(
            spec, vocab_size=0, token_width=tensors["embedding.weight"].shape[1], grid=(side, side), n_classes=n_classes
        )
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    given = {key: value.shape for key, value in tensors.items()}
    wrong = sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key))
    if wrong:
        raise UserError(
            f"the file does not fill the network: {', '.join(wrong[:3])} of {len(wrong)} are missing or unlike"
        )

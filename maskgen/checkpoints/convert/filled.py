"""Converted tensors held against their network, and folders of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskgen.checkpoints.convert.converter import CONVERTERS, DiffusersFolder
from maskgen.checkpoints.convert.published import Published
from maskgen.core.errors import UserError
from maskgen.core.files import obey_umask, write_json
from maskgen.core.terminal import first_few

WEIGHTS, CONFIG, SOURCE = "diffusion_pytorch_model.safetensors", "config.json", "source.json"


def check_filled(network: nn.Module, shapes: Mapping[str, Tensor], file: str) -> None:
    """Hold tensors against the network they are for, both on the meta device.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    needed = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in shapes.items()}
    faults = [f"{key} is missing" for key in sorted(needed.keys() - given.keys())]
    faults += [f"{key} is left over" for key in sorted(given.keys() - needed.keys())]
    faults += [
        f"{key} is {given[key]}, not {needed[key]}"
        for key in sorted(needed.keys() & given.keys())
        if needed[key] != given[key]
    ]
    if faults:
        raise UserError(f"{file} does not fill the network: {first_few(faults)}")


def write_folder(found: Published, name: str, target: DiffusersFolder, path: Path, dtype: torch.dtype | None) -> Path:
    """Write an autoencoder as a folder that diffusers loads; source.json remembers where it comes from.

    Raises:
        UserError: the weights do not fill it, or the directory is in use.
    """
    import diffusers

    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{path} is not an empty directory; choose another one")
    converter = CONVERTERS.build(name)
    with torch.device("meta"):
        network = getattr(diffusers, target.kind).from_config(dict(target.config))
    file = found.files[0].name
    check_filled(network, converter.tensors(found.headers()), file)
    tensors = {key: value.to(dtype or value.dtype).contiguous() for key, value in converter.tensors(found).items()}
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / WEIGHTS)
    obey_umask(path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps({"_class_name": target.kind, **target.config}, indent=1), encoding="utf-8")
    write_json(path / SOURCE, {"name": file, "layout": name, "sha256": found.digest()})
    return path

"""Networks that are built without weights and filled from a file, so that their weights are in memory once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from maskgen.checkpoints.stored import StoredTensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats of weights, as the command line names them."""

MATRICES = (nn.Linear, nn.Conv2d)
"""Layers whose weights a pipeline stores in its own number format."""


@contextmanager
def without_weights(is_on: bool = True) -> Iterator[None]:
    """Context in which parameters of new networks are on the meta device; buffers are computed as usual."""
    if not is_on:
        yield
        return
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


def cast_matrices(network: nn.Module, dtype: torch.dtype | None) -> None:
    """Weights of linear layers and convolutions in another number format; None leaves them."""
    if dtype is not None:
        for module in network.modules():
            if isinstance(module, MATRICES):
                module.to(dtype)


Where = Callable[[str], torch.device]
"""Name of a parameter -> device that it is on; the meta device leaves it in the file."""


def on_cpu(_name: str) -> torch.device:
    """A `Where`: everything on the CPU."""
    return torch.device("cpu")


def fill_mapped(
    network: nn.Module, stored: StoredTensors, dtype: torch.dtype | None = None, where: Where = on_cpu
) -> None:
    """Fill a network that was built `without_weights`, tensor by tensor.

    Args:
        network: its parameters are replaced by new ones, in the same layout of memory.
        stored: all of its parameters and buffers.
        dtype: of weights of linear layers and convolutions; all other numbers are float32.
        where: the device of each parameter.

    Raises:
        RuntimeError: a tensor is missing, left over or of another size.
    """
    needed = network.state_dict()
    headers = stored.headers()
    if differing := sorted(needed.keys() ^ headers.keys()):
        raise RuntimeError(f"{differing[0]} is {'missing' if differing[0] in needed else 'not one of its weights'}")
    if wrong := [name for name, value in headers.items() if value.shape != needed[name].shape]:
        name = wrong[0]
        raise RuntimeError(f"size mismatch for {name}: {tuple(headers[name].shape)}, not {tuple(needed[name].shape)}")
    made: dict[nn.Parameter, nn.Parameter] = {}
    for prefix, module in network.named_modules():
        place = f"{prefix}." if prefix else ""
        number = dtype if dtype is not None and isinstance(module, MATRICES) else torch.float32
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in made:  # one that two modules share is stored under its first name
                device = where(place + name)
                made[parameter] = _empty(parameter, number, device)
                if device.type != "meta":
                    made[parameter].data.copy_(stored[place + name])
            setattr(module, name, made[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            if place + name in headers:
                buffer.copy_(stored[place + name])


def _empty(parameter: nn.Parameter, number: torch.dtype, device: torch.device) -> nn.Parameter:
    """A parameter on a device, its strides those of another."""
    made = torch.empty_like(parameter, dtype=number, device=device, requires_grad=False)
    return nn.Parameter(made, requires_grad=parameter.requires_grad)

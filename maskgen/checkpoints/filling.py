"""Networks that are built without weights and filled from a file, so that their weights are in memory once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maskgen.checkpoints.stored import StoredTensors

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


def fill_mapped(network: nn.Module, stored: StoredTensors, dtype: torch.dtype | None = None) -> None:
    """Fill a network that was built `without_weights`, tensor by tensor.

    Args:
        network: parameters on the meta device are made on the CPU, in their layout of memory.
        stored: all of its parameters and buffers.
        dtype: of weights of linear layers and convolutions; all other numbers are float32.

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
                made[parameter] = _filled(parameter, stored[place + name], number)
            setattr(module, name, made[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            if place + name in headers:
                buffer.copy_(stored[place + name])


def _filled(parameter: nn.Parameter, value: Tensor, number: torch.dtype) -> nn.Parameter:
    """A parameter on the CPU with the numbers of a tensor, its strides those of the old one."""
    made = torch.empty_like(parameter, dtype=number, device="cpu", requires_grad=False)
    made.copy_(value)
    return nn.Parameter(made, requires_grad=parameter.requires_grad)

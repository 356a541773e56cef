"""Device, precision and process rank: the only file that says "cuda"."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from typing import Literal, TypeVar

import torch
from torch import nn

from maskgen.core.errors import UserError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["no", "bf16"]
T = TypeVar("T")


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device of a name: `auto` (CUDA if there is a device), `cpu`, `cuda`, `cuda:N` or `mps`.

    `cuda` is the device of this process's rank.

    Raises:
        UserError: unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(_unknown(name)) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(_unknown(name))
    is_there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if not is_there[device.type]:
        raise UserError(f"device {device} is not available on this machine or in this build of torch; use cpu or auto")
    return _numbered(device) if device.type == "cuda" else device


def numbered_device(place: int | str | torch.device) -> torch.device:
    """As `pick_device`, also by the number of a CUDA device, which is how accelerate and transformers name them."""
    return pick_device(f"cuda:{place}" if isinstance(place, int) else place)


def _unknown(name: object) -> str:
    return f"unknown device {str(name)!r}; choose from auto, cpu, cuda, cuda:N, mps"


def _numbered(device: torch.device) -> torch.device:
    """A CUDA device with its index."""
    if device == torch.device(device.type):  # no number given
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.index >= torch.cuda.device_count():
        raise UserError(f"device {device}: this machine has {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return device


def device_of(network: object, default: torch.device = torch.device("cpu")) -> torch.device:
    """Where the tensors of a network are; `default` for one without any, or a plain function."""
    if not isinstance(network, nn.Module):
        return default
    return next((tensor.device for tensor in chain(network.parameters(), network.buffers())), default)


def pick_precision(precision: Literal["auto", "no", "bf16"], device: torch.device) -> Precision:
    """Mixed precision on GPUs only: on a CPU bf16 is slower than float32 by orders of magnitude."""
    if device.type == "cpu":
        return "no"
    if precision == "auto":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return precision


def has_cuda() -> bool:
    return torch.cuda.is_available()


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes; the tensor itself in a single one."""
    if not _is_shared(x):
        return x
    x = x.clone()
    torch.distributed.all_reduce(x)
    return x


def mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes; the tensor itself in a single one."""
    return sum_over_ranks(x) / torch.distributed.get_world_size() if _is_shared(x) else x


def from_first_rank(x: torch.Tensor) -> torch.Tensor:
    """The first process's tensor, in all of them."""
    if not _is_shared(x):
        return x
    x = x.clone()
    torch.distributed.broadcast(x, 0)
    return x


def my_share(items: Sequence[T]) -> list[T]:
    """This process's consecutive part of what all processes share; all of it in a single one."""
    if not _is_distributed():
        return list(items)
    from accelerate import PartialState

    with PartialState().split_between_processes(list(items)) as part:
        return list(part)


def is_first_rank() -> bool:
    """Whether this process is the one that writes."""
    return not _is_distributed() or torch.distributed.get_rank() == 0


def gather_over_ranks(x: torch.Tensor) -> list[torch.Tensor]:
    """A tensor of every process, in the order of their ranks, on the CPU; lengths of the first dimension may differ.

    A process that has nothing gives a tensor of length 0, of whatever further dimensions.
    """
    if not _is_distributed():
        return [x]
    world = torch.distributed.get_world_size()
    place = pick_device() if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    sizes = torch.zeros(world, 2, dtype=torch.int64, device=place)
    width = x[0].numel() if len(x) else 0
    sizes[torch.distributed.get_rank()] = torch.tensor([len(x), width])
    torch.distributed.all_reduce(sizes)
    longest, width = (int(size) for size in sizes.amax(0))
    padded = torch.zeros(longest, width, dtype=x.dtype, device=place)
    if len(x):
        padded[: len(x)] = x.reshape(len(x), width).to(place)
    parts = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    flat = [part[: int(size)].cpu() for part, size in zip(parts, sizes[:, 0], strict=True)]
    return [part.flatten() for part in flat] if x.ndim == 1 else flat


class _RowsOfRanks(torch.autograd.Function):
    """Forward gathers, backward sums the gradients of all processes for this one's rows."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return sum_over_ranks(gradients[0])[torch.distributed.get_rank()]


def rows_of_ranks(x: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """The tensors of all processes, equal in shape, joined along `dim`; the tensor itself in a single one.

    The gradient of a loss that all processes compute alike is that of their sum, so with gradients averaged over
    processes, as in training, it is the gradient of the one loss.
    """
    if not _is_shared(x):
        return x
    gathered: torch.Tensor = _RowsOfRanks.apply(x)
    return torch.cat(gathered.unbind(), dim)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_shared(x: torch.Tensor) -> bool:
    """Whether other processes have one too; not on the meta device, where one process may count operations alone."""
    return _is_distributed() and not x.is_meta

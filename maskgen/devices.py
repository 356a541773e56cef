"""Device, precision and process rank: the only file that says "cuda"."""

from __future__ import annotations

import os
from typing import Literal

import torch

from maskgen.errors import UserError

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["no", "bf16"]


def pick_device(name: str = "auto") -> torch.device:
    """The device for a name: `auto` takes CUDA where there is one.

    Raises:
        UserError: unknown name, or CUDA asked for where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {name!r}; choose from auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but this machine or this build of torch has none; use cpu or auto")
    is_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if is_cuda else torch.device("cpu")


def pick_precision(wanted: Literal["auto", "no", "bf16"], device: torch.device) -> Precision:
    """Mixed precision on GPUs only: on a CPU bf16 is slower than float32 by orders of magnitude."""
    if device.type == "cpu":
        return "no"
    if wanted == "auto":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return wanted


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


def _is_shared(x: torch.Tensor) -> bool:
    """Whether other processes have one too; not on the meta device, where one process may count operations alone."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and not x.is_meta

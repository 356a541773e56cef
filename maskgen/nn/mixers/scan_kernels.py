"""Which implementation of a selective scan runs: PyTorch's operations, or the CUDA kernels of mamba-ssm."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal

from torch import Tensor

from maskgen.nn.mixers.scan import CHUNK, selective_scan, state_space_dual

ScanBackend = Literal["auto", "torch", "mamba_ssm"]


def has_kernels(backend: ScanBackend, x: Tensor) -> bool:
    """Whether the kernels of mamba-ssm compute a scan of x.

    Raises:
        ValueError: `mamba_ssm` without the package, or on another device than CUDA.
    """
    is_installed = _is_installed()
    if backend == "mamba_ssm" and not is_installed:
        raise ValueError("mixer.backend: mamba_ssm is not installed; pip install maskgen[mamba], or use auto or torch")
    if backend == "mamba_ssm" and not x.is_cuda:
        raise ValueError(f"mixer.backend: mamba_ssm has CUDA kernels only, this is {x.device}; use auto or torch")
    return backend != "torch" and is_installed and x.is_cuda


@cache
def _is_installed() -> bool:
    """Looked up once: a search of all folders of packages takes longer than a scan of few tokens."""
    return importlib.util.find_spec("mamba_ssm") is not None


def run_selective(x: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor, backend: ScanBackend) -> Tensor:
    """`selective_scan` by the backend."""
    if not has_kernels(backend, x):
        return selective_scan(x, delta, rates, b, c)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(x.mT.contiguous(), delta.mT.contiguous(), rates, b.mT.contiguous(), c.mT.contiguous())
    return y.mT


def run_dual(x: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor, backend: ScanBackend) -> Tensor:
    """`state_space_dual` by the backend."""
    if not has_kernels(backend, x):
        return state_space_dual(x, delta, rates, b, c)
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    y: Tensor = mamba_chunk_scan_combined(x, delta, rates, b[:, :, None], c[:, :, None], chunk_size=CHUNK)
    return y

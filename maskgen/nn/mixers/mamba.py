"""Bidirectional Mamba: the block of Vision Mamba, and that of MaskMamba."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.layers.fused import FusedLinear
from maskgen.nn.mixers.attention import AttentionSettings
from maskgen.nn.mixers.base import AttentionMask, LayerCache, TokenMixer
from maskgen.nn.mixers.registry import MIXERS, Mixer, MixerPlace, MixerTraits
from maskgen.nn.mixers.scan_kernels import ScanBackend, run_dual, run_selective

ScanKind = Literal["selective", "ssd"]


@dataclass(frozen=True)
class MambaSettings:
    """Sizes of a bidirectional Mamba layer.

    Args:
        width: D.
        expand: inner width over D.
        d_state: N, width of a state of a channel.
        kernel: of the depthwise convolutions.
        scan: `selective`, a decay for each channel and state (Mamba); or `ssd`, one for a head (Mamba-2), which is
            matrix products and faster.
        head_width: P, channels of a head of `ssd`.
        backend: `torch`; `mamba_ssm`, its CUDA kernels; or `auto`, these where they run.
        dropout: of the output.
        has_bias: of the linear layers.

    Raises:
        ValueError: sizes that are not possible.
    """

    width: int
    expand: int = 2
    d_state: int = 16
    kernel: int = 4
    scan: ScanKind = "selective"
    head_width: int = 32
    backend: ScanBackend = "auto"
    dropout: float = 0.0
    has_bias: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.expand, self.d_state, self.kernel, self.head_width) < 1:
            raise ValueError(
                "width, expand, d_state, kernel and head_width must be positive, got "
                f"{self.width}, {self.expand}, {self.d_state}, {self.kernel} and {self.head_width}"
            )

    @property
    def inner(self) -> int:
        """Width of the expanded tokens."""
        return self.expand * self.width


class SelectiveSSM(nn.Module):
    """A state space model whose steps, inputs and outputs depend on the token: (B, L, E) -> (B, L, E), causal.

    delta, B, C = linear(x); y = scan(x, softplus(delta + bias), -exp(log_rates), B, C) + skip x. Initial rates are
    1 to N (S4D-real; 1 to 16 by turns for the heads of `ssd`), steps log-uniform in [1e-3, 1e-1]. In float32 at least.

    Args:
        width: E.
        settings: of the layer.
    """

    def __init__(self, width: int, settings: MambaSettings) -> None:
        super().__init__()
        self.settings, n, is_dual = settings, settings.d_state, settings.scan == "ssd"
        if is_dual and width % settings.head_width:
            raise ValueError(f"head_width must divide the width of the scan, {width}, got {settings.head_width}")
        self.rank = width // settings.head_width if is_dual else math.ceil(settings.width / 16)
        self.select = FusedLinear(width, (self.rank, n, n), bias=False)  # steps, B and C
        self.step = None if is_dual else nn.Parameter(torch.empty(width, self.rank))
        n_steps = self.rank if is_dual else width
        self.step_bias = nn.Parameter(torch.empty(n_steps))
        rates = 1 + torch.arange(n_steps) % 16 if is_dual else torch.arange(1, n + 1).expand(width, n)
        self.log_rates = nn.Parameter(rates.float().log())
        self.skip = nn.Parameter(torch.ones(width))
        if self.step is not None:
            nn.init.uniform_(self.step, -(self.rank**-0.5), self.rank**-0.5)
        steps = torch.empty(n_steps).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
        with torch.no_grad():
            self.step_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus^-1

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) -> (B, L, E); y_t depends on x up to t."""
        settings, given = self.settings, x.dtype
        delta, b, c = self.select(x).split([self.rank, settings.d_state, settings.d_state], -1)
        kind = torch.promote_types(given, torch.float32)
        x, delta, b, c = (one.to(kind) for one in (x, delta, b, c))
        delta = delta if self.step is None else delta @ self.step.mT.to(kind)
        delta, rates = F.softplus(delta + self.step_bias.to(kind)), -self.log_rates.to(kind).exp()
        if settings.scan == "ssd":
            y = run_dual(x.unflatten(-1, (self.rank, -1)), delta, rates, b, c, settings.backend).flatten(2)
        else:
            y = run_selective(x, delta, rates, b, c, settings.backend)
        return (y + self.skip * x).to(given)


class DepthwiseConvolution(nn.Conv1d):
    """Convolution over tokens, a kernel for each channel: (B, L, E) -> (B, L, E), then SiLU.

    Args:
        width: E.
        kernel: tokens that a token sees.
        is_causal: it sees itself and the tokens before it; else as many after it.
    """

    def __init__(self, width: int, kernel: int, is_causal: bool) -> None:
        super().__init__(width, width, kernel, groups=width)
        self.reach = (kernel - 1, 0) if is_causal else (kernel // 2, kernel - 1 - kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) -> (B, L, E)."""
        return F.silu(super().forward(F.pad(x.mT, self.reach)).mT)


class BiScan(TokenMixer):
    """A layer with scans in both directions; final classes have what `mixed` needs, and `out`."""

    out: nn.Linear

    def __init__(self, settings: MambaSettings) -> None:
        super().__init__()
        self.dropout = settings.dropout

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None = None,  # noqa: ARG002 - the order of the scan is the position
        mask: AttentionMask = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D).

        Raises:
            ValueError: a mask or a cache.
        """
        if mask is not None or cache is not None:
            raise ValueError(
                "bidirectional Mamba has no mask or cache: padding, documents and causal rows need attention"
            )
        return F.dropout(self.out(self.mixed(x)), self.dropout, self.training)

    @abstractmethod
    def mixed(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, inner width)."""


class BiMamba(BiScan):
    """out((scan(x) + flipped scan(flipped x)) SiLU(z)): Vision Mamba's layer (arXiv 2401.09417, algorithm 1).

    Each direction has a causal convolution and a scan of its own.
    """

    def __init__(self, settings: MambaSettings) -> None:
        super().__init__(settings)
        inner = settings.inner
        self.expand = nn.Linear(settings.width, 2 * inner, bias=settings.has_bias)
        self.convolutions = nn.ModuleList(DepthwiseConvolution(inner, settings.kernel, True) for _ in range(2))
        self.scans = nn.ModuleList(SelectiveSSM(inner, settings) for _ in range(2))
        self.out = nn.Linear(inner, settings.width, bias=settings.has_bias)

    def mixed(self, x: Tensor) -> Tensor:
        x, z = self.expand(x).chunk(2, -1)
        ahead = self.scans[0](self.convolutions[0](x))
        back = self.scans[1](self.convolutions[1](x.flip(1))).flip(1)
        gated: Tensor = (ahead + back) * F.silu(z)
        return gated


class BiMambaV2(BiScan):
    """out([scan(x) + flipped scan(flipped x), z]), x and z after convolutions: MaskMamba's layer (arXiv 2409.19937).

    Against `BiMamba` the convolution sees tokens on both sides, and the gate is a branch of its own whose channels are
    concatenated, as in MambaVision (arXiv 2407.08083). Both branches have half of the inner width.
    """

    def __init__(self, settings: MambaSettings) -> None:
        super().__init__(settings)
        inner = settings.inner
        if inner % 2:
            raise ValueError(f"expand times width must be even, got {inner}")
        self.expand = nn.Linear(settings.width, inner, bias=settings.has_bias)
        self.convolution = DepthwiseConvolution(inner, settings.kernel, is_causal=False)  # of both branches
        self.scans = nn.ModuleList(SelectiveSSM(inner // 2, settings) for _ in range(2))
        self.out = nn.Linear(inner, settings.width, bias=settings.has_bias)

    def mixed(self, x: Tensor) -> Tensor:
        x, z = self.convolution(self.expand(x)).chunk(2, -1)
        both = self.scans[0](x) + self.scans[1](x.flip(1)).flip(1)
        return torch.cat([both, z], -1)


@dataclass(frozen=True)
class _BiMambaKeys(Mixer):
    """Keys of both layers, see `MambaSettings`."""

    expand: int = 2
    d_state: int = 16
    kernel: int = 4
    scan: ScanKind = "selective"
    head_width: int = 32
    backend: ScanBackend = "auto"

    def __post_init__(self) -> None:
        self.settings(AttentionSettings(1, 1))

    @property
    def traits(self) -> MixerTraits:
        return MixerTraits(takes_causal=False, takes_masks=False, has_cache=False, has_weights=False)

    def settings(self, sizes: AttentionSettings) -> MambaSettings:
        """Settings of the layer of a block."""
        keys = (self.expand, self.d_state, self.kernel, self.scan, self.head_width, self.backend)
        return MambaSettings(sizes.width, *keys, sizes.dropout, sizes.out_bias)


@MIXERS.register("bi_mamba")
@dataclass(frozen=True)
class BiMambaMixer(_BiMambaKeys):
    """Bidirectional Mamba of Vision Mamba: causal convolutions, gated output (arXiv 2401.09417).

    Args:
        expand, d_state, kernel, scan, head_width, backend: see `MambaSettings`.
    """

    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:  # noqa: ARG002 - the same in every block
        return BiMamba(self.settings(sizes))


@MIXERS.register("bi_mamba_v2")
@dataclass(frozen=True)
class BiMambaV2Mixer(_BiMambaKeys):
    """Bidirectional Mamba of MaskMamba: convolutions to both sides, a concatenated branch (arXiv 2409.19937).

    Args:
        expand, d_state, kernel, scan, head_width, backend: see `MambaSettings`.
    """

    kernel: int = 3

    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:  # noqa: ARG002 - the same in every block
        return BiMambaV2(self.settings(sizes))

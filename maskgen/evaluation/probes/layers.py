"""What the layers of a network do to its tokens: coding rate, sparsity, attention entropy, silent heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from maskgen.nn.checkpointing import Recomputable, blocks_of
from maskgen.nn.mixers.base import TokenMixer
from maskgen.nn.mixers.self_attention import HeadAttention
from maskgen.nn.mixers.subspace import SubspaceAttention

PRECISION = 0.01
"""Squared error eps^2 of the coding rate, as in CRATE's code."""
Features = Callable[[], Tensor]
"""Runs the network once; features (B, L, D)."""


@dataclass(frozen=True)
class LayerState:
    """What passed through a block.

    Attributes:
        mixed: (B, L, D), its input plus the output of its token mixer.
        output: (B, L, D).
        subspaces: (B, H, L, d), `mixed` in the subspaces of MSSA; None for other mixers.
        weights: (B, H, L, L) attention; None for a mixer without.
    """

    mixed: Tensor
    output: Tensor
    subspaces: Tensor | None
    weights: Tensor | None


@dataclass(frozen=True)
class LayerReport:
    """Numbers of a block.

    Attributes:
        coding_rate: of its tokens after token mixing.
        compression: coding rate in MSSA's subspaces, summed over the heads, the quantity CRATE's layers lower; None for
            other mixers.
        nonzero: share of numbers of its output that are not 0.
        entropy: of each head's attention, as a share of the entropy of uniform attention; empty without.
        silenced: of each head, relative squared change of the features if it contributes nothing; empty without.
    """

    coding_rate: float
    compression: float | None
    nonzero: float
    entropy: tuple[float, ...] = ()
    silenced: tuple[float, ...] = ()


@dataclass
class _Seen:
    given: Tensor | None = None
    mixer_input: Tensor | None = None
    rotation: Tensor | None = None
    mixed: Tensor | None = None
    output: Tensor | None = None
    hooks: list[RemovableHandle] = field(default_factory=list)


def coding_rate(tokens: Tensor, precision: float = PRECISION) -> Tensor:
    """log det(I + d / (L eps^2) Z^T Z) / 2 of token vectors Z (..., L, d) of norm 1, in nats: (...).

    The volume that tokens span (rate reduction, arXiv 2006.08558, eq. 6): 0 for none, larger for spread-out ones.
    """
    z = F.normalize(tokens.double(), dim=-1)
    length, width = z.shape[-2:]
    gram = z.mT @ z if width < length else z @ z.mT
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    rate: Tensor = torch.logdet(identity + width / (length * precision) * gram) / 2
    return rate


def attention_entropy(weights: Tensor) -> Tensor:
    """Mean entropy of attention (B, H, L, L) over rows and tokens, over log L: (H,), 1 for uniform attention."""
    length = weights.shape[-1]
    entropy: Tensor = torch.special.entr(weights.double()).sum(-1).mean((0, 2))
    return entropy / math.log(length)


@torch.no_grad()
def layer_states(network: nn.Module, features: Features) -> list[LayerState]:
    """States of the blocks that run when features are computed, in order."""
    blocks = [block for block in blocks_of(network) if mixer_of(block) is not None]
    seen = [_Seen() for _ in blocks]
    for block, one in zip(blocks, seen, strict=True):
        mixer = mixer_of(block)
        assert mixer is not None
        one.hooks = [
            block.register_forward_pre_hook(_input_to(one)),
            mixer.register_forward_hook(_mixed_to(one)),
            block.register_forward_hook(_output_to(one)),
        ]
    try:
        features()
    finally:
        for one in seen:
            for hook in one.hooks:
                hook.remove()
    return [_state(block, one) for block, one in zip(blocks, seen, strict=True) if one.output is not None]


def mixer_of(block: nn.Module) -> TokenMixer | None:
    """The token mixer of a block; None without."""
    return next((child for child in block.children() if isinstance(child, TokenMixer)), None)


def _input_to(seen: _Seen) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.given = arguments[0]

    return hook


def _mixed_to(seen: _Seen) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        assert seen.given is not None
        seen.mixer_input, seen.rotation = arguments[0], arguments[1] if len(arguments) > 1 else None
        seen.mixed = seen.given + output

    return hook


def _output_to(seen: _Seen) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
        seen.output = output

    return hook


def _state(block: Recomputable, seen: _Seen) -> LayerState:
    mixer = mixer_of(block)
    assert mixer is not None
    assert seen.mixed is not None
    assert seen.output is not None
    assert seen.mixer_input is not None
    subspaces = weights = None
    if isinstance(mixer, SubspaceAttention):
        subspaces = mixer.subspaces(seen.mixed).unflatten(-1, (mixer.settings.heads, -1)).transpose(1, 2)
    if isinstance(mixer, HeadAttention):
        weights = mixer.head_weights(seen.mixer_input, seen.rotation)
    return LayerState(seen.mixed, seen.output, subspaces, weights)


def report_layers(network: nn.Module, features: Features) -> list[LayerReport]:
    """Numbers of all blocks that run when features are computed, in order."""
    states, silenced = layer_states(network, features), silenced_heads(network, features)
    return [_report(state, heads) for state, heads in zip(states, silenced, strict=True)]


def _report(state: LayerState, silenced: Sequence[float]) -> LayerReport:
    compression = None
    if state.subspaces is not None:
        compression = float(coding_rate(state.subspaces).sum(1).mean())
    entropy = () if state.weights is None else tuple(attention_entropy(state.weights).tolist())
    nonzero = float((state.output != 0).double().mean())
    return LayerReport(float(coding_rate(state.mixed).mean()), compression, nonzero, entropy, tuple(silenced))


@torch.no_grad()
def silenced_heads(network: nn.Module, features: Features) -> list[list[float]]:
    """For every block and head |f - f'|^2 / |f|^2, f' the features without the head; empty for other mixers."""
    whole, found = features().double(), []
    for block in blocks_of(network):
        mixer = mixer_of(block)
        if mixer is None:
            continue
        changes, has_run = [], False
        for head in range(mixer.settings.heads if isinstance(mixer, HeadAttention) else 1):
            with _without(mixer, head) as calls:
                changed = features().double()
            has_run = bool(calls)
            if not has_run:
                break
            changes.append(float((changed - whole).square().sum() / whole.square().sum()))
        if has_run:
            found.append(changes if isinstance(mixer, HeadAttention) else [])
    return found


@contextmanager
def _without(mixer: TokenMixer, head: int) -> Iterator[list[bool]]:
    """Context in which a head of an attention layer contributes nothing; yields one entry per call of the mixer."""
    calls: list[bool] = []
    hooks = [mixer.register_forward_pre_hook(lambda *_: calls.append(True))]
    if isinstance(mixer, HeadAttention):
        width = mixer.settings.of_head

        def silence(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = arguments[0].clone()
            x[..., head * width : (head + 1) * width] = 0
            return (x, *arguments[1:])

        hooks.append(mixer.out.register_forward_pre_hook(silence))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()

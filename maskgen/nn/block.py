"""The transformer block of all networks, with pluggable norm, modulation, token mixer and feed-forward layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from maskgen.nn.checkpointing import Recomputable
from maskgen.nn.layers.norms import LAYER_NORM, Norm
from maskgen.nn.mixers.base import AttentionMask, LayerCache, TokenMixer
from maskgen.nn.mixers.cross_attention import CrossAttention
from maskgen.nn.modulation import modulate


@dataclass(frozen=True)
class Residual:
    """How the branches of a block are added to the tokens.

    Args:
        norm: of each branch.
        position: `pre`, x + layer(norm(x)); or `post`, norm(x + layer(x)).
        is_fused: modulated branches are added by `addcmul`, which rounds once, not by a product and a sum.
        layer_scale: start of a learned factor per number of a branch that is not modulated (CaiT, arXiv 2103.17239);
            0 is none.
        order: names of the parts in the order of their parameters, where it is not the order of use. Initial weights,
            optimizers and clipping go by it, so a published layout keeps its own.
    """

    norm: Norm = LAYER_NORM
    position: Literal["pre", "post"] = "pre"
    is_fused: bool = False
    layer_scale: float = 0.0
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cross:
    """The branch of a block that attends to another stack; it is not modulated.

    Args:
        layer: the attention.
        name: of the layer in state dicts.
        norm_name: of its norm in state dicts.
        is_first: it precedes the token mixer, else it follows it.
    """

    layer: CrossAttention
    name: str = "cross"
    norm_name: str = "cross_norm"
    is_first: bool = True


class Block(Recomputable):
    """Residual branches over (B, L, D): token mixer, cross-attention and feed-forward layer, each with a norm.

    A branch is x + gate layer(norm(x) (1 + scale) + shift) with modulation, and x + layer(norm(x)) without. State dicts
    have the parts `attention`, `attention_norm`, `mlp`, `mlp_norm`, `modulation`, `layer_scale` and names of `Cross`.

    Args:
        width: D.
        mixer: exchanges information between tokens; None without.
        mlp: (B, L, D) -> (B, L, D), each token alone.
        residual: norms and how branches are added.
        modulation: (B, C) -> (B, 6 D), adaLN: shift, scale and gate of the mixer, then of the feed-forward layer (DiT,
            arXiv 2212.09748, section 3.2). None for a block without modulation, or one whose vectors are given.
        cross: a branch that attends to a memory; None without.

    Raises:
        ValueError: modulation with norms after the branches.
    """

    modulation: nn.Linear | None

    def __init__(
        self,
        width: int,
        mixer: TokenMixer | None,
        mlp: nn.Module,
        residual: Residual = Residual(),
        modulation: nn.Linear | None = None,
        cross: Cross | None = None,
    ) -> None:
        super().__init__()
        if modulation is not None and residual.position == "post":
            raise ValueError("norms after the branches cannot be modulated; use position pre")
        self.residual = residual
        branches: list[tuple[str, str, nn.Module]] = [("mlp", "mlp_norm", mlp)]
        if mixer is not None:
            branches.insert(0, ("attention", "attention_norm", mixer))
        if cross is not None:
            branches.insert(0 if cross.is_first else len(branches) - 1, (cross.name, cross.norm_name, cross.layer))
        self.branches = tuple((name, norm) for name, norm, _ in branches)
        parts: dict[str, nn.Module] = {}
        for name, norm_name, layer in branches:
            pair = {norm_name: residual.norm.build(width), name: layer}
            parts |= pair if residual.position == "pre" else dict(reversed(pair.items()))
        for name in residual.order or parts:
            if name in parts:
                self.add_module(name, parts[name])
        self.modulation = modulation
        self.layer_scale = nn.ParameterDict()
        if residual.layer_scale:
            for name, _ in self.branches:
                self.layer_scale[name] = nn.Parameter(torch.full((width,), residual.layer_scale))

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        *,
        rotation: Tensor | None = None,
        mask: AttentionMask = None,
        cache: LayerCache | None = None,
        memory: Tensor | None = None,
        memory_mask: AttentionMask = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D).

        Args:
            x: tokens.
            cond: (B, C) for the block's own modulation, or the vectors (B, 6 D) if it has none; None leaves it out.
            rotation, mask, cache: of the token mixer.
            memory: (B, S, D'), what cross-attention attends to.
            memory_mask: which of it, as `attend` takes it.
        """
        vectors = self._vectors(cond)
        for name, norm_name in self.branches:
            layer, norm = self.get_submodule(name), self.get_submodule(norm_name)
            own = self.layer_scale[name] if self.residual.layer_scale else None
            shift, scale, gate = vectors.get(name, (None, None, own))
            h = x if self.residual.position == "post" else norm(x)
            if shift is not None and scale is not None:
                h = modulate(h, shift, scale)
            if isinstance(layer, TokenMixer):
                h = layer(h, rotation, mask, cache)
            else:
                h = layer(h, memory, memory_mask) if isinstance(layer, CrossAttention) else layer(h)
            x = self._added(x, h, gate)
            x = norm(x) if self.residual.position == "post" else x
        return x

    def weights(self, x: Tensor, cond: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
        """Attention weights of the block's mixer on x (B, L, D), with `cond` as `forward` takes it -> (B, L, L)."""
        mixer = cast(TokenMixer, self.get_submodule("attention"))
        h = x if self.residual.position == "post" else self.get_submodule("attention_norm")(x)
        if cond is not None:
            shift, scale, _ = self._vectors(cond)["attention"]
            h = modulate(h, shift, scale)
        return mixer.weights(h, rotation)

    def _vectors(self, cond: Tensor | None) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Shift, scale and gate (B, 1, D) each of the branches that are modulated."""
        if cond is None:
            return {}
        vectors = cond if self.modulation is None else self.modulation(cond)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = vectors[:, None].chunk(6, -1)
        return {"attention": (shift_a, scale_a, gate_a), "mlp": (shift_m, scale_m, gate_m)}

    def _added(self, x: Tensor, h: Tensor, gate: Tensor | None) -> Tensor:
        """x + gate h."""
        if gate is None:
            return x + h
        return torch.addcmul(x, gate, h) if self.residual.is_fused else x + gate * h

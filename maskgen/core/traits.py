"""What a network can do, declared by the network: read by recipe checks, objectives, samplers, pipelines and probes.

A network class declares its traits as a class attribute; where recipe keys decide, `traits_for(keys)` returns those of
one configuration, and the constructor stores them on the instance:

    class MyNetwork(nn.Module):
        traits = NetworkTraits(objectives=("masked_tokens",), tokens=("discrete",))

A module or function that declares none has the default traits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from maskgen.core.groups import GroupPlan
from maskgen.core.streams import StreamKind

TokenKind = Literal["discrete", "continuous"]
ConditionKind = Literal["class", "caption"]


@dataclass(frozen=True)
class NetworkTraits:
    """What a network takes, predicts and offers beside its forward pass.

    Attributes:
        objectives: registered names of the objectives that train it.
        tokens: kinds of tokens it can be built for; none for a network of images.
        streams: kinds of streams it can be built for.
        has_streams: it can be built for rows of several streams (`layout`).
        conditions: what it can be conditioned on.
        has_null_label: it has an embedding for "no class", which classifier-free guidance needs.
        is_field: it predicts the field of a Gaussian process (`Field`), not masked tokens.
        predicts_points: its predictions (`Point`) have no spread, so no temperature applies.
        sees_known: known tokens of a Gaussian process are given to it clean, as a condition.
        block_length: tokens in a block of a network that generates block by block; None for all tokens at once.
        groups: the groups of positions that it generates one after the other, each in one step; None for no such plan.
        is_autoregressive: token i depends on the tokens before it only, and its input is shifted.
        drops_tokens: it can be trained with a share of the tokens left out of the computation (keep ratio below 1).
        drops_masked: only masked tokens are left out, and they are predicted all the same.
        subset_is_visible: a subset of tokens that it is given is exactly the visible ones.
        is_two_pass: with tokens left out a training step is a full pass and a pass over the kept ones (MDT).
        reconstructs: tokens that are left out have a reconstruction loss (MaskDiT).
        takes_documents: documents packed into a row can be kept from attending to each other (`documents`).
        has_projection: two views of an image are mapped to vectors that a contrastive term compares (`view`).
        has_independent_decoder: each masked token is decoded without regard to which others are.
        has_token_diffusion: a head draws each continuous token by a diffusion of its own.
        has_exponents: learned masking rates of tokens, `exponents` (V,).
        has_attention_scores: it offers `attention_scores(x_0, cond)`.
        has_difficulty: it offers `difficulty(x_t, t, cond)`, losses expected of masked tokens.
        has_features: it offers `features(x_0)` for probes.
        has_cache: it offers `cached()`, a denoiser that keeps keys and values of finished blocks.
        keeps_rows: it carries state from call to call, so every call needs all rows of the batch.
        has_fixed_grid: it works on the grid it was built with only; if not, `set_grid` changes it.
    """

    objectives: tuple[str, ...] = ()
    tokens: tuple[TokenKind, ...] = get_args(TokenKind)
    streams: tuple[StreamKind, ...] = get_args(StreamKind)
    has_streams: bool = False
    conditions: tuple[ConditionKind, ...] = ("class",)
    has_null_label: bool = True
    is_field: bool = False
    predicts_points: bool = False
    sees_known: bool = False
    block_length: int | None = None
    groups: GroupPlan | None = None
    is_autoregressive: bool = False
    drops_tokens: bool = False
    drops_masked: bool = False
    subset_is_visible: bool = False
    is_two_pass: bool = False
    reconstructs: bool = False
    takes_documents: bool = False
    has_projection: bool = False
    has_independent_decoder: bool = False
    has_token_diffusion: bool = False
    has_exponents: bool = False
    has_attention_scores: bool = False
    has_difficulty: bool = False
    has_features: bool = False
    has_cache: bool = False
    keeps_rows: bool = False
    has_fixed_grid: bool = True

    def offers(self, method: str) -> bool:
        """Whether the network has a method that a mask strategy requires."""
        return {"attention_scores": self.has_attention_scores, "difficulty": self.has_difficulty}.get(method, False)

    @property
    def takes_classes(self) -> bool:
        """Whether class labels condition it."""
        return "class" in self.conditions

    @property
    def takes_captions(self) -> bool:
        """Whether embedded captions condition it."""
        return "caption" in self.conditions


WRAPPERS = ({"module"}, {"_orig_mod"})
"""Parts of a wrapper: data parallelism and `torch.compile` hold the network under these names."""

DEFAULT = NetworkTraits()
"""Traits of a module or function that declares none."""


def network_of(model: object) -> Any:
    """The network inside of what wraps it: data parallelism, `torch.compile`; itself if nothing does.

    A wrapper declares no traits, and its only part is called `module` or `_orig_mod`.
    """
    while isinstance(model, nn.Module) and set(model._modules) in WRAPPERS and not hasattr(type(model), "traits"):
        model = next(iter(model._modules.values()))
    return model


def traits_of(model: object) -> NetworkTraits:
    """The traits that a network declares, through what wraps it; the defaults if it declares none."""
    traits = getattr(network_of(model), "traits", None)
    return traits if isinstance(traits, NetworkTraits) else DEFAULT


def declared_traits(entry: Callable[..., object], arguments: Mapping[str, object] | None = None) -> NetworkTraits:
    """The traits of a network class before it is built.

    Args:
        entry: a registered class, or a function that builds a network (which has the default traits).
        arguments: keys of a recipe; those left out have their defaults.
    """
    traits_for = getattr(entry, "traits_for", None)
    if traits_for is None:
        return traits_of(entry)
    defaults = {key: one.default for key, one in inspect.signature(entry).parameters.items()}
    traits: NetworkTraits = traits_for(defaults | dict(arguments or {}))
    return traits


def is_in_training(model: object) -> bool:
    """Whether a model is in training mode; a plain function always counts as in training."""
    return bool(getattr(model, "training", True))

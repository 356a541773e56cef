"""Text from left to right: block diffusion (BD3-LM), and autoregression, which is blocks of one token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from maskgen.core.check import CheckContext
from maskgen.core.predictions import Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.cached import Cached
from maskgen.models.text import TextTransformer
from maskgen.models.text_settings import TextSizes
from maskgen.nn.cache import KeyValueCache
from maskgen.nn.mixers.registry import Mixer, mixer_name
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.nn.patterns import AttentionPattern, BlockCausal, Causal, NoisyClean


class Blockwise(TextTransformer):
    """A text network in which no token attends to a later block, so that finished blocks can be cached exactly.

    Final classes set `block_length` and `is_autoregressive`; `inputs` maps x_t to the ids that are fed in.
    """

    block_length: int
    is_autoregressive: bool
    traits = replace(TextTransformer.traits, has_cache=True)

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check that the recipe's mixer obeys the order of generation.

        Raises:
            ValueError: it mixes in both directions.
        """
        cls._require_mixer(context.model.get("mixer", ATTENTION))

    @classmethod
    def _require_mixer(cls, mixer: Mixer) -> None:
        traits = mixer.traits
        is_fit = traits.takes_causal if cls.is_autoregressive else traits.takes_masks and not traits.has_fixed_length
        if not is_fit:
            what = "causal mixer" if cls.is_autoregressive else "mixer for any attention pattern and length"
            raise ValueError(
                f"model.mixer: text from left to right needs a {what}, {mixer_name(mixer)} is none; use attention, or "
                "model mdlm"
            )

    @property
    def pattern(self) -> AttentionPattern:
        return BlockCausal(self.block_length)

    def cached(self) -> Cached:
        """The network for sampling, with keys and values of finished blocks kept."""
        return Cached(self)

    @property
    def has_final_inputs(self) -> bool:
        """See `InTurn`."""
        return self.is_autoregressive

    def span(self, where: Tensor) -> tuple[int, int] | None:
        """See `InTurn`; a block."""
        blocks = where.any(0).nonzero()[:, 0] // self.block_length
        if not len(blocks) or bool((blocks != blocks[0]).any()):
            return None
        start = int(blocks[0]) * self.block_length
        return start, min(start + self.block_length, where.shape[1])

    def continued(self, ids: Tensor, t: Tensor, cond: Condition | None, cache: KeyValueCache) -> Tensor:
        """See `InTurn`."""
        n = cache.length
        return self.hidden(ids[:, n:], t, self.pattern.mask(ids.shape[1], ids.device, n), cache=cache, cond=cond)

    def answered(self, x: Tensor, start: int, t: Tensor, cond: Condition | None, where: Tensor) -> Categorical:
        """See `InTurn`."""
        return self.logits(x, t, where[:, start : start + x.shape[1]], cond)


@MODELS.register("bd3")
class BlockDiffusion(Blockwise):
    """Masked diffusion inside of blocks, autoregression over them (BD3-LM, arXiv 2503.09573).

    Args:
        block_length: L'; 1 is an autoregressive model, the length of the text is MDLM.
        grid: see `TextTransformer`.
        **sizes: see `TextTransformer`.
    """

    traits = replace(Blockwise.traits, objectives=("block_tokens",), block_length=16)
    is_autoregressive = False

    def __init__(
        self, vocab_size: int, block_length: int = 16, grid: tuple[int, ...] = (), **sizes: Unpack[TextSizes]
    ) -> None:
        if block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {block_length}")
        self._require_mixer(sizes.get("mixer", ATTENTION))
        super().__init__(vocab_size, grid=grid, **sizes)
        self.block_length = block_length
        self.traits = self.traits_for({"block_length": block_length, **sizes})

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        return replace(super().traits_for(keys), block_length=keys["block_length"])

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,  # noqa: ARG002 - text has no classes
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
        clean: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at the positions `where` (B, L).

        With `clean` = x_0 (B, L) every block is predicted from its own x_t and the clean blocks before it, all in one
        pass over [x_t; x_0] (section 3.3). Without it, a block attends to x_t up to its own end.
        """
        _refuse(subset)
        length = x_t.shape[1]
        if clean is None:
            return self.logits(self.hidden(x_t, t, self.pattern.mask(length, x_t.device)), t, where)
        mask = NoisyClean(length, self.block_length).mask(2 * length, x_t.device)
        positions = torch.arange(length, device=x_t.device).repeat(2)
        x = self.hidden(torch.cat([x_t, clean], 1), t, mask, positions)
        return self.logits(x[:, :length], t, where)


@MODELS.register("ar")
class Autoregressive(Blockwise):
    """Causal transformer of the same blocks: token i from the tokens before it. [MASK] stands for the beginning.

    Its sizes are those of `TextTransformer`.
    """

    traits = replace(Blockwise.traits, objectives=("next_token",), block_length=1, is_autoregressive=True)
    block_length = 1
    is_autoregressive = True

    def __init__(self, vocab_size: int, grid: tuple[int, ...] = (), **sizes: Unpack[TextSizes]) -> None:
        self._require_mixer(sizes.get("mixer", ATTENTION))
        super().__init__(vocab_size, grid=grid, **sizes)
        self.traits = self.traits_for(sizes)

    @property
    def pattern(self) -> AttentionPattern:
        return Causal()

    def inputs(self, x_t: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x_t[:, :1], self.vocab_size), x_t[:, :-1]], 1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at `where`; those at i depend on the tokens before i only."""
        _refuse(subset)
        mask = self.pattern.mask(x_t.shape[1], x_t.device)
        return self.logits(self.hidden(self.inputs(x_t), t, mask, cond=cond), t, where, cond)


def _refuse(subset: object) -> None:
    if subset is not None:
        raise ValueError("dropped tokens do not go with block diffusion or autoregression; use keep_ratio 1")

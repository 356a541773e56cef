"""The registry of token mixers: what `model.mixer` of a recipe names, what each can do, and how a block builds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from maskgen.core.registry import Registry
from maskgen.core.traits import NetworkTraits
from maskgen.nn.mixers.attention import AttentionSettings
from maskgen.nn.mixers.base import TokenMixer


@dataclass(frozen=True)
class MixerTraits:
    """What a token mixer can do.

    Attributes:
        has_fixed_length: it works on rows of the length that it was built for; causal ones on shorter rows, too.
        drops_tokens: it works on any subset of a row's tokens, in ascending order.
        takes_causal: it obeys the causal pattern: a token depends on itself and the tokens before it.
        takes_masks: it obeys any attention pattern given as a bool mask, so padding and packed documents too.
        has_cache: it continues a row from cached states of the tokens before.
        has_weights: it has attention weights, in the last block of a stack.
    """

    has_fixed_length: bool = False
    drops_tokens: bool = True
    takes_causal: bool = True
    takes_masks: bool = True
    has_cache: bool = True
    has_weights: bool = True

    def joined(self, other: MixerTraits) -> MixerTraits:
        """What a stack of both can do."""
        return MixerTraits(
            self.has_fixed_length or other.has_fixed_length,
            self.drops_tokens and other.drops_tokens,
            self.takes_causal and other.takes_causal,
            self.takes_masks and other.takes_masks,
            self.has_cache and other.has_cache,
            self.has_weights and other.has_weights,
        )

    def limit(self, traits: NetworkTraits) -> NetworkTraits:
        """What is left of a network's traits if its tokens are mixed this way."""
        return replace(
            traits,
            drops_tokens=traits.drops_tokens and self.drops_tokens,
            takes_documents=traits.takes_documents and self.takes_masks,
            has_cache=traits.has_cache and self.has_cache,
            has_attention_scores=traits.has_attention_scores and self.has_weights,
            has_fixed_grid=traits.has_fixed_grid or self.has_fixed_length,
        )


@dataclass(frozen=True)
class MixerPlace:
    """Where in a network a mixer is.

    Attributes:
        length: tokens in a row, with class tokens; 0 if rows differ.
        layer: index of the block, from 0.
        depth: number of blocks of the stack.
    """

    length: int = 0
    layer: int = 0
    depth: int = 1


ANYWHERE = MixerPlace()
"""The only block of a network for rows of any length."""


class Mixer(ABC):
    """The key `mixer` of a network: how its blocks exchange information between tokens.

    A final class is a frozen dataclass with the decorator `@MIXERS.register(name)`; its fields are its keys.
    """

    @property
    @abstractmethod
    def traits(self) -> MixerTraits:
        """What it can do."""

    @abstractmethod
    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:
        """The layer of one block.

        Args:
            sizes: width, heads, dropout and biases of the block; attention has more settings.
            place: where in the network the block is.

        Raises:
            ValueError: sizes that the mixer cannot have.
        """


MIXERS: Registry[Mixer] = Registry("mixer", Mixer, home="maskgen.nn.mixers:MIXERS")


def mixer_name(mixer: Mixer) -> str:
    """The name of a mixer in recipes."""
    return next((name for name in MIXERS.names() if MIXERS.get(name) is type(mixer)), type(mixer).__name__)

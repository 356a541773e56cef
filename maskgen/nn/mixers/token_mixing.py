"""Token mixing by a learned matrix over positions (MLP-Mixer, masked mixers)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.mixers.attention import AttentionSettings
from maskgen.nn.mixers.base import AttentionMask, LayerCache, TokenMixer
from maskgen.nn.mixers.registry import MIXERS, Mixer, MixerPlace, MixerTraits


class TokenMixing(TokenMixer):
    """out(W value(x) + b): tokens are mixed by weights (H, L, L) of their positions (masked mixers, arXiv 2409.01482).

    Each of H groups of channels has its own matrix. Entries that an attention pattern does not allow count as zero, so
    the layer obeys the same patterns as attention, and gradients and optimizer states of these entries stay zero. It
    works on L tokens only, on fewer with the causal pattern, and needs no other positions (rotary ones are ignored):
    positions are rows of the matrix.

    Args:
        width: D.
        length: L.
        heads: H, a divisor of D.
        has_bias: of both projections.
        projects: linear layers before and after the mixing; without, as in the published mixer of one head, channels
            are mixed by the feed-forward layer only.
        dropout: of the output.
    """

    has_cache = True

    def __init__(
        self,
        width: int,
        length: int,
        heads: int = 1,
        has_bias: bool = True,
        projects: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(width, length, heads) < 1 or width % heads:
            raise ValueError(
                f"width must be a multiple of heads and all sizes positive, got {width}, {heads} and length {length}"
            )
        self.fixed_length, self.heads, self.dropout = length, heads, dropout
        self.value = nn.Linear(width, width, bias=has_bias) if projects else nn.Identity()
        self.mixing = nn.Parameter(torch.empty(heads, length, length))
        self.shift = nn.Parameter(torch.zeros(length))  # b, one number a token
        self.out = nn.Linear(width, width, bias=has_bias) if projects else nn.Identity()
        nn.init.normal_(self.mixing, std=length**-0.5)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None = None,  # noqa: ARG002 - rows of the matrix are positions
        mask: AttentionMask = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); `mask` is `causal` or bool. With a cache, x continues the rows of a causal mixer.

        Raises:
            ValueError: another number of tokens, or a float mask.
        """
        value = self.value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, D / H)
        if cache is not None:
            value, _ = cache.extend(value, value[..., :0])
        end = value.shape[2]
        self._require(end, is_prefix=mask == "causal" if isinstance(mask, str) else cache is not None)
        start = end - x.shape[1]
        weights = self._masked(self.mixing[:, start:end, :end], mask)
        mixed = (weights @ value).transpose(1, 2).flatten(2) + self.shift[start:end, None]
        return F.dropout(self.out(mixed), self.dropout, self.training)

    def _require(self, length: int, is_prefix: bool) -> None:
        """Check the number of tokens."""
        assert self.fixed_length is not None
        if length > self.fixed_length or (length < self.fixed_length and not is_prefix):
            raise ValueError(f"token mixing is for rows of {self.fixed_length} tokens, got {length}")

    @staticmethod
    def _masked(weights: Tensor, mask: AttentionMask) -> Tensor:
        """weights (H, n, L), zero where the mask does not allow: (H, n, L) or (B, H, n, L)."""
        if mask is None:
            return weights
        if isinstance(mask, str):
            return weights.tril()
        if mask.dtype != torch.bool:
            raise ValueError("token mixing has no scores that a float mask could be added to; use a bool mask")
        return torch.where(mask, weights, 0)


@MIXERS.register("token")
@dataclass(frozen=True)
class TokenMatrix(Mixer):
    """One learned L x L matrix over positions, causal where the network is (masked mixers, arXiv 2409.01482).

    Args:
        heads: groups of channels with a matrix each.
        projects: linear layers before and after the mixing (the multi-head mixer).
    """

    heads: int = 1
    projects: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, got {self.heads}")

    @property
    def traits(self) -> MixerTraits:
        return MixerTraits(has_fixed_length=True, drops_tokens=False, has_weights=False)

    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:
        if not place.length:
            raise ValueError("mixer token needs the number of tokens of a row; give the network a grid")
        return TokenMixing(sizes.width, place.length, self.heads, sizes.out_bias, self.projects, sizes.dropout)

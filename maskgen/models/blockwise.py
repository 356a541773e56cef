"""Text from left to right: block diffusion (BD3-LM), and autoregression, which is blocks of one token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.mdlm import Past, TextSizes, TextTransformer


class Blockwise(TextTransformer):
    """A text network in which no token sees a later block: finished blocks can be cached, exactly.

    Final classes set `block_length` and `is_autoregressive`, and say with `inputs` what is fed in for x_t.
    """

    block_length: int
    is_autoregressive: bool
    traits = replace(TextTransformer.traits, has_cache=True)

    def inputs(self, x_t: Tensor) -> Tensor:
        """(B, L) ids whose hidden vector i predicts token i."""
        return x_t

    def cached(self) -> Cached:
        """The network for sampling, with keys and values of finished blocks kept."""
        return Cached(self)


@MODELS.register("bd3")
class BlockDiffusion(Blockwise):
    """Masked diffusion inside of blocks, autoregression over them (BD3-LM, arXiv 2503.09573).

    Args:
        block_length: L'; 1 is an autoregressive model, the length of the text is MDLM.
        **sizes: see `TextTransformer`.
    """

    traits = replace(Blockwise.traits, objectives=("block_tokens",), block_length=16)
    is_autoregressive = False

    def __init__(self, vocab_size: int, block_length: int = 16, **sizes: Unpack[TextSizes]) -> None:
        if block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {block_length}")
        super().__init__(vocab_size, **sizes)
        self.block_length = block_length
        self.traits = self.traits_for({"block_length": block_length})

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        return replace(cls.traits, block_length=keys["block_length"])

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
        pass over [x_t; x_0] (section 3.3). Without it, a block sees x_t itself up to its own end.
        """
        _refuse(subset)
        length = x_t.shape[1]
        if clean is None:
            mask = block_causal(length, self.block_length, x_t.device)
            return self.logits(self.hidden(x_t, t, mask)[0], t, where)
        mask = training_mask(length, self.block_length, x_t.device)
        positions = torch.arange(length, device=x_t.device).repeat(2)
        x = self.hidden(torch.cat([x_t, clean], 1), t, mask, positions)[0]
        return self.logits(x[:, :length], t, where)


@MODELS.register("ar")
class Autoregressive(Blockwise):
    """Causal transformer of the same blocks: token i from the tokens before it. [MASK] stands for the beginning.

    Its sizes are those of `TextTransformer`.
    """

    traits = replace(Blockwise.traits, objectives=("next_token",), block_length=1, is_autoregressive=True)
    block_length = 1
    is_autoregressive = True

    def __init__(self, vocab_size: int, **sizes: Unpack[TextSizes]) -> None:
        super().__init__(vocab_size, **sizes)

    def inputs(self, x_t: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x_t[:, :1], self.vocab_size), x_t[:, :-1]], 1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,  # noqa: ARG002 - text has no classes
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at `where`; those at i depend on the tokens before i only."""
        _refuse(subset)
        mask: Literal["causal"] = "causal"
        return self.logits(self.hidden(self.inputs(x_t), t, mask)[0], t, where)


class Cached:
    """A `Blockwise` network as a denoiser that computes each finished block once.

    Exact: what is kept is checked against the tokens of every call, and thrown away from the first that differs.
    Made for one decoding; a call that asks in several blocks at once is answered without the cache.
    """

    def __init__(self, network: Blockwise) -> None:
        self.network = network
        self.traits = replace(network.traits, has_cache=False, keeps_rows=True)
        self.ids: Tensor | None = None  # (B, n) inputs whose keys and values are kept
        self.past: Past | None = None

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,  # noqa: ARG002 - text has no classes
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """As the network; x_t (B, L) with one batch of rows from call to call."""
        _refuse(subset)
        size = self.network.block_length
        asked = torch.zeros(0) if where is None else where.any(0).nonzero()[:, 0] // size
        if where is None or not len(asked) or bool((asked != asked[0]).any()):
            plain: Categorical = self.network(x_t, t, where=where)
            return plain
        start = int(asked[0]) * size
        end = min(start + size, x_t.shape[1])
        ids = self.network.inputs(x_t)
        self._extend(ids, t, start)
        rows = where.any(1)
        is_all = bool(rows.all())
        past = self.past if is_all or self.past is None else [(k[rows], v[rows]) for k, v in self.past]
        positions = torch.arange(start, end, device=ids.device)
        x, new = self.network.hidden(ids[rows, start:end], t[rows], None, positions, past)
        if is_all and self.network.is_autoregressive:
            self._keep(ids[:, start:end], new)  # its input is final: the next call need not compute it again
        return Categorical(self.network.logits(x, t[rows], where[rows, start:end]).logits, where)

    def _extend(self, ids: Tensor, t: Tensor, start: int) -> None:
        """Keep exactly the blocks before `start`."""
        n_kept = 0
        if self.ids is not None and self.past is not None and len(self.ids) == len(ids):
            shared = min(self.ids.shape[1], start)
            is_same = (self.ids[:, :shared] == ids[:, :shared]).all(0)
            n_kept = int(is_same.long().cumprod(0).sum()) // self.network.block_length * self.network.block_length
            self.ids = self.ids[:, :n_kept]
            self.past = [(k[:, :, :n_kept], v[:, :, :n_kept]) for k, v in self.past]
        if not n_kept:
            self.ids, self.past = None, None
        if n_kept < start:
            mask = block_causal(start, self.network.block_length, ids.device)[n_kept:]
            positions = torch.arange(n_kept, start, device=ids.device)
            new = self.network.hidden(ids[:, n_kept:start], t, mask, positions, self.past)[1]
            self._keep(ids[:, n_kept:start], new)

    def _keep(self, ids: Tensor, new: Past) -> None:
        if self.ids is None or self.past is None:
            self.ids, self.past = ids, new
            return
        self.ids = torch.cat([self.ids, ids], 1)
        pairs = zip(self.past, new, strict=True)
        self.past = [(torch.cat([a, c], 2), torch.cat([b, d], 2)) for (a, b), (c, d) in pairs]


def block_causal(length: int, block_length: int, device: torch.device | str = "cpu") -> Tensor:
    """(L, L) bool: a token sees its own block and those before it."""
    block = torch.arange(length, device=device) // block_length
    return block[:, None] >= block[None, :]


def training_mask(length: int, block_length: int, device: torch.device | str = "cpu") -> Tensor:
    """(2 L, 2 L) bool over [x_t; x_0] (BD3-LM, section 3.3 and figure 3).

    A noisy token sees its own noisy block and the clean blocks before it; a clean one its own block and those before.
    """
    block = torch.arange(length, device=device) // block_length
    own, before = block[:, None] == block[None, :], block[:, None] > block[None, :]
    nothing = torch.zeros_like(own)
    return torch.cat([torch.cat([own, before], 1), torch.cat([nothing, own | before], 1)], 0)


def _refuse(subset: Any) -> None:
    if subset is not None:
        raise ValueError("dropped tokens do not go with block diffusion or autoregression; use keep_ratio 1")

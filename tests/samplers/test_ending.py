"""Texts that end, ids that are never generated, and a [MASK] within the vocabulary."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.samplers.masked.ending import end_of_text
from maskgen.samplers.masked.loop import MaskedSampler
from maskgen.samplers.masked.presets import SAMPLERS, ancestral, llada
from tests.cases import each

V, L, STOP = 6, 12, 4
LAYOUT = TokenLayout.of(Stream("text", "text", V, (L,), forbidden=(0, 5), stop=(STOP,)))
NAMES = [name for name in SAMPLERS.names() if name != "genmd4"]


class Counted:
    """Random logits by position, the highest at forbidden ids; counts the rows it is called with."""

    def __init__(self, stop_at: int = L) -> None:
        self.logits = torch.randn(L, V, generator=torch.Generator().manual_seed(0))
        self.logits[:, STOP] = -9.0
        if stop_at < L:
            self.logits[stop_at] = torch.where(torch.arange(V) == STOP, 9.0, -9.0)
        self.logits[:, [0, 5]] = 12.0
        self.n_rows = 0

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
        self.n_rows += int(len(x_t) if where is None else where.any(1).sum())
        logits = self.logits[: x_t.shape[1]].expand(len(x_t), -1, -1)
        return Categorical(logits if where is None else logits[where], where)


def decoded(sampler: MaskedSampler, denoise: Counted, known: Tensor | None = None) -> Tensor:
    x_1 = torch.full((2, L), V) if known is None else known
    return sampler(denoise, x_1, Rng.per_sample(range(len(x_1))), mask_id=V, streams=LAYOUT)


@each("name", NAMES)
def test_no_sampler_generates_a_forbidden_id(name: str) -> None:
    tokens = decoded(SAMPLERS.build(name), Counted())
    assert set(tokens.flatten().tolist()) <= {1, 2, 3, STOP}


@each("name", NAMES)
def test_a_mask_within_the_vocabulary_is_never_generated(name: str) -> None:
    denoise = Counted()
    x_1 = torch.full((2, L), 5)
    tokens = SAMPLERS.build(name)(denoise, x_1, Rng.per_sample([0, 1]), mask_id=5)
    assert 5 not in tokens


def test_blocks_after_the_end_of_a_text_are_not_computed() -> None:
    whole, short = Counted(), Counted(stop_at=2)
    sampler = llada(steps=L, block_length=4)
    assert STOP not in decoded(sampler, whole)
    tokens = decoded(sampler, short)
    assert bool((tokens[:, 4:] == STOP).all())
    assert (whole.n_rows, short.n_rows) == (2 * L, 2 * 4)


def test_what_is_before_the_end_is_what_it_is_without_an_end() -> None:
    sampler = replace(ancestral(steps=8), layout=llada(block_length=4).layout)
    free = TokenLayout.of(Stream("text", "text", V, (L,), forbidden=(0, 5)))
    denoise = Counted(stop_at=6)
    tokens = decoded(sampler, denoise)
    rows = Rng.per_sample([0, 1])
    assert torch.equal(tokens[:, :8], sampler(denoise, torch.full((2, L), V), rows, mask_id=V, streams=free)[:, :8])


def test_a_stop_token_before_known_text_ends_nothing() -> None:
    known = torch.full((2, L), V)
    known[0, 9] = 1
    tokens = decoded(llada(steps=L, block_length=4), Counted(stop_at=2), known)
    assert tokens[0, 2] == STOP
    assert STOP not in tokens[0, 3:]
    assert tokens[0, 9] == 1
    assert bool((tokens[1, 4:] == STOP).all())


def test_the_end_is_the_first_stop_token_after_what_is_given() -> None:
    tokens = torch.tensor([[4, 1, 4, 4], [4, 1, 2, 3], [1, 1, 1, 4]])
    is_open = torch.tensor([[False, True, True, True]]).expand(3, -1)
    assert end_of_text(tokens, is_open, (4,)).tolist() == [2, 4, 3]

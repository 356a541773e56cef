"""Attention patterns against brute force, and decoding with a cache against decoding without one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.nn.block import Block
from maskgen.nn.cache import KeyValueCache
from maskgen.nn.layers.mlp import GatedMlp
from maskgen.nn.mixers.attention import AttentionSettings, QKNorm
from maskgen.nn.mixers.rotary import rotation_1d
from maskgen.nn.mixers.self_attention import SelfAttention
from maskgen.nn.patterns import (
    AttentionPattern,
    BlockCausal,
    Causal,
    Documents,
    FullAttention,
    GroupCausal,
    Intersection,
    NoisyClean,
    Prefix,
    Unpadded,
    Window,
    packed,
)
from tests.cases import each

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())
L = 12
DOCUMENTS = torch.tensor([[0] * 12, [0] * 4 + [1] * 8, [0] + [1] * 6 + [2] * 5])
VALID = torch.arange(L) < torch.tensor([[12], [5], [0]])
LENGTHS = torch.tensor([0, 3, 7])
GROUPS = (1, 4, 2, 5)
GROUP_OF = [0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3]


def near(q: int, k: int, width: int, radius: tuple[float, float]) -> bool:
    return abs(q // width - k // width) <= radius[0] and abs(q % width - k % width) <= radius[1]


PATTERNS: dict[str, tuple[AttentionPattern, Callable[[int, int, int], bool]]] = {
    "full": (FullAttention(), lambda b, q, k: True),
    "causal": (Causal(), lambda b, q, k: k <= q),
    "blocks of 1": (BlockCausal(1), lambda b, q, k: k <= q),
    "blocks of 5": (BlockCausal(5), lambda b, q, k: k // 5 <= q // 5),
    "one block": (BlockCausal(20), lambda b, q, k: True),
    "groups": (GroupCausal(GROUPS), lambda b, q, k: GROUP_OF[k] <= GROUP_OF[q]),
    "window": (Window((L,), (2,)), lambda b, q, k: abs(q - k) <= 2),
    "window, 2-D": (Window((3, 4), (1, 2)), lambda b, q, k: near(q, k, 4, (1, 2))),
    "window, rows": (Window((3, 4), (0, math.inf)), lambda b, q, k: q // 4 == k // 4),
    "prefix": (Prefix(4), lambda b, q, k: k <= q or k < 4),
    "prefixes": (Prefix(LENGTHS), lambda b, q, k: k <= q or k < LENGTHS[b]),
    "documents": (Documents(DOCUMENTS), lambda b, q, k: bool(DOCUMENTS[b, q] == DOCUMENTS[b, k])),
    "padding": (Unpadded(VALID), lambda b, q, k: bool(VALID[b, k]) or q == k),
    "padded documents": (
        packed(VALID, DOCUMENTS),
        lambda b, q, k: q == k or (bool(DOCUMENTS[b, q] == DOCUMENTS[b, k]) and bool(VALID[b, k])),
    ),
    "sliding window": (Intersection(Causal(), Window((L,), (3,))), lambda b, q, k: 0 <= q - k <= 3),
    "noisy and clean": (
        NoisyClean(6, 4),
        lambda b, q, k: (
            (q < 6 and k < 6 and q // 4 == k // 4)
            or (q < 6 <= k and (k - 6) // 4 < q // 4)
            or (q >= 6 and k >= 6 and (k - 6) // 4 <= (q - 6) // 4)
        ),
    ),
}
every_pattern = each("pattern, allows", PATTERNS)


def dense(pattern: AttentionPattern, length: int = L, start: int = 0) -> Tensor:
    """(3, length - start, length) bool, the mask of a pattern written out."""
    mask = pattern.mask(length, start=start)
    if isinstance(mask, str):
        assert (mask, start) == ("causal", 0)
        return torch.ones(length, length, dtype=torch.bool).tril().expand(3, -1, -1)
    if mask is None:
        return torch.ones(3, length - start, length, dtype=torch.bool)
    return (mask[:, 0] if mask.ndim == 4 else mask).expand(3, -1, -1)


@every_pattern
def test_a_mask_is_its_definition_pair_by_pair(
    pattern: AttentionPattern, allows: Callable[[int, int, int], bool]
) -> None:
    found, pairs = (
        dense(pattern),
        torch.tensor([[[allows(b, q, k) for k in range(L)] for q in range(L)] for b in range(3)]),
    )
    assert torch.equal(found, pairs)
    for start in (1, 4, 5, 11):
        assert torch.equal(dense(pattern, start=start), pairs[:, start:])


@every_pattern
def test_a_closed_prefix_attends_to_itself_only(
    pattern: AttentionPattern, allows: Callable[[int, int, int], bool]
) -> None:
    pairs = dense(pattern)
    for n in range(L + 1):
        m = pattern.closed(n)
        assert 0 <= m <= n
        assert not bool(pairs[:, :m, m:].any())


def test_the_closed_prefix_is_the_longest() -> None:
    for pattern, closed in (
        (Causal(), list(range(L + 1))),
        (BlockCausal(5), [0] * 5 + [5] * 5 + [10] * 3),
        (GroupCausal(GROUPS), [0, 1, 1, 1, 1, 5, 5, 7, 7, 7, 7, 7, 7]),
        (Prefix(4), [0] * 4 + list(range(4, L + 1))),
        (Intersection(Window((L,), (3,)), BlockCausal(5)), [0] * 5 + [5] * 5 + [10] * 3),
    ):
        assert [pattern.closed(n) for n in range(L + 1)] == closed, pattern


def test_limits_of_patterns_coincide() -> None:
    pairs: list[tuple[AttentionPattern, AttentionPattern]] = [
        (BlockCausal(1), Causal()),
        (BlockCausal(L), FullAttention()),
        (GroupCausal((1,) * L), Causal()),
        (GroupCausal((5, 5, 2)), BlockCausal(5)),
        (Window((3, 4), (math.inf, math.inf)), FullAttention()),
        (Prefix(0), Causal()),
        (Prefix(L), FullAttention()),
        (Documents(torch.zeros(3, L, dtype=torch.long)), FullAttention()),
        (Unpadded(torch.ones(3, L, dtype=torch.bool)), FullAttention()),
    ]
    for one, other in pairs:
        assert torch.equal(dense(one), dense(other)), (one, other)
    assert packed(None, None).mask(L) is None


def test_the_training_mask_of_block_diffusion_is_the_published_one() -> None:
    rows = ["".join(str(int(allowed)) for allowed in row) for row in dense(NoisyClean(4, 2), 8)[0]]
    assert rows == GOLDEN["bd3_mask_n4_b2"]
    for sizes, n in GOLDEN["bd3_mask_ones"].items():
        length, block_length = map(int, sizes.split("/"))
        mask = NoisyClean(length, block_length).mask(2 * length)
        assert isinstance(mask, Tensor)
        assert int(mask.sum()) == n, sizes


@each(
    "build, message",
    [
        (lambda: BlockCausal(0), "block_length must be at least 1, got 0"),
        (lambda: GroupCausal((2, 0)), r"sizes of groups must be positive, got \[2, 0\]"),
        (lambda: Window((3, 4), (1,)), "radius must be at least 0 along each axis"),
        (lambda: Window((3, 4), (1, math.nan)), "radius must be at least 0 along each axis"),
    ],
)
def test_impossible_patterns_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# The cache


class Stack(nn.Module):
    """Two blocks with grouped-query attention over embedded ids."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        settings = AttentionSettings(16, 4, n_kv_heads=2, qk_norm=QKNorm(), rotary="half")
        self.embedding = nn.Embedding(7, 16)
        self.blocks = nn.ModuleList(Block(16, SelfAttention(settings), GatedMlp(16, 24)) for _ in range(2))
        self.double().requires_grad_(False)

    def forward(self, ids: Tensor, pattern: AttentionPattern, cache: KeyValueCache | None = None) -> Tensor:
        """ids (B, L), of which the cache has the first n -> (B, L - n, 16)."""
        n = 0 if cache is None else cache.length
        rotation, x = rotation_1d(torch.arange(n, ids.shape[1]), 4), self.embedding(ids[:, n:])
        for index, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[index]
            x = block(x, rotation=rotation, mask=pattern.mask(ids.shape[1], start=n), cache=layer)
        if cache is not None:
            cache.append(ids[:, n:])
        return x


IDS = torch.randint(0, 7, (3, L), generator=torch.Generator().manual_seed(0))


@each("name", [name for name, (pattern, _) in PATTERNS.items() if pattern.closed(L)])
def test_decoding_with_a_cache_is_decoding_without(name: str) -> None:
    stack, pattern = Stack(), PATTERNS[name][0]
    whole, closed = stack(IDS, pattern), sorted({pattern.closed(n) for n in (0, 1, 4, 5, 7, 10)})
    cache = KeyValueCache(2)
    for start, end in zip(closed, [*closed[1:], L], strict=True):
        assert cache.length == start
        torch.testing.assert_close(stack(IDS[:, :end], pattern, cache), whole[:, start:end])


def test_a_fork_leaves_the_cache_as_it_was_and_a_cropped_one_forgets() -> None:
    stack, pattern, cache = Stack(), Causal(), KeyValueCache(2)
    whole = stack(IDS, pattern)
    stack(IDS[:, :5], pattern, cache)
    rows = torch.tensor([True, False, True])
    torch.testing.assert_close(stack(IDS[rows], pattern, cache.fork(rows)), whole[rows, 5:])
    torch.testing.assert_close(stack(IDS, pattern, cache.fork()), whole[:, 5:])
    assert cache.length == 5
    cache.crop(2)
    torch.testing.assert_close(stack(IDS, pattern, cache), whole[:, 2:])
    cache.crop(0)
    assert cache.length == cache.matching(IDS) == 0
    torch.testing.assert_close(stack(IDS, pattern, cache), whole)


def test_tokens_match_up_to_the_first_difference_in_any_row() -> None:
    stack, cache = Stack(), KeyValueCache(2)
    assert cache.matching(IDS) == 0
    stack(IDS[:, :8], Causal(), cache)
    assert cache.matching(IDS) == 8
    assert cache.matching(IDS[:, :3]) == 3
    assert cache.matching(IDS[:2]) == 0  # other rows
    other = IDS.clone()
    other[2, 6] += 1
    assert cache.matching(other) == 6

"""Laws of attention layers and token mixers."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.nn.initialisation import init_transformer, zero
from maskgen.nn.layers.norms import Norm
from maskgen.nn.mixers import attention as module
from maskgen.nn.mixers.attention import AttentionSettings, QKNorm, attend, resolve_backend
from maskgen.nn.mixers.cross_attention import CrossAttention
from maskgen.nn.mixers.rotary import RotaryStyle, rotate, rotation_1d, rotation_2d
from maskgen.nn.mixers.self_attention import SelfAttention
from maskgen.nn.mixers.token_mixing import TokenMixing
from maskgen.nn.modulation import modulate
from tests.cases import each


def layer(width: int = 8, heads: int = 2, projections: Any = "qkv", **settings: Any) -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(AttentionSettings(width, heads, **settings), projections).double()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_attention_is_a_softmax_average_of_values_under_any_mask() -> None:
    q, k, v = noise(3, 2, 4, 7, 8)
    some = (torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) < 0.5) | torch.eye(7, dtype=torch.bool)
    triangle = torch.ones(7, 7, dtype=torch.bool).tril()
    for mask, allowed in ((None, torch.ones_like(triangle)), (some, some), ("causal", triangle)):
        naive = torch.softmax((q @ k.mT / math.sqrt(8)).masked_fill(~allowed, -torch.inf), -1) @ v
        torch.testing.assert_close(attend(q, k, v, "sdpa", mask=mask), naive)  # type: ignore[arg-type]


def test_shared_key_heads_are_repeated_ones() -> None:
    q, k, v = noise(2, 4, 7, 8), *noise(2, 2, 2, 7, 8, seed=1)
    bias = noise(1, 4, 7, 7, seed=2).requires_grad_()
    repeated = [x.repeat_interleave(2, 1) for x in (k, v)]
    for mask in (None, "causal", noise(7, 7) > 0, bias):
        torch.testing.assert_close(
            attend(q, k, v, "sdpa", mask=mask), attend(q, *repeated, "sdpa", mask=mask)  # type: ignore[arg-type]
        )  # fmt: skip


@each("projections", ["qkv", "q_kv"])
def test_self_attention_is_its_definition(projections: str) -> None:
    x = noise(3, 5, 8)
    for norm in (None, QKNorm(), QKNorm(Norm(has_weight=False, has_bias=False), over="width")):
        for n_kv_heads, head_width in ((0, 0), (1, 0), (2, 6), (1, 6)):
            own = layer(8, 2, projections, n_kv_heads=n_kv_heads, head_width=head_width, qk_norm=norm)
            d, n_kv = head_width or 4, n_kv_heads or 2
            joined = own.qkv(x) if own.qkv is not None else torch.cat([own.q(x), own.kv(x)], -1)  # type: ignore[misc]
            q, k, v = joined.split([2 * d, n_kv * d, n_kv * d], -1)
            if norm is not None and norm.over == "width":
                q, k = own.q_norm(q), own.k_norm(k)
            heads = []
            for head in range(2):
                at, kv_at = (slice(d * index, d * index + d) for index in (head, head * n_kv // 2))
                one_q, one_k = q[..., at], k[..., kv_at]
                if norm is not None and norm.over == "head":
                    one_q, one_k = own.q_norm(one_q), own.k_norm(one_k)
                heads.append(torch.softmax(one_q @ one_k.mT / d**0.5, -1) @ v[..., kv_at])
            torch.testing.assert_close(own(x), own.out(torch.cat(heads, -1)))


def test_as_many_key_heads_as_heads_is_multi_head_attention() -> None:
    x, plain, grouped = noise(2, 5, 8), layer(8, 4), layer(8, 4, n_kv_heads=4)
    grouped.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x), grouped(x))


def test_cross_attention_to_itself_is_self_attention() -> None:
    x = noise(2, 5, 8)
    for settings in (
        AttentionSettings(8, 2),
        AttentionSettings(8, 4, n_kv_heads=2, qk_norm=QKNorm(over="width"), qkv_bias=False, out_bias=False),
    ):
        own, cross = SelfAttention(settings, "q_kv").double(), CrossAttention(settings, 8).double()
        cross.load_state_dict(own.state_dict())
        torch.testing.assert_close(own(x), cross(x, x))
        assert own.weights(x).sum(-1).allclose(torch.ones(2, 5).double())


def test_tokens_that_move_with_their_positions_move_their_outputs() -> None:
    own, x, order = layer(), noise(2, 6, 8), torch.randperm(6)
    for rotation in (None, rotation_2d((2, 3), 4)):
        moved = own(x[:, order], None if rotation is None else rotation[order])
        torch.testing.assert_close(moved, own(x, rotation)[:, order])


def test_a_rotation_for_every_row_is_taken_row_by_row() -> None:
    own, x, rotation = layer(), noise(2, 6, 8), rotation_2d((2, 6), 4)
    both = torch.stack([rotation[:6], rotation[3:9]])
    for row in range(2):
        torch.testing.assert_close(own(x, both)[row : row + 1], own(x[row : row + 1], both[row]))


def test_in_a_text_only_the_distance_counts() -> None:
    x = noise(2, 6, 8)
    for style in ("interleaved", "half"):
        own = layer(rotary=style)
        here, there, wide = (
            own(x, rotation_1d(places, 4)) for places in (torch.arange(6), torch.arange(6) + 9, torch.arange(6) * 2)
        )
        torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(here, wide, atol=1e-5)


def test_rotating_halves_is_rotating_pairs_of_reordered_channels() -> None:
    x = noise(2, 3, 6, 8)
    pairs = torch.arange(8).view(2, 4).T.flatten()  # channel of the half style at each place of the interleaved one
    half: RotaryStyle = "half"
    for dim in (8, 4):  # all channels, and partial rotary
        rotation, order = rotation_1d(torch.arange(6), dim), torch.arange(8)
        order[:dim] = pairs if dim == 8 else torch.arange(4).view(2, 2).T.flatten()
        torch.testing.assert_close(rotate(x, rotation, half)[..., order], rotate(x[..., order], rotation))
        assert torch.equal(rotate(x, rotation)[..., dim:], x[..., dim:])


def test_biases_are_there_only_if_set() -> None:
    found = {(q, o): layer(qkv_bias=q, out_bias=o).state_dict().keys() for q in (True, False) for o in (True, False)}
    for (has_qkv, has_out), names in found.items():
        assert ("qkv.bias" in names, "out.bias" in names) == (has_qkv, has_out)


def test_dropout_is_for_training() -> None:
    own, x = layer(dropout=0.5), noise(1, 6, 8)
    assert not torch.equal(own(x), own(x))
    assert torch.equal(own.eval()(x), own(x))


@each(
    "sizes, message",
    [
        ((10, 4), "multiple of heads, both positive, got width 10 and heads 4"),
        ((8, 4, 3), "n_kv_heads must divide heads 4 or be 0, got 3"),
        ((8, 4, -2), "n_kv_heads must divide heads 4 or be 0, got -2"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionSettings(*sizes)


def test_xformers_runs_by_name_only_and_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_backend("auto") == resolve_backend("sdpa") == "sdpa"
    monkeypatch.setattr(module, "has_cuda", lambda: False)
    for is_installed, message in ((False, "not installed; pip install"), (True, "no CUDA; use auto")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, has=is_installed: object() if has else None)
        with pytest.raises(ValueError, match=f"attention xformers: .*{message}"):
            layer(backend="xformers")


# Token mixing


def test_token_mixing_is_its_matrix_over_positions_per_group_of_channels() -> None:
    torch.manual_seed(0)
    mixer, x = TokenMixing(8, 5, heads=2).double(), noise(3, 5, 8)
    value = mixer.value(x)
    mixed = torch.cat([mixer.mixing[head] @ value[..., 4 * head : 4 * head + 4] for head in range(2)], -1)
    torch.testing.assert_close(mixer(x), mixer.out(mixed))
    assert mixer.fixed_length == 5
    bare = TokenMixing(8, 5, projects=False).double()
    torch.testing.assert_close(bare(x), bare.mixing[0] @ x)


def test_token_mixing_obeys_masks_as_attention_does() -> None:
    mixer, own, x = TokenMixing(8, 5, heads=2).double(), layer(), noise(3, 5, 8)
    some = noise(3, 1, 5, 5) > 0
    for mask in ("causal", some | torch.eye(5, dtype=torch.bool)):
        allowed = torch.ones(5, 5, dtype=torch.bool).tril().expand(3, 5, 5) if isinstance(mask, str) else mask[:, 0]
        for one in (mixer, own):
            before = one(x, mask=mask)  # type: ignore[arg-type]
            for place in range(5):
                other = x.clone()
                other[:, place] += 1
                changed = (one(other, mask=mask) - before).abs().amax(-1) > 1e-9  # type: ignore[arg-type]
                assert torch.equal(changed, allowed[:, :, place]), type(one)


def test_token_mixing_is_for_its_length_and_has_no_scores() -> None:
    mixer = TokenMixing(8, 5)
    for arguments, message in (
        ((torch.zeros(1, 4, 8),), "rows of 5 tokens, got 4"),
        ((torch.zeros(1, 5, 8), None, torch.zeros(5, 5)), "use a bool mask"),
    ):
        with pytest.raises(ValueError, match=message):
            mixer(*arguments)
    with pytest.raises(ValueError, match="multiple of heads"):
        TokenMixing(8, 5, 3)


# Initial weights and modulation


def test_initialisation_is_cut_at_two_deviations_and_biases_are_zero() -> None:
    network = nn.Sequential(nn.Embedding(100, 50), nn.Linear(50, 60), nn.LayerNorm(60)).requires_grad_(False)
    init_transformer(network)
    for weight in (network[0].weight, network[1].weight):
        assert float(weight.abs().max()) <= 0.04
        assert float(weight.std()) == pytest.approx(0.0176, rel=0.05)  # 0.02 before the cut
    assert not network[1].bias.any()
    assert bool((network[2].weight == 1).all())
    assert not zero(nn.Linear(3, 4))(torch.randn(2, 3)).any()


def test_modulation_scales_and_shifts() -> None:
    x, shift, scale = noise(2, 5, 4), noise(2, 1, 4, seed=1), noise(2, 1, 4, seed=2)
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale) + shift)
    assert torch.equal(modulate(x, torch.zeros_like(shift), torch.zeros_like(scale)), x)

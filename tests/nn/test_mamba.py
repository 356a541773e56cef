"""Selective scans equal the loop that defines them, and bidirectional Mamba is symmetric in its two directions."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.models import MODELS
from maskgen.nn.mixers import scan_kernels
from maskgen.nn.mixers.mamba import BiMamba, BiMambaV2, MambaSettings, SelectiveSSM
from maskgen.nn.mixers.scan import linear_scan, scan_loop, selective_scan, state_space_dual
from maskgen.recipes.load import load_recipe
from maskgen.recipes.schema import RecipeError
from maskgen.train.optim import decayed
from tests.cases import each

LENGTHS = (1, 2, 5, 13, 16)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def selective_case(length: int) -> tuple[Tensor, ...]:
    """x (2, L, 3), steps, rates (3, 4), B and C (2, L, 4)."""
    x, delta = noise(2, length, 3), noise(2, length, 3, seed=1).exp()
    return x, delta, -noise(3, 4, seed=2).exp(), noise(2, length, 4, seed=3), noise(2, length, 4, seed=4)


def dual_case(length: int) -> tuple[Tensor, ...]:
    """x (2, L, 3, 5), steps (2, L, 3), rates (3,), B and C (2, L, 4)."""
    x, delta = noise(2, length, 3, 5), noise(2, length, 3, seed=1).exp()
    return x, delta, -noise(3, seed=2).exp(), noise(2, length, 4, seed=3), noise(2, length, 4, seed=4)


def by_tokens(x: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence of Mamba as written: x (B, L, E), delta (B, L, E), rates (E, N), b and c (B, L, N)."""
    state, outputs = torch.zeros(len(x), *rates.shape, dtype=x.dtype), []
    for t in range(x.shape[1]):
        state = torch.exp(delta[:, t, :, None] * rates) * state + (delta * x)[:, t, :, None] * b[:, t, None]
        outputs.append((state * c[:, t, None]).sum(-1))
    return torch.stack(outputs, 1)


@each("length", LENGTHS)
def test_the_chunked_scan_is_the_loop_and_so_is_its_gradient(length: int) -> None:
    decay, inputs, weight = noise(2, length, 3).sigmoid(), noise(2, length, 3, seed=1), noise(2, length, 3, seed=2)
    gradients = []
    for scan in (scan_loop, linear_scan):
        leaves = [one.clone().requires_grad_() for one in (decay, inputs)]
        states = scan(*leaves)
        gradients.append([states.detach(), *torch.autograd.grad((weight * states).sum(), leaves)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_both_scans_are_those_of_finite_differences() -> None:
    for function, case in ((selective_scan, selective_case(5)), (state_space_dual, dual_case(5))):
        leaves = [one[:1].clone() if one.ndim > 2 else one.clone() for one in case]
        leaves = [one.requires_grad_() for one in leaves]
        assert torch.autograd.gradcheck(function, leaves)


@each("length", LENGTHS)
def test_both_scans_are_the_recurrence(length: int) -> None:
    case = selective_case(length)
    torch.testing.assert_close(selective_scan(*case), by_tokens(*case))
    x, delta, rates, b, c = dual_case(length)
    wide = (x.flatten(2), delta.repeat_interleave(5, 2), rates.repeat_interleave(5)[:, None].expand(-1, 4), b, c)
    for chunk in (1, 4, 64):
        y = state_space_dual(x, delta, rates, b, c, chunk)
        torch.testing.assert_close(y.flatten(2), by_tokens(*wide))
        single = state_space_dual(*(one.float() for one in (x, delta, rates, b, c)), chunk)
        torch.testing.assert_close(single.double(), y, rtol=1e-5, atol=1e-5)


def test_fast_decays_and_long_rows_neither_overflow_nor_divide_by_zero() -> None:
    x, delta, rates, b, c = (one.float() for one in dual_case(200))
    for y in (
        state_space_dual(x, 50 * delta, 20 * rates, b, c),
        selective_scan(x[:, :, 0], 50 * delta[..., :1].expand(-1, -1, 5), -torch.full((5, 4), 30.0), b, c),
    ):
        assert bool(y.isfinite().all())


def mirrored(layer: nn.Module) -> nn.Module:
    """The layer with its two directions exchanged; its symmetric convolution turned around."""
    for name in ("scans", "convolutions"):
        parts = dict(layer.named_children()).get(name)
        if parts is not None:
            first, second = (part.state_dict() for part in parts.children())
            first, second = ({k: v.clone() for k, v in one.items()} for one in (first, second))
            parts[0].load_state_dict(second)  # type: ignore[index]
            parts[1].load_state_dict(first)  # type: ignore[index]
    if isinstance(layer, BiMambaV2):
        layer.convolution.weight.data = layer.convolution.weight.data.flip(-1)
    return layer


@each("kind", (BiMamba, BiMambaV2))
@each("scan", ("selective", "ssd"))
def test_a_flipped_row_through_exchanged_directions_is_the_flipped_result(kind: Any, scan: Any) -> None:
    torch.manual_seed(0)
    layer = kind(MambaSettings(8, d_state=3, kernel=3, scan=scan, head_width=4)).double()
    x = noise(2, 7, 8)
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(mirrored(layer)(x.flip(1)).flip(1), y)
        assert not torch.allclose(layer(x), y), "the directions are the same"


@each("scan", ("selective", "ssd"))
def test_a_single_direction_is_causal_starts_as_published_and_keeps_its_precision(scan: Any) -> None:
    torch.manual_seed(0)
    ssm = SelectiveSSM(16, MambaSettings(8, scan=scan, head_width=4))
    x = noise(2, 9, 16).float()
    later = x.clone()
    later[:, 5:] += 1
    torch.testing.assert_close(ssm(later)[:, :5], ssm(x)[:, :5])
    steps = nn.functional.softplus(ssm.step_bias)
    assert 1e-4 <= float(steps.detach().min()) <= float(steps.detach().max()) <= 0.101
    assert decayed(ssm) == {"select.weight", "step"} - ({"step"} if scan == "ssd" else set())
    assert ssm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_dropped_tokens_are_the_scan_of_the_kept_ones_in_order() -> None:
    from maskgen.core.subset import TokenSubset

    torch.manual_seed(0)
    network = MODELS.build(
        {"type": "mdlm", "width": 8, "depth": 2, "heads": 2, "mixer": {"type": "bi_mamba_v2", "head_width": 4}},
        vocab_size=5,
    )
    nn.init.normal_(network.head.weight)  # type: ignore[arg-type, union-attr]
    ids, keep = torch.randint(0, 5, (2, 9)), torch.tensor([[0, 3, 4], [2, 7, 8]])
    kept = network(ids, torch.zeros(2), subset=TokenSubset(keep, 9)).logits
    alone = network(ids.gather(1, keep), torch.zeros(2)).logits
    torch.testing.assert_close(kept.gather(1, keep[..., None].expand(-1, -1, 5)), alone)


def test_the_kernels_of_mamba_ssm_are_called_in_its_layout_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def selective_scan_fn(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return by_tokens(u.mT, delta.mT, a, b.mT, c.mT).mT  # (B, E, L), (B, N, L)

    def mamba_chunk_scan_combined(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk_size: int) -> Tensor:
        assert b.shape[2] == c.shape[2] == 1, "one group"
        return state_space_dual(x, dt, a, b[:, :, 0], c[:, :, 0], chunk_size)

    for name, entry in (
        ("selective_scan_interface", selective_scan_fn),
        ("triton.ssd_combined", mamba_chunk_scan_combined),
    ):
        module = types.ModuleType(name)
        setattr(module, entry.__name__, entry)
        monkeypatch.setitem(sys.modules, f"mamba_ssm.ops.{name}", module)
    case, dual = selective_case(6), dual_case(6)
    expected = selective_scan(*case), state_space_dual(*dual)
    monkeypatch.setattr(scan_kernels, "has_kernels", lambda *_: True)
    torch.testing.assert_close(scan_kernels.run_selective(*case, "auto"), expected[0])
    torch.testing.assert_close(scan_kernels.run_dual(*dual, "auto"), expected[1])


def test_kernels_that_are_not_there_are_refused_by_name_and_auto_goes_without() -> None:
    with pytest.raises(ValueError, match=r"pip install maskgen\[mamba\]"):
        scan_kernels.has_kernels("mamba_ssm", noise(1))
    assert not scan_kernels.has_kernels("auto", noise(1))


@each(
    "changes, message",
    [
        (["model.mixer={type: bi_mamba, scan: fast}"], "scan"),
        (["model.mixer={type: bi_mamba, expand: 0}"], "must be positive"),
        (["model.mixer=bi_mamba", "train.document_attention=true"], "document_attention"),
    ],
)
def test_impossible_settings_are_refused_in_a_line(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("text/kjv-md4", changes)


def test_text_from_left_to_right_cannot_be_mixed_in_both_directions() -> None:
    with pytest.raises(RecipeError, match="needs a causal mixer, bi_mamba is none; use attention"):
        load_recipe("text/kjv-ar", ["model.mixer=bi_mamba"])

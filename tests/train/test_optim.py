"""Laws of the optimizers, of their groups and of the learning rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.models import MODELS
from maskgen.nn.mixers.attention import AttentionSettings
from maskgen.nn.mixers.self_attention import SelfAttention
from maskgen.recipes.budget import TrainSettings, learning_rate
from maskgen.recipes.load import parse_recipe
from maskgen.tokenizers import TOKENIZERS
from maskgen.train.ema import Ema
from maskgen.train.optim import build_optimizer, decayed, orthogonal_factor
from maskgen.train.state import collect, restore, save
from tests.tiny import CLASSES, SHAPE, tree

MASKGIT = {"type": "maskgit", "width": 8, "depth": 1, "heads": 2}


@pytest.mark.parametrize("changes", [{}, {"norm": "post", "condition": "token", "tied": False}, {"qk_norm": True}])
def test_norms_biases_embeddings_and_positions_do_not_decay(changes: dict[str, object]) -> None:
    network = MODELS.build(MASKGIT | changes, vocab_size=5, grid=(2, 2), n_classes=3)
    names = decayed(network)
    assert "blocks.0.attention.qkv.weight" in names
    assert "blocks.0.mlp.expand.weight" in names
    for name, parameter in network.named_parameters():
        is_plain = parameter.ndim == 1 or name in ("embedding.weight", "labels.weight", "positions")
        assert (name in names) is not is_plain, name


def test_kernels_decay_and_group_norms_do_not() -> None:
    spec = {"type": "fsq", "levels": [3], "width": 8, "fine_width": 4, "depth": 1}
    names = decayed(TOKENIZERS.build(spec, image_shape=(1, 8, 8)))
    assert "encoder.stem.weight" in names
    assert not any(name.endswith(("bias", "norm.weight")) for name in names)


def test_every_trainable_parameter_is_in_one_group() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    network[2].requires_grad_(False)
    optimizer = build_optimizer(network, TrainSettings(weight_decay=0.3, betas=(0.8, 0.9)))
    matrix, rest = optimizer.param_groups
    assert [p is network[0].weight for p in matrix["params"]] == [True]
    assert {id(p) for p in rest["params"]} == {id(p) for p in (network[0].bias, *network[1].parameters())}
    assert (matrix["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert matrix["betas"] == (0.8, 0.9)


def test_a_parameter_without_gradient_signal_shrinks_only_if_it_decays() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2))
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = build_optimizer(network, TrainSettings(lr=0.1, weight_decay=0.5))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    ratios = [(p / b).mean().item() for p, b in zip(network.parameters(), before, strict=True)]
    assert ratios == pytest.approx([1 - 0.1 * 0.5, 1, 1])


def rates(**settings: object) -> list[float]:
    chosen = TrainSettings.model_validate({"steps": 10, "lr": 2.0, "warmup": 4, **settings})
    return [learning_rate(step, chosen) for step in range(chosen.steps + 1)]


def test_the_rate_rises_linearly_and_never_is_zero_at_first() -> None:
    assert rates(lr_schedule="constant") == pytest.approx([0.5, 1.0, 1.5, 2.0, 2, 2, 2, 2, 2, 2, 2])


def test_the_rate_falls_as_half_a_cosine_to_zero() -> None:
    wanted = [2 * 0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(7)]
    assert rates()[4:] == pytest.approx(wanted)
    assert rates()[-1] == pytest.approx(0)
    assert learning_rate(50, TrainSettings(steps=10, warmup=4)) == pytest.approx(0)


def test_without_warmup_the_first_step_is_a_full_one() -> None:
    assert rates(warmup=0)[0] == 2.0


def test_a_warmup_longer_than_the_run_is_a_rising_rate() -> None:
    longer = rates(warmup=100)
    assert all(math.isfinite(rate) and rate > 0 for rate in longer[:10])
    assert longer[:10] == sorted(longer[:10])


# Muon

TEXT = {"type": "mdlm", "width": 16, "depth": 2, "heads": 2, "cond_width": 4, "has_exponents": True}
MUON = TrainSettings(optimizer="muon", lr=0.02, weight_decay=0.1)


def with_gradients(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (8, 64), (64, 8), (32, 48), (300, 20), (1, 30)])
def test_the_orthogonal_factor_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal_factor(matrix))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


@pytest.mark.parametrize("shape", [(8, 64), (64, 8)])
def test_the_orthogonal_factor_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    u, s, vt = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    inside = u.mT @ orthogonal_factor(u @ s.diag() @ vt) @ vt.mT
    torch.testing.assert_close(inside, inside.diag().diag(), atol=1e-4, rtol=0)
    assert torch.equal(inside.diag(), inside.diag().clamp(min=0.6))


@pytest.mark.parametrize("scale", [1e-4, 3.0, 1e6])
def test_the_orthogonal_factor_does_not_depend_on_the_scale(scale: float) -> None:
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal_factor(scale * matrix), orthogonal_factor(matrix), atol=2e-3, rtol=0)
    torch.testing.assert_close(orthogonal_factor(-matrix), -orthogonal_factor(matrix))
    torch.testing.assert_close(orthogonal_factor(matrix.mT), orthogonal_factor(matrix).mT, atol=1e-4, rtol=0)


def test_nothing_turned_is_nothing() -> None:
    assert not orthogonal_factor(torch.zeros(3, 4)).any()


class Blocks(nn.Module):
    """One block with one matrix."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(shape[1], shape[0], bias=False)])

    @property
    def weight(self) -> nn.Parameter:
        weight = self.blocks[0].weight
        assert isinstance(weight, nn.Parameter)
        return weight


@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (32, 32)])
def test_a_step_is_the_orthogonal_factor_of_the_gradient_at_the_size_of_adamw(shape: tuple[int, int]) -> None:
    module = with_gradients(Blocks(*shape))
    before, grad = module.weight.detach().clone(), module.weight.grad
    assert grad is not None
    build_optimizer(module, TrainSettings(optimizer="muon", lr=0.5, weight_decay=0.25)).step()
    step = module.weight.detach() - before * (1 - 0.5 * 0.25)
    torch.testing.assert_close(step, -0.5 * 0.2 * math.sqrt(max(shape)) * orthogonal_factor(grad), atol=1e-4, rtol=0)
    assert 0.6 < float(step.square().mean().sqrt()) / (0.5 * 0.2) < 1.3


def test_momentum_is_nesterov_s() -> None:
    module, settings = Blocks(4, 6), TrainSettings(optimizer="muon", lr=0.1, weight_decay=0)
    optimizer, average = build_optimizer(module, settings), torch.zeros(4, 6)
    for seed in range(4):
        with_gradients(module, seed)
        before, grad = module.weight.detach().clone(), module.weight.grad
        assert grad is not None
        optimizer.step()
        average = 0.95 * average + 0.05 * grad
        wanted = orthogonal_factor(0.05 * grad + 0.95 * average)
        torch.testing.assert_close(before - module.weight, 0.1 * 0.2 * math.sqrt(6) * wanted, atol=1e-5, rtol=0)


def test_queries_keys_and_values_in_one_matrix_step_as_three_matrices() -> None:
    fused = MODELS.build(TEXT, vocab_size=5)
    weight = fused.blocks[1].attention.qkv.weight
    apart = nn.Module()
    apart.blocks = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(3))
    for part, rows in zip(apart.blocks, weight.detach().chunk(3), strict=True):
        part.weight.data = rows.clone()
    optimizers = [build_optimizer(module, MUON) for module in (fused, apart)]
    for seed in range(3):
        with_gradients(fused, seed)
        for part, rows in zip(apart.blocks, weight.grad.chunk(3), strict=True):
            part.weight.grad = rows.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(weight, torch.cat([part.weight for part in apart.blocks]))


def test_fewer_heads_of_keys_and_values_step_as_matrices_of_their_own_sizes() -> None:
    attention = SelfAttention(AttentionSettings(32, 4, n_kv_heads=1))
    fused = Blocks(1, 1)
    fused.blocks = nn.ModuleList([attention])
    assert attention.qkv is not None
    rows = [32, 8, 8]
    apart = Blocks(1, 1)
    apart.blocks = nn.ModuleList(nn.Linear(32, n, bias=False) for n in rows)
    for part, value in zip(apart.blocks, attention.qkv.weight.detach().split(rows), strict=True):
        part.weight.data = value.clone()
    optimizers = [build_optimizer(module, MUON) for module in (fused, apart)]
    for seed in range(2):
        with_gradients(fused, seed)
        assert attention.qkv.weight.grad is not None
        for part, value in zip(apart.blocks, attention.qkv.weight.grad.split(rows), strict=True):
            part.weight.grad = value.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(attention.qkv.weight, torch.cat([part.weight for part in apart.blocks]))


TURNED = ("attention.qkv.weight", "attention.out.weight", "mlp.expand.weight", "mlp.contract.weight")


def test_all_but_the_matrices_of_the_blocks_steps_as_with_adamw() -> None:
    networks = [MODELS.build(TEXT, vocab_size=5) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [
        build_optimizer(networks[0], MUON),
        build_optimizer(networks[1], MUON.model_copy(update={"optimizer": "adamw"})),
    ]
    assert type(optimizers[1]) is torch.optim.AdamW
    for seed in range(3):
        for network, optimizer in zip(networks, optimizers, strict=True):
            with_gradients(network, seed)
            optimizer.step()
    pairs = zip(networks[0].named_parameters(), networks[1].parameters(), strict=True)
    differing = {name for (name, ours), theirs in pairs if not torch.equal(ours, theirs)}
    assert differing == {f"blocks.{index}.{name}" for index in range(2) for name in TURNED}


@pytest.mark.parametrize(
    ("spec", "derived"),
    [
        (TEXT, {"vocab_size": 5}),
        ({"type": "bd3", "width": 8, "depth": 1, "heads": 2, "qk_norm": True}, {"vocab_size": 5}),
        (MASKGIT, {"vocab_size": 5, "grid": (2, 2), "n_classes": 3}),
        (MASKGIT | {"norm": "post", "condition": "token"}, {"vocab_size": 5, "grid": (2, 2), "n_classes": 3}),
        ({"type": "classifier", "width": 8}, {"image_shape": (1, 8, 8), "n_classes": 3}),
    ],
)
def test_muon_leaves_out_no_parameter_and_takes_none_twice(spec: dict[str, object], derived: dict[str, Any]) -> None:
    network = MODELS.build(spec, **derived)
    taken = [id(p) for group in build_optimizer(network, MUON).param_groups for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for p in network.parameters())


def test_a_matrix_without_a_gradient_is_left_as_it_is() -> None:
    network = with_gradients(MODELS.build(TEXT, vocab_size=5))
    still = network.blocks[0].mlp.expand.weight
    still.grad, before = None, still.detach().clone()
    build_optimizer(network, MUON).step()
    assert torch.equal(still, before)


def test_a_closure_is_evaluated_once_and_before_the_step() -> None:
    module, plain = Blocks(4, 6), Blocks(4, 6)
    plain.load_state_dict(module.state_dict())
    optimizers = [build_optimizer(m, MUON) for m in (module, plain)]
    calls: list[float] = []

    def closure() -> float:
        loss = module.weight.square().sum()
        loss.backward()
        calls.append(loss.item())
        return calls[-1]

    plain.weight.square().sum().backward()
    optimizers[1].step()
    assert optimizers[0].step(closure) == calls[0]
    assert len(calls) == 1
    assert torch.equal(module.weight, plain.weight)
    assert len(optimizers[0].param_groups) == len(optimizers[1].param_groups) == 1


@pytest.mark.learned
def test_muon_fits_a_linear_map() -> None:
    torch.manual_seed(0)
    module, wanted = Blocks(6, 10), torch.randn(6, 10)
    optimizer = build_optimizer(module, TrainSettings(optimizer="muon", lr=0.1, weight_decay=0))
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        optimizer.zero_grad()
        (module.weight - wanted).square().sum().backward()
        optimizer.step()
    assert float((module.weight.detach() - wanted).abs().max()) < 0.02


def test_a_restored_run_of_muon_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def build(seed: int) -> tuple[nn.Module, Ema, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        network = MODELS.build(TEXT, vocab_size=5)
        return network, Ema(network, 0.5), build_optimizer(network, MUON)

    def train(parts: tuple[nn.Module, Ema, torch.optim.Optimizer], first: int) -> None:
        for step in range(first, first + 3):
            with_gradients(parts[0], step)
            parts[2].step()
            parts[1].update(step)

    ours, theirs = build(0), build(1)
    train(ours, 1)
    path = save(
        tmp_path,
        3,
        parse_recipe(tree(train={"optimizer": "muon"})),
        collect(*ours),
        {"classes": CLASSES, "image_shape": list(SHAPE)},
    )
    train(ours, 4)
    restore(read_checkpoint(path), *theirs)
    train(theirs, 4)
    for (name, first), second in zip(ours[0].named_parameters(), theirs[0].parameters(), strict=True):
        assert torch.equal(first, second), name
        assert ours[2].state[first].keys() == theirs[2].state[second].keys()
        for key, value in ours[2].state[first].items():
            assert torch.equal(value, theirs[2].state[second][key]), (name, key)

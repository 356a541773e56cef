"""Laws of the moving average of weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskgen.train.ema import Ema, decay_at


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def move(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)


@pytest.mark.parametrize(("step", "decay"), [(1, 0.0), (2, 0.181818), (10, 0.526316), (100, 0.917431), (1000, 0.99108)])
def test_the_decay_grows_as_published(step: int, decay: float) -> None:
    assert decay_at(step, 0.9999) == pytest.approx(decay, abs=5e-7)


@pytest.mark.parametrize(("limit", "step"), [(0.999, 8991), (0.9999, 89991)])
def test_the_decay_reaches_its_limit_and_stays(limit: float, step: int) -> None:
    assert decay_at(step - 1, limit) < limit
    assert decay_at(step, limit) == pytest.approx(limit, abs=1e-12)
    assert decay_at(10 * step, limit) == limit


def test_the_average_is_the_recursion() -> None:
    module = network()
    ema = Ema(module, 0.3)
    wanted = module[0].weight.detach().clone()
    for step in range(1, 6):
        move(module, step)
        ema.update(step)
        decay = decay_at(step, 0.3)
        wanted = decay * wanted + (1 - decay) * module[0].weight.detach()
    torch.testing.assert_close(ema.average["0.weight"], wanted)


def test_the_first_step_forgets_the_start() -> None:
    module = network()
    ema = Ema(module, 0.999)
    move(module, 1)
    ema.update(1)
    assert same(ema.state_dict(), state(module))


def test_applied_weights_are_the_average_and_are_undone_exactly() -> None:
    module = network()
    ema = Ema(module, 0.9)
    move(module, 1)
    raw = state(module)
    with ema.applied() as applied:
        assert applied is module
        assert same(state(module), ema.state_dict())
        assert not same(state(module), raw)
        assert not module.training
    assert same(state(module), raw)
    assert module.training


def test_weights_come_back_after_an_error() -> None:
    module = network()
    ema = Ema(module, 0.9)
    move(module, 1)
    raw = state(module)
    with pytest.raises(RuntimeError, match="stop"), ema.applied():
        raise RuntimeError("stop")
    assert same(state(module), raw)
    assert module.training


def test_applying_does_not_change_the_average() -> None:
    module = network()
    ema = Ema(module, 0.9)
    move(module, 1)
    before = {name: value.clone() for name, value in ema.average.items()}
    with ema.applied():
        move(module, 5)
    assert same(ema.average, before)


def test_buffers_are_copied_as_they_are() -> None:
    module = network()
    ema = Ema(module, 0.9)
    module(torch.randn(4, 3) + 7)
    ema.update(5)
    assert torch.equal(ema.state_dict()["1.running_mean"], module[1].running_mean)


def test_without_a_limit_it_is_the_module_itself() -> None:
    module = network()
    ema = Ema(module, 0.0)
    move(module, 1)
    ema.update(1)
    assert ema.average == {}
    assert same(ema.state_dict(), state(module))
    with ema.applied():
        assert same(ema.state_dict(), state(module))
    assert module.training


def test_a_loaded_average_goes_on() -> None:
    module = network()
    first, second = Ema(module, 0.9), Ema(module, 0.9)
    move(module, 1)
    first.update(7)
    second.load(first.state_dict())
    move(module, 1)
    first.update(8)
    second.update(8)
    assert same(first.average, second.average)

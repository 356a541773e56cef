"""Laws of the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from maskgen.budget import TrainSettings
from maskgen.errors import UserError
from maskgen.predictions import Batch, Loss
from maskgen.rng import Rng
from maskgen.train.ema import Ema
from maskgen.train.loop import Loop, Means, check_finite, validate
from maskgen.train.optim import build_optimizer


class Distance:
    """Squared distance of a linear layer's answer from noise of the Rng; what it was called with is kept."""

    baseline = None

    def __init__(self) -> None:
        self.noise: list[Tensor] = []
        self.keep_ratios: list[float] = []

    def __call__(self, model: Any, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:
        self.noise.append(rng.normal(batch.x_0.shape))
        self.keep_ratios.append(keep_ratio)
        value = (model(batch.x_0) - batch.x_0).square().mean()
        return Loss(value, {"loss": torch.stack([value.detach(), torch.ones(())])})


def rows(size: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 3, generator=generator)
    for first in range(0, 64, size):
        yield data[first : first + size], torch.zeros(size)


def to_batch(x_0: Tensor, labels: Tensor, rng: Rng) -> Batch:
    return Batch(x_0)


def build(seed: int = 0, size: int = 4, **settings: Any) -> Loop:
    torch.manual_seed(0)
    chosen = TrainSettings.model_validate({"steps": 3, "warmup": 0, "clip": 1e9, "lr": 0.01, **settings})
    module = nn.Linear(3, 3)
    return Loop(
        model=module,
        objective=Distance(),
        optimizer=build_optimizer(module, chosen),
        ema=Ema(module, chosen.ema),
        data=rows(size),
        to_batch=to_batch,
        accelerator=Accelerator(cpu=True),
        settings=chosen,
        seed=seed,
    )


def weights(loop: Loop) -> Tensor:
    weight: Tensor = loop.model.weight.detach().clone()  # type: ignore[assignment, operator]
    return weight


def test_every_step_is_reported_once_from_one_on() -> None:
    loop, seen = build(), []
    loop.run(lambda step, loss: seen.append(step))
    assert seen == [1, 2, 3]
    assert loop.step == 3


def test_micro_batches_add_up_to_the_batch() -> None:
    whole, parts = build(size=8), build(size=2, accumulate=4, batch_size=8)
    whole.run(lambda *_: None)
    parts.run(lambda *_: None)
    torch.testing.assert_close(weights(parts), weights(whole))


def test_noise_is_a_function_of_seed_step_and_micro_batch() -> None:
    runs = [build(seed, accumulate=2, batch_size=8) for seed in (0, 0, 1)]
    for loop in runs:
        loop.run(lambda *_: torch.rand(7))  # what others draw makes no difference
    first, again, other = (loop.objective.noise for loop in runs)  # type: ignore[attr-defined]
    assert len(first) == 6
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])


def test_the_keep_ratio_reaches_the_objective() -> None:
    loop = build(keep_ratio=0.25)
    loop.run(lambda *_: None)
    assert loop.objective.keep_ratios == [0.25] * 3  # type: ignore[attr-defined]


def test_gradients_are_clipped() -> None:
    free, clipped = build(steps=1), build(steps=1, clip=1e-9)
    norms = []
    for loop in (free, clipped):
        loop.optimizer.register_step_pre_hook(
            lambda optimizer, *_: norms.append(
                torch.stack([p.grad.norm() for g in optimizer.param_groups for p in g["params"]]).norm().item()
            )
        )
        loop.run(lambda *_: None)
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(1e-9, rel=1e-3)


def test_the_average_follows_every_step() -> None:
    loop = build(ema=0.5)
    averages = []
    loop.run(lambda *_: averages.append(loop.ema.average["weight"].clone()))
    assert torch.equal(averages[0], loop_weights_after(1))
    assert not torch.equal(averages[2], weights(loop))


def loop_weights_after(steps: int) -> Tensor:
    """The raw weights after some of the three steps."""
    loop, seen = build(ema=0.5), []
    loop.run(lambda *_: seen.append(weights(loop)))
    return seen[steps - 1]


def test_means_are_sums_over_counts_whatever_the_batches_were() -> None:
    means = Means()
    means.add({"x": torch.tensor([6.0, 3.0]), "never": torch.tensor([0.0, 0.0])})
    means.add({"x": torch.tensor([2.0, 1.0]), "never": torch.tensor([0.0, 0.0])})
    accelerator = Accelerator(cpu=True)
    assert means.take(accelerator) == {"x": 2.0}
    assert means.take(accelerator) == {}


def test_logging_does_not_change_what_was_logged() -> None:
    means, value = Means(), torch.tensor([1.0, 1.0])
    means.add({"x": value})
    means.add({"x": value})
    assert value.tolist() == [1, 1]


def test_validation_draws_the_same_noise_every_time() -> None:
    objective, model = Distance(), nn.Linear(3, 3)
    answers = [validate(model, objective, rows(), to_batch, Accelerator(cpu=True)) for _ in range(2)]
    assert answers[0] == answers[1]
    half = len(objective.noise) // 2
    assert all(torch.equal(a, b) for a, b in zip(objective.noise[:half], objective.noise[half:], strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_diverged_stops_the_run_with_advice(value: float) -> None:
    with pytest.raises(UserError, match=r"at step 12: .* lower train.lr"):
        check_finite(value, 12)
    check_finite(1e30, 12)

"""Laws of the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from maskgen.core.errors import Diverged
from maskgen.core.predictions import Batch, Loss
from maskgen.core.rng import Rng
from maskgen.recipes.budget import TrainSettings
from maskgen.tokenizers.image.quantise import VQ
from maskgen.train.ema import Ema
from maskgen.train.loop import Loop, Means, validate
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


class Eager(Distance):
    """One that wants to know how far the run is."""

    def __init__(self) -> None:
        super().__init__()
        self.progress: list[float] = []

    def __call__(self, model: Any, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0, progress: float = 0.0) -> Loss:
        self.progress.append(progress)
        return super().__call__(model, batch, rng, keep_ratio=keep_ratio)


def test_progress_is_the_share_of_steps_done_whoever_began_them() -> None:
    loop, resumed = build(accumulate=2, batch_size=8, steps=4), build(steps=4)
    loop.objective, resumed.objective, resumed.step = Eager(), Eager(), 2
    for one in (loop, resumed):
        one.run(lambda *_: None)
    assert loop.objective.progress == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert resumed.objective.progress == [0.5, 0.75]


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


def poisoned(at: set[int]) -> Loop:
    """A loop of six steps whose data are NaN at some of them."""
    loop = build(steps=6, ema=0.5, skip_limit=2)
    clean = rows()
    loop.data = ((x * float("nan") if step in at else x, y) for step, (x, y) in enumerate(clean))
    return loop


def test_a_step_without_finite_gradient_changes_nothing_and_is_counted() -> None:
    loop, seen = poisoned({1, 4}), []
    loop.run(lambda *_: seen.append((weights(loop), loop.ema.average["weight"].clone())))
    for before, after in ((0, 1), (3, 4)):
        assert torch.equal(seen[before][0], seen[after][0])
        assert torch.equal(seen[before][1], seen[after][1])
    assert not torch.equal(seen[1][0], seen[2][0])
    assert (loop.skipped, loop.skipped_in_a_row) == (2, 0)
    assert all(torch.isfinite(weight).all() for weight, _ in seen)


@pytest.mark.parametrize("moving", [nn.BatchNorm1d(3), VQ(4, 3)], ids=["statistics", "codebook"])
def test_a_skipped_step_leaves_running_statistics_and_codebooks_alone(moving: nn.Module) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.moving = nn.Linear(3, 3), moving

        def forward(self, x: Tensor) -> Tensor:
            z = self.linear(x)
            moved: Tensor = self.moving(z[None])[0][0] if isinstance(self.moving, VQ) else self.moving(z)
            return moved

    module, loop = Net(), poisoned({2})
    loop.model, loop.optimizer = module, build_optimizer(module, loop.settings)
    loop.ema = Ema(module, 0.5)
    seen: list[dict[str, Tensor]] = []
    loop.run(lambda *_: seen.append({name: value.clone() for name, value in module.state_dict().items()}))
    assert loop.skipped == 1
    assert all(torch.equal(value, seen[2][name]) for name, value in seen[1].items())
    assert not all(torch.equal(seen[0][name], seen[1][name]) for name, _ in module.named_buffers())
    assert all(torch.isfinite(value).all() for value in seen[-1].values())


def test_a_run_of_them_ends_training_with_the_rows_at_hand() -> None:
    loop = poisoned({2, 3, 4})
    with pytest.raises(Diverged, match=r"in 2 steps in a row, up to step 4: lower train.lr"):
        loop.run(lambda *_: None)
    assert torch.isnan(loop.rows[0][0]).all()
    assert torch.isfinite(weights(loop)).all()


def test_sums_between_two_logs_survive_a_checkpoint() -> None:
    accelerator, first, second = Accelerator(cpu=True), Means(), Means()
    first.add({"x": torch.tensor([0.1, 3.0])})
    second.load(first.state(accelerator), accelerator)
    for means in (first, second):
        means.add({"x": torch.tensor([0.7, 1.0])})
    assert first.take(accelerator) == second.take(accelerator)


def test_rows_of_more_processes_are_summed_by_the_first() -> None:
    means = Means()
    means.load({"x": [[1.0, 2.0], [3.0, 4.0]]}, Accelerator(cpu=True))
    assert means.sums["x"].tolist() == [4.0, 6.0]

"""A short fine-tuning of a network as a classifier: its features, unfrozen, under a linear layer."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.errors import UserError
from maskgen.core.pixels import to_float
from maskgen.core.rng import Rng
from maskgen.data.loader import CounterSampler, Rows, in_order
from maskgen.evaluation.probes.classifiers import EPS, Accuracy
from maskgen.evaluation.probes.representation import BATCH, Encoder

WARMUP = 0.05
"""Share of the run."""
_BLOCK = re.compile(r"(?:^|\.)(?:encoder_)?(?:blocks|modulations)\.(\d+)\.")
_AFTER = re.compile(r"(?:^|\.)(?:head|norm)\.")


@dataclass(frozen=True)
class Tuning:
    """AdamW with a rate that falls from layer to layer (MAE, arXiv 2111.06377, appendix A.1; MAGE takes the same 0.65).

    Attributes:
        epochs: over the training images.
        minutes: of processor time instead, if given.
        lr: of the last layer, at its highest: 5 % warm-up, then a cosine to zero.
        batch_size: images a step.
        decay: the rate of a layer is that of the next one times this.
        weight_decay: of matrices.
        smoothing: of the labels.
        seed: of the order of the images and of the last layer's start.
    """

    epochs: int = 3
    minutes: float | None = None
    lr: float = 1e-3
    batch_size: int = 128
    decay: float = 0.65
    weight_decay: float = 0.05
    smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size - 1) < 1 or not self.lr > 0 or not 0 < self.decay <= 1:
            raise ValueError(
                f"epochs must be at least 1, batch_size 2, lr above 0 and decay in (0, 1], got {self.epochs}, "
                f"{self.batch_size}, {self.lr} and {self.decay}"
            )
        if not math.isfinite(self.lr) or (self.minutes is not None and not 0 < self.minutes < math.inf):
            raise ValueError(f"minutes and lr must be above 0 and finite, got {self.minutes} and {self.lr}")

    @property
    def length(self) -> str:
        """For the name of the score."""
        return f"{self.epochs} epochs" if self.minutes is None else f"{self.minutes:g} min"

    def shares(self, n: int, clock: Callable[[], float] = time.process_time) -> Iterator[float]:
        """How much of the run is done, in [0, 1), before each of its steps over n images."""
        start, done = clock(), 0
        steps = self.epochs * max(1, n // self.batch_size)
        while (share := done / steps if self.minutes is None else (clock() - start) / 60 / self.minutes) < 1:
            yield share
            done += 1


def finetuned(
    encoder: Encoder,
    train: Rows,
    test: Rows,
    n_classes: int,
    tuning: Tuning = Tuning(),
    progress: Callable[[Iterator[float]], Iterator[float]] = iter,
) -> Accuracy:
    """Accuracy on the test images after training on the others; the encoder has its old weights again afterwards.

    Rows are images (B, C, H, W) uint8 and labels (B,) below `n_classes`. Dropout stays off. Layers that
    features do not depend on are left alone. What the last layer takes off features, and divides them by, is a batch's
    in training and that of all training images, as the network ends, in scoring: a running average would not have
    arrived after a short training.

    Raises:
        ValueError: an encoder without a network that learns, or fewer than two training images.
        UserError: it diverges.
    """
    network = encoder.module
    if network is None or not any(True for _ in network.parameters()):
        raise ValueError(f"{encoder.name} have nothing to fine-tune")
    if len(train) < 2:
        raise ValueError(f"fine-tuning needs at least 2 training images, got {len(train)}")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.requires_grad_(True)
    try:
        top = _trained(encoder, network, train, n_classes, tuning, progress)
        found = [(top(encoder(images)).argmax(1), labels) for images, labels in in_order(test, BATCH)]
        return Accuracy.of(torch.cat([guess for guess, _ in found]), torch.cat([labels for _, labels in found]))
    finally:
        network.requires_grad_(False)
        network.load_state_dict(before)


def _trained(
    encoder: Encoder,
    network: nn.Module,
    train: Rows,
    n_classes: int,
    tuning: Tuning,
    progress: Callable[[Iterator[float]], Iterator[float]],
) -> nn.Sequential:
    """The last layer, trained with the network under it; on the CPU."""
    device = encoder.device
    batch_size = min(tuning.batch_size, len(train))
    order = CounterSampler(len(train), batch_size, tuning.seed)
    images, _ = train.__getitems__(order.indices(0))
    pooled = encoder.network(to_float(images.to(device)))
    top = _top(pooled.shape[1], n_classes, tuning.seed).to(device)
    optimizer = torch.optim.AdamW(_groups(network, pooled, top, tuning), lr=tuning.lr, betas=(0.9, 0.999))
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step, share in enumerate(progress(tuning.shares(len(train)))):
        images, labels = train.__getitems__(order.indices(step))
        logits = top(encoder.network(to_float(images.to(device))))
        loss = F.cross_entropy(logits, labels.to(device), label_smoothing=tuning.smoothing)
        _require_finite(loss.detach(), f"the loss of step {step + 1}", tuning)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate(share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _settled(top.cpu(), encoder, train, tuning)


def _settled(top: nn.Sequential, encoder: Encoder, train: Rows, tuning: Tuning) -> nn.Sequential:
    """The last layer for scoring, with mean and variance of the features of all training images."""
    features = torch.cat([encoder(images) for images, _ in in_order(train, BATCH)]).double()
    norm = top[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(features.mean(0))
    norm.running_var.copy_(features.var(0, correction=0))
    top.eval()
    with torch.no_grad():
        _require_finite(top(features[:BATCH].float()), "the output of the trained network", tuning)
    return top


def _require_finite(x: Tensor, what: str, tuning: Tuning) -> None:
    if not bool(x.isfinite().all()):
        raise UserError(f"fine-tuning diverged: {what} is NaN or infinite; choose an --lr below {tuning.lr:g}")


def rate(share: float) -> float:
    """The learning rate after a share of the run, of its highest."""
    return min(1.0, (share + 1e-3) / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))


def layer_rates(names: Iterable[str], decay: float) -> dict[str, float]:
    """Parameter -> its rate as a share of the last layer's: decay^(depth - i) in block i = 0 ... depth - 1, 1 after the
    blocks, decay^(depth + 1) before them."""
    blocks = {name: int(found[1]) for name in names if (found := _BLOCK.search(name))}
    depth = 1 + max(blocks.values(), default=-1)
    outside = {name: 0 if _AFTER.search(name) else depth + 1 for name in names}
    return {name: decay ** (depth - blocks[name] if name in blocks else outside[name]) for name in names}


def _groups(network: nn.Module, pooled: Tensor, top: nn.Module, tuning: Tuning) -> list[dict[str, object]]:
    """A group for each rate and weight decay, of the parameters that the features depend on and the last layer's."""
    named = dict(network.named_parameters())
    grads = torch.autograd.grad(pooled.sum(), list(named.values()), allow_unused=True)
    used = [name for name, grad in zip(named, grads, strict=True) if grad is not None]
    rated = [(named[name], share) for name, share in layer_rates(used, tuning.decay).items()]
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter, share in [*rated, *((parameter, 1.0) for parameter in top.parameters())]:
        groups.setdefault((share, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": params, "lr": tuning.lr * share, "weight_decay": tuning.weight_decay if is_matrix else 0.0}
        for (share, is_matrix), params in groups.items()
    ]


def _top(width: int, n_classes: int, seed: int) -> nn.Sequential:
    """BatchNorm without weights and a linear layer: features (B, D) -> logits (B, K)."""
    linear = nn.utils.skip_init(nn.Linear, width, n_classes)
    linear.weight.data = 0.01 * Rng.stream(seed, "last layer").normal(linear.weight.shape)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=EPS), linear)

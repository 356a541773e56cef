"""Classification accuracy of features: a linear probe and a vote of nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.rng import Rng

STRENGTHS = (1e-2, 1e-3, 1e-4)
"""Of the L2 penalty, strongest first."""
MOST_ROUNDS = 100
"""Of L-BFGS, for one strength: then accuracy stands at 1e-3, and at 1e-4 is about 0.15 points short of its end."""
CURVATURE = 0.03
"""Of the cross-entropy along a standardised feature, about."""
HELD_OUT, MOST_HELD_OUT = 0.1, 10_000
NEIGHBOURS, TEMPERATURE = 20, 0.07
EPS = 1e-6
SETTINGS = {
    "strengths": STRENGTHS,
    "rounds": MOST_ROUNDS,
    "curvature": CURVATURE,
    "held_out": (HELD_OUT, MOST_HELD_OUT),
    "neighbours": (NEIGHBOURS, TEMPERATURE),
    "eps": EPS,
}
"""All that accuracies depend on beside the features and the code."""


@dataclass(frozen=True)
class Labelled:
    """`features` (N, D) float32 and `labels` (N,) int64."""

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1] or not len(self.labels):
            raise ValueError(
                f"features (N, D) need N labels and at least one, got {tuple(self.features.shape)} and "
                f"{tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor) -> Labelled:
        """Some of them; rows (M,) int64."""
        return Labelled(self.features[rows], self.labels[rows])


@dataclass(frozen=True)
class Accuracy:
    """Share of `n` images that were put in their class."""

    value: float
    n: int

    @classmethod
    def of(cls, guesses: Tensor, labels: Tensor) -> Accuracy:
        """guesses and labels (N,) int64."""
        return cls(float((guesses == labels).double().mean()), len(labels))

    @property
    def standard_error(self) -> float:
        """Of a share of n independent images: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.value * (1 - self.value) / self.n)


@dataclass(frozen=True)
class LinearProbe:
    """Its accuracy, the strength of the penalty that was chosen, and whether the last fit came to its end."""

    accuracy: Accuracy
    strength: float
    has_converged: bool


def standardised(train: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
    """`train` (N, D) and `others`, each less the mean of `train` and over its deviation, with 1e-6 under the root.

    That is BatchNorm without weights over all rows at once, as MAE and MAGE probe (arXiv 2111.06377, appendix A.1).
    """
    mean, variance = train.double().mean(0), train.double().var(0, correction=0)
    scale = (variance + EPS).rsqrt()
    return [((x - mean) * scale).float() for x in (train, *others)]


def linear_probe(train: Labelled, test: Labelled, strengths: Sequence[float] = STRENGTHS) -> LinearProbe:
    """Multinomial logistic regression on standardised features by L-BFGS; no step of it is random.

    The loss is the mean cross-entropy and strength / 2 |W|^2. A tenth of the training rows chooses the strength, each
    fit starting from the one before, and the last fit is of all rows.

    Raises:
        ValueError: fewer than two training rows.
    """
    if len(train) < 2:
        raise ValueError(f"a linear probe needs at least 2 training rows, one to choose the penalty, got {len(train)}")
    held_out, n_classes = _held_out(train), int(torch.cat([train.labels, test.labels]).max()) + 1
    fitted, chosen = train.rows(~held_out), train.rows(held_out)
    x, x_held_out = standardised(fitted.features, [chosen.features])
    weights, scores = torch.zeros(n_classes, x.shape[1] + 1), []
    for strength in strengths:
        weights, _ = fit(x, fitted.labels, weights, strength)
        scores.append(Accuracy.of(_classes(x_held_out, weights), chosen.labels).value)
    best = strengths[scores.index(max(scores))]
    x, x_test = standardised(train.features, [test.features])
    weights, has_converged = fit(x, train.labels, torch.zeros_like(weights), best)
    return LinearProbe(Accuracy.of(_classes(x_test, weights), test.labels), best, has_converged)


def fit(x: Tensor, labels: Tensor, start: Tensor, strength: float) -> tuple[Tensor, bool]:
    """Weights (K, D + 1), the last column the intercepts, of a logistic regression, and whether L-BFGS came to its end.

    x (N, D) standardised, labels (N,), `start` (K, D + 1). The search runs in coordinates in which the penalty and a
    guess of the loss have the curvature of a sphere: features are correlated, and a weak penalty would take
    thousands of rounds.
    """
    curvature = CURVATURE * (x.T @ x).double() / len(x) + strength * torch.eye(x.shape[1], dtype=torch.float64)
    turn = torch.linalg.inv(torch.linalg.cholesky(curvature)).float()  # (D, D)
    inputs = x @ turn.T  # (N, D): W x = V (turn x) for W = V turn
    v = torch.linalg.solve(turn.double(), start[:, :-1].double(), left=False).float().requires_grad_()
    intercepts = start[:, -1].clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v, intercepts], max_iter=MOST_ROUNDS, tolerance_grad=1e-4, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ v.T + intercepts, labels) + strength / 2 * (v @ turn).square().sum()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    has_converged = optimizer.state[v]["n_iter"] < MOST_ROUNDS
    return torch.cat([(v @ turn), intercepts[:, None]], 1).detach(), has_converged


def _classes(x: Tensor, weights: Tensor) -> Tensor:
    """The likeliest class of each row, (N,)."""
    return (x @ weights[:, :-1].T + weights[:, -1]).argmax(1)


def _held_out(train: Labelled) -> Tensor:
    """(N,) bool, at least one of them: the same rows whenever there are N."""
    n = len(train)
    rows = Rng.stream("held out of a probe").permutation(1, n)[0][: max(1, min(int(HELD_OUT * n), MOST_HELD_OUT))]
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, rows, True)


def nearest_neighbours(
    train: Labelled, test: Labelled, k: int = NEIGHBOURS, temperature: float = TEMPERATURE, chunk: int = 256
) -> Accuracy:
    """Accuracy of a vote of the k nearest by cosine, each with weight exp(cosine / temperature) (DINO, arXiv
    2104.14294, section 4.1).

    `chunk` test rows are compared at once; k is at most the number of training rows.
    """
    keys = F.normalize(train.features.float(), dim=1)
    n_classes = int(torch.cat([train.labels, test.labels]).max()) + 1
    guesses = []
    for x in F.normalize(test.features.float(), dim=1).split(chunk):
        near, rows = (x @ keys.T).topk(min(k, len(keys)), dim=1)  # (b, k)
        votes = torch.zeros(len(x), n_classes, dtype=torch.float64)
        votes.scatter_add_(1, train.labels[rows], (near.double() / temperature).exp())
        guesses.append(votes.argmax(1))
    return Accuracy.of(torch.cat(guesses), test.labels)


def share_of_labels(labels: Tensor, share: float) -> Tensor:
    """(M,) int64 rows, ascending: `share` of the rows of every class, at least one of each, always the same.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of labels must be in (0, 1], got {share}")
    order = Rng.stream("share of labels").permutation(1, len(labels))[0]
    rows = [order[labels[order] == label] for label in labels.unique()]
    return torch.cat([some[: max(1, round(share * len(some)))] for some in rows]).sort().values

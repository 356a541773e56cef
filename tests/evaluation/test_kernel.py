"""The kernel distance against torchmetrics, its definition and its own spread."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from maskgen.core.rng import Rng
from maskgen.evaluation.metrics import kernel
from maskgen.evaluation.metrics.kernel import kernel_distance, subset_kernel_distance


def features(key: str, n: int, d: int = 6, shift: float = 0.0) -> Tensor:
    return Rng.stream(key).normal((n, d)) + shift


class Identity(nn.Module):
    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_is_what_torchmetrics_gives_for_one_subset_of_all() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = features("a", 120), features("b", 120, shift=0.3)
    metric = KernelInceptionDistance(feature=Identity(), subsets=2, subset_size=120).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    mean, spread = metric.compute()
    assert float(spread) == pytest.approx(0, abs=1e-6)
    assert kernel_distance(a, b).value == pytest.approx(float(mean), rel=1e-4)


def test_it_is_the_same_in_tiles_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features("a", 37), features("b", 23, shift=0.2)
    whole = kernel_distance(a, b)
    monkeypatch.setattr(kernel, "TILE", 5)
    assert kernel_distance(a, b).value == pytest.approx(whole.value, rel=1e-12)
    assert kernel_distance(b, a).standard_error == pytest.approx(whole.standard_error, rel=1e-9)


def test_it_is_unbiased_and_knows_its_own_spread() -> None:
    found = [kernel_distance(features(f"a{i}", 60), features(f"b{i}", 50, shift=0.4)) for i in range(60)]
    values = torch.tensor([one.value for one in found])
    errors = torch.tensor([one.standard_error for one in found])
    truth = kernel_distance(features("a", 4000), features("b", 4000, shift=0.4)).value
    assert float(values.mean()) == pytest.approx(truth, abs=4 * float(values.std()) / math.sqrt(60))
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.25)


def test_subsets_agree_with_all_pairs_within_their_spread_and_are_the_same_every_time() -> None:
    a, b = features("a", 300), features("b", 300, shift=0.5)
    subsets = subset_kernel_distance(a, b, Rng.stream(0), n_subsets=50, size=100)
    assert subsets.value == pytest.approx(kernel_distance(a, b).value, abs=subsets.deviation)
    assert subset_kernel_distance(a, b, Rng.stream(0), n_subsets=50, size=100) == subsets


def test_what_has_no_distance_is_refused() -> None:
    a = features("a", 5)
    with pytest.raises(ValueError, match="at least 3 images in each set, got 2 and 5"):
        kernel_distance(a[:2], a)
    with pytest.raises(ValueError, match=r"\(N, D\) and \(M, D\)"):
        kernel_distance(a, a[:, :3])
    with pytest.raises(ValueError, match="NaN"):
        kernel_distance(a, a * math.nan)
    with pytest.raises(ValueError, match="at least 2 subsets, got 1"):
        subset_kernel_distance(a, a, Rng.stream(0), n_subsets=1)

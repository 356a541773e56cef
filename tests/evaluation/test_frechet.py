import math

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.frechet import Moments, frechet_distance, standard_error


def features(key: str, n: int, d: int) -> Tensor:
    """(n, d) float64, correlated, with a spectrum that falls."""
    rng = Rng.stream(key)
    mixing = rng.normal((d, d)).double() * torch.arange(1, d + 1) ** -0.5
    return rng.normal((n, d)).double() @ mixing + rng.normal((d,)).double()


def distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(Moments.of(a), Moments.of(b))


def svd_distance(a: Tensor, b: Tensor) -> float:
    """From the centred samples themselves: tr (S_a S_b)^(1/2) is the nuclear norm of A B^T."""
    m_a, m_b = a.mean(0), b.mean(0)
    x, y = (a - m_a) / math.sqrt(len(a) - 1), (b - m_b) / math.sqrt(len(b) - 1)
    overlap = torch.linalg.svdvals(x @ y.T).sum()
    return float((m_a - m_b).square().sum() + x.square().sum() + y.square().sum() - 2 * overlap)


@pytest.mark.parametrize(("n", "d"), [(50, 6), (5, 20), (2, 3)])
def test_a_set_has_no_distance_to_itself(n: int, d: int) -> None:
    a = features("a", n, d)
    assert distance(a, a) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(("n", "d"), [(50, 6), (8, 20)])
def test_the_distance_is_symmetric(n: int, d: int) -> None:
    a, b = features("a", n, d), features("b", n + 3, d)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)


def test_the_distance_does_not_see_a_common_rotation_or_offset() -> None:
    a, b = features("a", 40, 6), features("b", 30, 6)
    rotation = torch.linalg.qr(features("q", 6, 6)).Q
    assert distance(a @ rotation + 5, b @ rotation + 5) == pytest.approx(distance(a, b), rel=1e-10)


def test_the_distance_grows_with_the_square_of_the_scale() -> None:
    a, b = features("a", 40, 6), features("b", 30, 6)
    assert distance(3 * a, 3 * b) == pytest.approx(9 * distance(a, b), rel=1e-10)


def test_a_shift_costs_its_squared_length() -> None:
    a = features("a", 40, 6)
    shift = torch.arange(6.0).double()
    assert distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-10)


def test_gaussians_of_one_dimension_have_the_closed_form() -> None:
    a, b = features("a", 40, 1), features("b", 30, 1)
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert distance(a, b) == pytest.approx(float(expected), rel=1e-10)


def test_diagonal_gaussians_have_the_closed_form() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).double()  # uncorrelated coordinates
    scale_a, scale_b = torch.tensor([1.0, 2, 3, 0]).double(), torch.tensor([4.0, 1, 3, 2]).double()
    spread = float(corners[:, 0].var())
    expected = spread * float((scale_a - scale_b).square().sum()) + 4
    assert distance(corners * scale_a, corners * scale_b + 1) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n_a", "n_b", "d"), [(10, 12, 40), (10, 100, 40), (60, 60, 8)])
def test_fewer_samples_than_features_agree_with_the_form_on_samples(n_a: int, n_b: int, d: int) -> None:
    a, b = features("a", n_a, d), features("b", n_b, d)
    assert distance(a, b) == pytest.approx(svd_distance(a, b), rel=1e-10)


def test_the_moments_are_mean_and_unbiased_covariance() -> None:
    a = features("a", 30, 5)
    moments = Moments.of(a)
    torch.testing.assert_close(moments.mean, a.mean(0))
    torch.testing.assert_close(moments.cov, a.T.cov())


@pytest.mark.parametrize("sizes", [[30], [1, 29], [7, 0, 16, 7], [1] * 30])
def test_batches_of_any_size_give_the_moments_of_one(sizes: list[int]) -> None:
    a = features("a", 30, 5)
    streamed, whole = Moments(), Moments.of(a)
    for batch in a.split(sizes):
        streamed.update(batch)
    assert streamed.n == 30
    torch.testing.assert_close(streamed.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(streamed.cov, whole.cov, rtol=1e-12, atol=1e-12)


def test_the_order_of_merging_does_not_matter_and_alters_nothing() -> None:
    a, b, c = (Moments.of(features(key, n, 5)) for key, n in (("a", 9), ("b", 1), ("c", 20)))
    before = a.cov.clone()
    one, other = a.merge(b).merge(c), c.merge(a.merge(b))
    torch.testing.assert_close(one.cov, other.cov, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-12)
    assert (a.n, one.n) == (9, 30)
    assert torch.equal(a.cov, before)


def test_a_large_common_offset_costs_no_digits() -> None:
    a, b = features("a", 40, 4), features("b", 40, 4)
    moments = [Moments(), Moments()]
    for moment, x in zip(moments, (a, b), strict=True):
        for batch in (x + 1e6).split(7):
            moment.update(batch)
    assert frechet_distance(*moments) == pytest.approx(distance(a, b), rel=1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("n", [200, 20])
def test_it_agrees_with_cleanfid(n: int) -> None:
    fid = pytest.importorskip("cleanfid.fid")
    a, b = features("a", n, 16).numpy(), features("b", n, 16).numpy()
    try:
        theirs = fid.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    except TypeError:
        pytest.skip("this clean-fid does not run with this scipy")
    assert distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(float(theirs), rel=1e-7)


def test_it_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Module):
        num_features = 16

        def forward(self, x: Tensor) -> Tensor:
            return x

    metric = FrechetInceptionDistance(feature=Identity(), normalize=True).set_dtype(torch.float64)
    a, b = features("a", 200, 16), features("b", 150, 16)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_feature_that_is_not_finite_is_refused_and_nothing_is_taken_in(bad: float) -> None:
    moments = Moments.of(features("a", 5, 3))
    broken = features("b", 4, 3)
    broken[2, 1] = bad
    with pytest.raises(ValueError, match="1 of 4 images are NaN or infinite"):
        moments.update(broken)
    assert moments.n == 5


def test_one_sample_has_no_distance() -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        distance(features("a", 1, 3), features("b", 5, 3))
    with pytest.raises(ValueError, match="at least 2 samples, got 0"):
        frechet_distance(Moments.of(features("a", 5, 3)), Moments())


def test_features_of_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        distance(features("a", 5, 3), features("b", 5, 4))
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        Moments.of(features("a", 5, 3)).update(features("b", 5, 4))
    with pytest.raises(ValueError, match=r"must be \(B, D\)"):
        Moments.of(torch.zeros(3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("d", [12, 60])
@pytest.mark.parametrize("n", [40, 2000])
def test_all_packages_agree_to_four_digits_also_with_fewer_images_than_features(n: int, d: int) -> None:
    from scipy import linalg
    from torchmetrics.image.fid import _compute_fid

    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = features("a", n, d), features("b", n, d)
    ours = distance(a, b)
    (m_a, s_a), (m_b, s_b) = ((x.mean(0), torch.cov(x.mT)) for x in (a, b))
    theirs = {
        "torchmetrics": float(_compute_fid(m_a, s_a, m_b, s_b)),
        "torch-fidelity": fidelity.fid_statistics_to_metric(
            *({"mu": m.numpy(), "sigma": s.numpy()} for m, s in ((m_a, s_a), (m_b, s_b))), verbose=False
        )["frechet_inception_distance"],
        "scipy": float(
            (m_a - m_b).square().sum() + s_a.trace() + s_b.trace()
            - 2 * np.trace(linalg.sqrtm((s_a @ s_b).numpy())).real
        ),
    }  # fmt: skip
    assert theirs == pytest.approx(dict.fromkeys(theirs, ours), rel=1e-4)


@pytest.mark.parametrize("n", [3, 30, 400])
def test_a_set_has_no_distance_to_itself_where_features_are_dead_or_nearly_equal(n: int) -> None:
    a = features("a", n, 30)
    a[:, 10:20] = 0
    a[:, 20] = a[:, 21] + 1e-9 * a[:, 22]
    assert distance(a, a) == pytest.approx(0, abs=1e-6)


def test_both_ways_of_taking_the_root_give_the_same() -> None:
    a, b = features("a", 200, 16), features("b", 200, 16)
    wide = [torch.cat([x, torch.zeros(200, 1).double()], 1) for x in (a, b)]  # singular: the other way
    assert distance(*wide) == pytest.approx(distance(a, b), rel=1e-12)


def test_moments_survive_the_way_through_their_state() -> None:
    moments = Moments.of(features("a", 20, 5))
    again = Moments.from_state(*moments.state())
    assert torch.equal(again.cov, moments.cov)
    with pytest.raises(ValueError, match="a mean"):
        Moments.from_state(3, torch.zeros(2), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="NaN"):
        Moments.from_state(3, torch.full((2,), math.nan), torch.zeros(2, 2))


def test_the_standard_error_is_the_spread_over_sets_of_samples() -> None:
    reference = Moments.from_covariance(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    distances, errors = [], []
    for index in range(120):
        x = Rng.stream("set", index).normal((300, 4)).double() * torch.tensor([1.5, 0.5, 1.0, 0.8]) + 0.3
        distances.append(frechet_distance(Moments.of(x), reference))
        errors.append(standard_error(x, reference))
    spread = float(torch.tensor(distances).std())
    assert float(torch.tensor(errors).mean()) == pytest.approx(spread, rel=0.2)  # 120 sets know it to 6.5 %

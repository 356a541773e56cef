"""Scores beside the distances."""

import math

import pytest
import torch
from torch import Tensor

from maskgen.core.pixels import to_uint8
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.fidelity import CodebookUse, Reconstruction, inception_score, shuffled_inception_score


def images(key: str, n: int, side: int = 16) -> Tensor:
    return to_uint8(Rng.stream(key).uniform((n, 1, side, side)))


def scores(restored: Tensor, real: Tensor) -> dict[str, float]:
    metric = Reconstruction()
    for one, other in zip(restored.split(3), real.split(3), strict=True):
        metric.update(one, other)
    return metric.scores()


def test_psnr_is_of_the_error_over_the_whole_set() -> None:
    reference = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    altered = reference.clone()
    altered[0] = 51  # a mean over images of their psnr would be infinite
    assert scores(altered, reference)["psnr"] == pytest.approx(10 * math.log10(1 / 0.01), rel=1e-6)


def test_equal_images_have_infinite_psnr_and_a_structure_of_one() -> None:
    found = scores(images("a", 4), images("a", 4))
    assert found["psnr"] == math.inf
    assert found["ssim"] == pytest.approx(1)


def test_structure_is_lost_with_noise_and_unknown_for_images_smaller_than_its_window() -> None:
    real = images("a", 4)
    noise = (Rng.stream("n").normal(tuple(real.shape)) * 20).to(torch.int16)
    noisy = (real.to(torch.int16) + noise).clamp(0, 255).to(torch.uint8)
    assert 0.3 < scores(noisy, real)["ssim"] < 0.999
    assert set(scores(images("a", 4, 8), images("b", 4, 8))) == {"psnr"}


def test_an_inception_score_is_the_number_of_classes_in_even_and_certain_use() -> None:
    logits = 50 * torch.eye(5).repeat(8, 1)
    assert inception_score(logits, 20) == pytest.approx((5, 0))
    assert inception_score(torch.zeros(40, 5), 20) == pytest.approx((1, 0))
    with pytest.raises(ValueError, match="split size of at least 1"):
        inception_score(logits, 0)


@pytest.mark.parametrize("splits", [1, 4])
def test_an_inception_score_is_what_torch_fidelity_says_of_the_same_splits(splits: int) -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * Rng.stream("logits").normal((80, 10))
    found = theirs.isc_features_to_metric(logits, splits=splits, shuffle=False)
    wanted = (found["inception_score_mean"], found["inception_score_std"])
    assert inception_score(logits, 80 // splits) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("n", [10, 83])
def test_a_shuffled_inception_score_is_torch_fidelitys_own(n: int) -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * Rng.stream("logits").normal((n, 10))
    found = theirs.isc_features_to_metric(logits)
    wanted = (found["inception_score_mean"], found["inception_score_std"])
    assert shuffled_inception_score(logits) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_images_sorted_by_class_score_as_well_as_any_others() -> None:
    logits = 50 * torch.eye(5).repeat_interleave(200, 0)
    assert inception_score(logits, 100)[0] == pytest.approx(1), "each split is of one class"
    assert shuffled_inception_score(logits)[0] > 4.8
    with pytest.raises(ValueError, match=r"10 splits needs as many images, got \(9, 5\)"):
        shuffled_inception_score(logits[:9])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_inception_score_of_one_split_is_torchmetrics() -> None:
    from torchmetrics.image.inception import InceptionScore

    logits = 3 * Rng.stream("logits").normal((80, 10))
    metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.update(logits)
    assert inception_score(logits, 80)[0] == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def test_codes_in_even_use_have_a_perplexity_of_their_number() -> None:
    use = CodebookUse(8)
    use.update(torch.arange(4).repeat(3, 2))
    assert use.share_used == 0.5
    assert use.perplexity == pytest.approx(4)


def test_codebook_use_adds_up_over_batches() -> None:
    tokens = torch.tensor([[0, 0, 1], [2, 0, 0]])
    streamed, whole = CodebookUse(4), CodebookUse(4)
    whole.update(tokens)
    for row in tokens:
        streamed.update(row)
    assert torch.equal(streamed.counts, whole.counts)
    assert 1 < whole.perplexity < 3


def test_an_unused_codebook_has_no_perplexity_and_a_strange_token_is_refused() -> None:
    use = CodebookUse(4)
    assert (use.share_used, use.perplexity) == (0.0, 0.0)
    with pytest.raises(ValueError, match=r"in \[0, 4\), got 0 to 4"):
        use.update(torch.tensor([0, 4]))

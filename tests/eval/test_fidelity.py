import math

import pytest
import torch
from torch import Tensor, nn

from maskgen.eval.features import FeatureExtractor, to_uint8
from maskgen.eval.fidelity import CodebookUse, ImageScore, compare, psnr
from maskgen.predictions import NULL
from maskgen.rng import Rng


class Corners(nn.Module):
    """Features are four pixels; the brightest of the first three is the class."""

    def features(self, images: Tensor) -> Tensor:
        return images[:, 0, :2, :2].flatten(1)

    def head(self, features: Tensor) -> Tensor:
        return features[:, :3]


def score(name: str = "corners") -> ImageScore:
    return ImageScore(FeatureExtractor(name, Corners(), torch.device("cpu")), n_classes=3)


def images(key: str, n: int) -> Tensor:
    return to_uint8(Rng.stream(key).uniform((n, 1, 4, 4)))


def test_accuracy_is_the_share_of_images_that_show_their_label() -> None:
    x = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    x[[0, 1, 2], 0, 0, 0] = 255  # class 0
    x[[3, 4], 0, 0, 1] = 255  # class 1
    metric = score()
    metric.update(x, torch.tensor([0, 0, 1, 1, NULL]))
    result = metric.result()
    assert (result.n, result.n_labelled) == (5, 4)
    assert result.accuracy == 3 / 4
    assert result.class_accuracy == (1.0, 0.5, None)


def test_images_without_labels_have_moments_and_no_accuracy() -> None:
    metric = score()
    metric.update(images("a", 4), torch.full((4,), NULL))
    result = metric.result()
    assert (result.n, result.moments.n, result.accuracy) == (4, 4, None)


def test_batches_give_what_the_whole_gives_the_last_one_too() -> None:
    x, labels = images("a", 11), torch.arange(11) % 3
    streamed, whole = score(), score()
    whole.update(x, labels)
    for part, names in zip(x.split(4), labels.split(4), strict=True):
        streamed.update(part, names)
    one, other = streamed.result(), whole.result()
    assert (one.n, one.accuracy, one.class_accuracy) == (11, other.accuracy, other.class_accuracy)
    assert compare(one, other) == pytest.approx(0, abs=1e-12)


def test_a_result_stays_as_it_was_when_taken() -> None:
    metric = score()
    metric.update(images("a", 5), torch.zeros(5, dtype=torch.int64))
    result = metric.result()
    cov = result.moments.cov.clone()
    metric.update(images("b", 5), torch.zeros(5, dtype=torch.int64))
    assert result.n == result.moments.n == 5
    assert torch.equal(result.moments.cov, cov)


def test_sets_seen_through_different_extractors_do_not_compare() -> None:
    one, other = score("one"), score("other")
    for metric in (one, other):
        metric.update(images("a", 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="'one' and by 'other'"):
        compare(one.result(), other.result())


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 images need as many labels"):
        score().update(images("a", 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"in \[0, 3\), got 0 to 3"):
        score().update(images("a", 2), torch.tensor([0, 3]))


def test_psnr_is_of_the_error_over_the_whole_set() -> None:
    reference = torch.zeros(4, 1, 2, 2)
    altered = reference.clone()
    altered[0] = 0.2  # a mean over images of their psnr would be infinite
    assert psnr(altered, reference) == pytest.approx(10 * math.log10(1 / 0.01), rel=1e-6)
    assert psnr(altered, reference) == psnr(reference, altered)


def test_psnr_of_equal_images_is_infinite() -> None:
    assert psnr(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)) == math.inf


def test_psnr_refuses_bytes_and_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="floating point"):
        psnr(images("a", 2), images("b", 2))
    with pytest.raises(ValueError, match="one shape"):
        psnr(torch.zeros(2, 1, 2, 2), torch.zeros(3, 1, 2, 2))


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

import pytest
import torch

from maskgen.eval.features import FeatureExtractor, to_float, to_uint8
from maskgen.models.classifier import ImageClassifier
from maskgen.rng import Rng


def extractor(batch_size: int = 256) -> FeatureExtractor:
    torch.manual_seed(0)
    module = ImageClassifier((1, 8, 8), n_classes=3, width=8)
    return FeatureExtractor("tiny", module, torch.device("cpu"), batch_size)


def byte_images(n: int) -> torch.Tensor:
    return to_uint8(Rng.stream("images").uniform((n, 1, 8, 8)))


def test_bytes_survive_the_way_to_float_and_back() -> None:
    every = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert torch.equal(to_uint8(to_float(every).double()), every)


def test_bytes_are_rounded_not_truncated_and_clipped() -> None:
    assert to_uint8(torch.tensor([0.9 / 255, 254.6 / 255, -1.0, 2.0])).tolist() == [1, 255, 0, 255]


def test_images_that_would_silently_turn_black_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match=r"floating point .* got torch.uint8"):
        to_uint8(torch.zeros(2, dtype=torch.uint8))


def test_features_and_logits_do_not_depend_on_the_batch_size() -> None:
    images = byte_images(7)
    for one, other in zip(extractor(2)(images), extractor()(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_extractor_evaluates_even_a_network_that_was_training() -> None:
    extract = extractor()
    images = byte_images(5)
    before = extract(images)[0]
    assert torch.equal(extract(images)[0], before)  # BatchNorm statistics stand still
    assert before.shape == (5, 8)
    assert not before.requires_grad


def test_the_score_carries_the_name_of_its_extractor() -> None:
    assert extractor().score_name == "frechet_distance[tiny]"


def test_only_batches_of_bytes_are_taken() -> None:
    for wrong in (torch.zeros(2, 1, 8, 8), byte_images(2)[0], byte_images(2)[:0]):
        with pytest.raises(ValueError, match="expected uint8 images"):
            extractor()(wrong)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extractor(0)

import pytest
import torch
from torch import nn

from maskgen.core.registry import SpecError
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.models.classifier import ImageClassifier
from tests.cases import each


def images(n: int, channels: int = 1, height: int = 28, width: int = 28) -> torch.Tensor:
    return Rng.stream("images", n).uniform((n, channels, height, width)).float()


def build(**arguments: object) -> ImageClassifier:
    torch.manual_seed(0)
    model = MODELS.build({"type": "classifier", **arguments}, image_shape=(1, 28, 28), n_classes=10)
    assert isinstance(model, ImageClassifier)
    return model


@each("shape", [(1, 28, 28), (1, 8, 8), (3, 32, 32), (3, 9, 31)])
def test_any_image_of_eight_pixels_a_side_or_more_has_logits(shape: tuple[int, int, int]) -> None:
    model = ImageClassifier(shape, n_classes=7, width=8)
    assert model(images(2, *shape)).shape == (2, 7)


def test_the_logits_are_the_head_on_the_features() -> None:
    model = build().eval()
    x = images(3)
    assert model.features(x).shape == (3, model.n_features) == (3, 64)
    torch.testing.assert_close(model(x), model.head(model.features(x)))


def test_an_image_judged_alone_and_in_a_batch_gets_the_same_features() -> None:
    model = build().eval()
    x = images(4)
    torch.testing.assert_close(model.features(x)[2:3], model.features(x[2:3]), rtol=1e-4, atol=1e-5)


def test_the_default_network_is_small_enough_to_ship() -> None:
    assert sum(parameter.numel() for parameter in build().parameters()) <= 400_000


def test_its_weights_are_contiguous_so_they_can_be_stored() -> None:
    assert all(tensor.is_contiguous() for tensor in build().state_dict().values())


@pytest.mark.learned
def test_it_learns_to_tell_two_patterns_apart() -> None:
    torch.manual_seed(0)
    model = ImageClassifier((1, 8, 8), n_classes=2, width=8)
    labels = torch.arange(16) % 2
    stripes = torch.zeros(2, 1, 8, 8)
    stripes[0, :, ::2], stripes[1, :, :, ::2] = 1, 1
    x = (stripes[labels] + 0.2 * Rng.stream("noise").normal((16, 1, 8, 8))).clamp(0, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert torch.equal(model.eval()(x).argmax(1), labels)


def test_sizes_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8x8, got 7x28"):
        ImageClassifier((1, 7, 28), 10)
    with pytest.raises(SpecError, match="even number of at least 2, got 15"):
        build(width=15)

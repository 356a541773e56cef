import pytest
import torch

from maskgen.core.errors import UserError
from maskgen.core.pixels import to_float, to_uint8
from maskgen.core.rng import Rng
from maskgen.evaluation.protocols.features import Extractor, Features, to_channels


def extractor(batch_size: int = 256, channels: int = 3) -> Extractor:
    def network(images: torch.Tensor) -> Features:
        assert len(images) <= batch_size
        return Features(images.flatten(1).float()[:, :4], images.flatten(1).float()[:, -2:])

    return Extractor("tiny", "none", "0", network, channels, batch_size=batch_size)


def byte_images(n: int, channels: int = 3) -> torch.Tensor:
    return to_uint8(Rng.stream("images").uniform((n, channels, 8, 8)))


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


def test_features_and_logits_come_from_batches_of_the_size_allowed() -> None:
    images = byte_images(7)
    one, other = extractor(2)(images), extractor()(images)
    assert torch.equal(one.pool, other.pool)
    assert torch.equal(one.logits, other.logits)  # type: ignore[arg-type]
    assert other.pool.shape == (7, 4)
    assert other.spatial is None


def test_grey_images_are_seen_in_three_channels_and_grey_colours_in_one() -> None:
    grey = byte_images(2, 1)
    colours = grey.expand(-1, 3, -1, -1)
    assert torch.equal(to_channels(grey, 3), colours)
    assert torch.equal(to_channels(colours, 1), grey)
    with pytest.raises(UserError, match="have colours"):
        extractor(channels=1)(byte_images(2))


def test_the_score_carries_what_it_depends_on() -> None:
    assert extractor().identity == {"protocol": "tiny", "resize": "none", "weights": "0"}


def test_only_batches_of_bytes_are_taken() -> None:
    for wrong in (torch.zeros(2, 1, 8, 8), byte_images(2)[0], byte_images(2)[:0]):
        with pytest.raises(ValueError, match="expected uint8 images"):
            extractor()(wrong)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extractor(0)

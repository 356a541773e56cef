"""Laws of augmented views and of the pairs that a batch brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.data.base import DATASETS, ImageSource, TensorSplit
from maskgen.data.cache import token_data
from maskgen.data.image.views import ViewedSplit, ViewedTokens, Views, augmented, pair_of
from maskgen.recipes.load import load_recipe
from maskgen.tokenizers.image.pixels import PixelTokenizer

STILL: dict[str, Any] = {"scale": (1.0, 1.0), "shift": 0, "flip": False}


def images(n: int = 6, side: int = 8) -> Tensor:
    return (Rng.stream("images").uniform((n, 1, side, side)) * 256).to(torch.uint8)


def split(n: int = 6) -> TensorSplit:
    return TensorSplit(images(n), torch.arange(n))


def seeds(n: int) -> Rng:
    return Rng.per_sample(range(n))


def test_the_image_itself_comes_first_and_its_views_after_it() -> None:
    viewed = ViewedSplit(split(), Views(n=3, flip=True))
    assert len(viewed) == 24
    pictures, labels = viewed.__getitems__(range(24))
    assert torch.equal(pictures[::4], images())
    assert torch.equal(labels, torch.arange(6).repeat_interleave(4))
    assert torch.equal(labels, viewed.labels)
    assert not any(torch.equal(pictures[4 * i], pictures[4 * i + v]) for i in range(6) for v in (1, 2, 3))
    assert viewed.name_of(9) == "image 2"


def test_a_view_depends_on_its_number_and_its_image_only() -> None:
    many = ViewedSplit(split(), Views(n=5))
    few = ViewedSplit(split(3), Views(n=2))
    rows = torch.randperm(36).tolist()
    shuffled, whole = many.__getitems__(rows)[0], many.__getitems__(range(36))[0]
    assert torch.equal(shuffled, whole[rows])
    assert torch.equal(few.__getitems__(range(9))[0].view(3, 3, 1, 8, 8), whole.view(6, 6, 1, 8, 8)[:3, :3])


def test_a_view_that_changes_nothing_is_the_image() -> None:
    assert torch.equal(augmented(images(), Views(**STILL), seeds(6)), images())


def test_some_views_are_mirrored_and_some_are_not() -> None:
    seen = augmented(images(40), Views(**(STILL | {"flip": True})), seeds(40))
    is_same = (seen == images(40)).flatten(1).all(1)
    is_mirrored = (seen == images(40).flip(-1)).flatten(1).all(1)
    assert (is_same ^ is_mirrored).all()
    assert 8 < is_same.sum() < 32


def test_a_view_moves_by_at_most_the_shift_to_all_sides() -> None:
    dot = torch.zeros(200, 1, 9, 9, dtype=torch.uint8)
    dot[:, :, 4, 4] = 255
    seen = augmented(dot, Views(**(STILL | {"shift": 2})), seeds(200)).float()
    place = torch.arange(9.0)
    rows, columns = ((seen.sum(axis) @ place / seen.sum((2, 3)))[:, 0] - 4 for axis in (3, 2))
    for moved in (rows, columns):
        assert moved.abs().max() <= 2.02
        assert moved.min() < -1.5 < 1.5 < moved.max()


def test_a_view_shows_a_share_of_the_image_and_nothing_from_outside() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).expand(100, 1, 32, 32)
    seen = augmented(ramp, Views(scale=(0.25, 0.25)), seeds(100)).float()
    assert (seen[..., -1] - seen[..., 0] - 15.5).abs().max() <= 1.5  # half of each side
    assert seen.min() < 2
    assert seen.max() > 29
    flat = torch.full((5, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(augmented(flat, Views(shift=3, flip=True), seeds(5)), flat)


def test_the_fingerprint_is_of_the_images_and_of_how_views_are_made() -> None:
    changes: list[dict[str, Any]] = [{}, {"n": 3}, {"scale": (0.6, 1.0)}, {"shift": 1}, {"flip": True}]
    prints = {ViewedSplit(split(), Views(**change)).fingerprint() for change in changes}
    prints |= {split().fingerprint(), ViewedSplit(split(5), Views()).fingerprint()}
    assert len(prints) == 7
    used_otherwise = ViewedSplit(split(), Views(has_original=False))
    assert used_otherwise.fingerprint() == ViewedSplit(split(), Views()).fingerprint()


def test_stored_tokens_come_with_all_views_of_an_image(tmp_path: Path) -> None:
    viewed, tokenizer = ViewedSplit(split(), Views(n=2)), PixelTokenizer((1, 8, 8), levels=16)
    rows = ViewedTokens(token_data(viewed, tokenizer, tmp_path, progress=False), Views(n=2))
    assert len(rows) == 6
    tokens, labels = rows.__getitems__([4, 1])
    assert labels.tolist() == [4, 1]
    pictures = viewed.__getitems__([12, 13, 14, 3, 4, 5])[0]
    assert torch.equal(tokens.flatten(0, 1), tokenizer.encode(pictures.float() / 255))
    assert tokens.shape == (2, 3, 64)


def rows_of(n: int, views: int) -> Tensor:
    """(N, views + 1, 1): each row's views are numbered."""
    return torch.arange(views + 1).expand(n, -1)[..., None]


def test_the_image_is_generated_and_any_view_is_compared_with_it() -> None:
    x_0, view = pair_of(rows_of(400, 4), Views(n=4), Rng.stream(0))
    assert (x_0 == 0).all()
    assert view.unique().tolist() == [1, 2, 3, 4]
    assert all(60 < (view == v).sum() < 140 for v in (1, 2, 3, 4))


def test_without_the_original_two_different_views_are_taken() -> None:
    x_0, view = pair_of(rows_of(2000, 3), Views(n=3, has_original=False), Rng.stream(0))
    pairs = torch.cat([x_0, view], 1).unique(dim=0, return_counts=True)
    assert pairs[0].tolist() == [[i, j] for i in (1, 2, 3) for j in (1, 2, 3) if i != j]
    assert ((pairs[1] - 2000 / 6).abs() < 80).all()


def test_a_row_has_the_same_views_whichever_process_draws_them() -> None:
    rows = rows_of(40, 8)
    whole = pair_of(rows, Views(n=8), Rng.rows(0, first=0, count=40, total=40))[1]
    parts = [pair_of(rows[:20], Views(n=8), Rng.rows(0, first=f, count=20, total=40))[1] for f in (0, 20)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{scale: [1.0, 0.5]}", "train.views: scale goes from the least to the largest share"),
        ("{n: 1, has_original: false}", "train.views: has_original false takes two of the n views"),
        ("{n: 0}", "train.views.n: input should be greater than or equal to 1"),
        ("{crop: 3}", "train.views.crop: unknown key; accepted here: flip, has_original, n, scale, shift"),
    ],
)
def test_impossible_views_are_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("image/fashion-mage-c", [f"train.views={change}"])


def test_digits_have_views_too() -> None:
    source = DATASETS.build("digits")
    assert isinstance(source, ImageSource)
    assert ViewedSplit(source.split("train"), Views(n=1)).__getitems__([0, 1])[0].shape == (2, 1, 8, 8)

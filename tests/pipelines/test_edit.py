"""Completing a picture: what is not wanted stays, for tokens of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import maskgen
from maskgen.core.errors import UserError
from maskgen.data.base import DATASETS
from maskgen.pipelines.edit import HOLES, Edit
from maskgen.tokenizers.image.patches import PatchTokenizer
from tests.tiny import FIELD, GENERATOR, SHAPE, VECTORS, generator_checkpoint

picture = DATASETS.build("digits").split("test")[0][0]  # type: ignore[union-attr]
PARTS = [hole for hole in HOLES if hole != "all"]
KINDS = {"pixels": GENERATOR, "patches": FIELD, "masked patches": VECTORS}


@pytest.mark.parametrize("hole", [*PARTS, "0.1,0.2,0.6,0.9", ["left", "0.6,0.5,0.9,1.0"]])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_are_not_wanted_stay_and_the_others_are_made(kind: str, hole: Any, tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", KINDS[kind])
    made = maskgen.load(str(tmp_path / "model"), device="cpu")(4, picture=picture, hole=hole).pixels
    wanted = Edit.of(picture, hole, SHAPE).wanted
    assert torch.equal(made.masked_fill(wanted, 0), picture.masked_fill(wanted, 0).expand(4, -1, -1, -1))
    inside = made[:, wanted]
    assert not torch.equal(inside[0], inside[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_depends_on_its_own_seed_only(kind: str, tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", KINDS[kind])
    pipeline = maskgen.load(str(tmp_path / "model"), device="cpu")
    many = pipeline(3, ["1"], picture=picture, seed=4).pixels
    assert torch.equal(many[2], pipeline(1, ["1"], picture=picture, seed=6).pixels[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hole", [None, "left"])
def test_a_variation_keeps_a_share_of_the_tokens_by_seed(kind: str, hole: str | None, tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", KINDS[kind])
    pipeline = maskgen.load_image(str(tmp_path / "model"), device="cpu")
    edit, tokenizer = Edit.of(picture, hole, SHAPE, 0.25), pipeline.tokenizer
    known, whole = edit.known(tokenizer, [7, 8, 9]), Edit.of(picture, "left", SHAPE).known(tokenizer, [0])
    n_open = known[..., 0].isnan() if known.is_floating_point() else known < 0
    n_hole = (whole[..., 0].isnan() if whole.is_floating_point() else whole < 0).sum() * (1 if hole else 2)
    assert (n_open.sum(1) == (0.25 * n_hole).round().clamp(min=1)).all()
    assert not torch.equal(n_open[0], n_open[1])
    made = pipeline(3, ["1"], picture=picture, hole=hole, strength=0.25, seed=7)
    assert torch.equal(made.pixels[2], pipeline(1, ["1"], picture=picture, hole=hole, strength=0.25, seed=9).pixels[0])
    stays = ~n_open
    assert torch.equal(made.tokens[stays], known.cpu()[stays])


@pytest.mark.parametrize("strength", [0.0, 1.5, float("nan")])
def test_an_impossible_strength_is_refused(strength: float) -> None:
    with pytest.raises(UserError, match="strength must lie in"):
        Edit.of(picture, "all", SHAPE, strength)


def test_patches_may_be_known_in_part() -> None:
    edit = Edit.of(picture, "0.0,0.0,0.625,1.0", SHAPE)  # five of eight columns
    known = edit.known(PatchTokenizer(SHAPE, 4), [0, 1])
    assert known.shape == (2, 4, 16)
    missing = known.isnan().view(2, 2, 2, 4, 4)  # row, column, pixels
    assert missing[:, :, 0].all()
    assert missing[:, :, 1, :, 0].all()
    assert not missing[:, :, 1, :, 1:].any()


def test_halves_and_borders_are_what_they_are_called() -> None:
    shares = {hole: float(Edit.of(picture, hole, SHAPE).wanted.float().mean()) for hole in PARTS}
    assert shares == {"center": 0.25, "border": 0.75, "left": 0.5, "right": 0.5, "top": 0.5, "bottom": 0.5}
    assert Edit.of(picture, "left", SHAPE).wanted[0, :, 0].all()
    assert Edit.of(picture, "bottom", SHAPE).wanted[0, -1].all()


def test_a_mask_is_a_picture_white_where_something_is_wanted(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    generator_checkpoint(tmp_path / "model", FIELD)
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[2:4, 1:7] = 255
    Image.fromarray(mask.numpy()).save(tmp_path / "mask.png")
    Image.fromarray(picture[0].numpy()).save(tmp_path / "picture.png")
    files = ("--picture", tmp_path / "picture.png", "--hole", tmp_path / "mask.png", "--output", tmp_path / "out")
    code, _, error = command("sample", tmp_path / "model", "--num", 2, *files)
    assert code == 0, error
    for file in (tmp_path / "out").glob("*.png"):
        with Image.open(file) as image:
            made = torch.tensor(list(image.convert("L").tobytes()), dtype=torch.uint8).view(8, 8)
        assert torch.equal(made[mask == 0], picture[0][mask == 0])


@pytest.mark.parametrize(
    ("hole", "message"),
    [
        ("middle", "choose from center, border"),
        ("0,0,1,1", "leaves nothing of the picture"),
        ("0,0,0.01,0.01", "leaves nothing to generate"),
        ("0.5,0,0.2,1", "choose from center"),
    ],
)
def test_a_hole_that_is_none_is_refused(hole: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Edit.of(picture, hole, SHAPE)


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    with pytest.raises(UserError, match="must be uint8"):
        Edit.of(picture.float(), "center", SHAPE)
    with pytest.raises(UserError, match="the hole must be"):
        Edit.of(picture, torch.ones(1, 4, 4), SHAPE)
    with pytest.raises(UserError, match="squares only"):
        Edit.of(tmp_path / "picture.png", "center", (1, 8, 16))
    generator_checkpoint(tmp_path / "model", FIELD)
    code, _, error = command("sample", tmp_path / "model", "--hole", "left")
    assert (code, "give --picture FILE" in error) == (2, True)
    code, _, error = command("sample", tmp_path / "model", "--picture", tmp_path / "none.png")
    assert (code, "none.png" in error, "Traceback" in error) == (2, True, False)

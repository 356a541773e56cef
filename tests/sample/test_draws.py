"""Image i is of seed i, however many are drawn at once; what was drawn is not drawn again, and never another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.pipelines.image import ImagePipeline
from maskgen.sample import draws
from maskgen.sample.draws import Arm
from tests.tiny import generator_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def pipeline(tmp_path: Path) -> ImagePipeline:
    return load(tmp_path / "model")


def load(path: Path, seed: int = 0) -> ImagePipeline:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator_checkpoint(path)
    return ImagePipeline(read_checkpoint(path), CPU)


def arm(pipeline: ImagePipeline, folder: Path | None = None, **choices: object) -> Arm:
    return Arm(pipeline, pipeline.with_sampler(steps=2, **choices), folder=folder)  # type: ignore[arg-type]


def images(one: Arm, num: int) -> Tensor:
    return torch.cat([draw.images for draw in one.draw(num)])


def test_an_image_depends_on_its_own_seed_only(pipeline: ImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = images(arm(pipeline), 12)
    monkeypatch.setattr(draws, "SHARD", 5)
    assert torch.equal(images(arm(pipeline), 12), whole)
    assert torch.equal(images(replace(arm(pipeline), seed=10), 2), pipeline(12, steps=2).pixels[10:])
    labels = torch.cat([draw.labels for draw in arm(pipeline).draw(12)])
    assert labels.tolist() == [*range(10), 0, 1]


def test_what_was_drawn_is_read_and_the_rest_drawn(
    pipeline: ImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "SHARD", 4)
    whole, kept = images(arm(pipeline), 12), arm(pipeline, tmp_path / "kept")
    drawing = kept.draw(12)
    next(drawing)
    next(drawing)  # and then it was killed
    files = sorted((tmp_path / "kept" / kept.key).glob("*.npz"))
    assert [file.name for file in files] == ["images-00000000-00000004.npz"] * 1 + ["images-00000004-00000008.npz"]
    stamps = [file.stat().st_mtime_ns for file in files]
    assert torch.equal(images(kept, 12), whole)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert [draw.first for draw in kept.draw(12)] == [0, 4, 8]


def test_a_damaged_file_is_drawn_again(
    pipeline: ImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "SHARD", 4)
    kept = arm(pipeline, tmp_path / "kept")
    whole = images(kept, 8)
    first, second = sorted((tmp_path / "kept" / kept.key).glob("*.npz"))
    first.write_bytes(first.read_bytes()[:100])
    raw = bytearray(second.read_bytes())
    raw[300] ^= 1
    second.write_bytes(raw)
    assert torch.equal(images(kept, 8), whole)


def test_a_piece_of_too_few_images_is_drawn_again(pipeline: ImagePipeline, tmp_path: Path) -> None:
    kept = arm(pipeline, tmp_path / "kept")
    whole = images(kept, 4)
    (file,) = (tmp_path / "kept" / kept.key).glob("*.npz")
    with np.load(file) as stored:
        arrays = dict(stored)
    np.savez(file, **{**arrays, "images": arrays["images"][:3]})
    assert torch.equal(images(kept, 4), whole)


def test_the_key_holds_what_draws(pipeline: ImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, key = arm(pipeline).settings(), arm(pipeline).key
    assert {"maskgen", "torch", "torchvision", "pillow"} <= set(settings)
    assert settings["device"] == "cpu"
    monkeypatch.setattr(draws, "packages", lambda: {"torch": "another"})
    assert arm(pipeline).key != key


def test_other_weights_another_sampler_and_another_seed_never_mix(pipeline: ImagePipeline, tmp_path: Path) -> None:
    other = load(tmp_path / "other", seed=1)
    arms = [arm(pipeline), arm(other), arm(pipeline, temperature=0.5), replace(arm(pipeline), seed=1)]
    assert len({one.key for one in arms}) == 4
    assert arm(pipeline).key == arm(load(tmp_path / "again")).key, "the same weights elsewhere are the same"
    kept = [replace(one, folder=tmp_path / "kept") for one in arms]
    for one, two in zip(arms, kept, strict=True):
        assert torch.equal(images(two, 3), images(one, 3))
        assert torch.equal(images(two, 3), images(one, 3)), "read back"


def test_evaluations_are_counted_and_kept(pipeline: ImagePipeline, tmp_path: Path) -> None:
    kept = arm(pipeline, tmp_path / "kept")
    for _ in range(2):
        (draw,) = kept.draw(3)
        assert draw.evaluations == 6  # two steps of three rows
        assert draw.seconds > 0

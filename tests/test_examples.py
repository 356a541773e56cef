"""Every example runs, prints a number or writes a picture, and fits on a screen and a half."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskgen.data.image.fashion import FASHION_FOLDER, FashionMnist
from maskgen.samplers.masked.order import ORDERS

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _own_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that an example registers are forgotten after it."""
    monkeypatch.setattr(ORDERS, "_entries", dict(ORDERS._entries))


def main_of(name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main  # type: ignore[no-any-return]


def test_examples_are_short() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"own_network", "own_sampler", "infill", "score_folder"}
    for name in names:
        assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60, name


@pytest.mark.slow
def test_a_network_of_ones_own_learns_and_samples(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    assert main_of("own_network")(steps=60, picture=str(picture)) < 2.6  # ln 17 = 2.83 before training
    with Image.open(picture) as image:
        assert image.size == (10 * 58 + 2, 2 * 58 + 2)


@pytest.mark.slow
def test_a_sampler_of_ones_own_samples(tmp_path: Path) -> None:
    accuracy = main_of("own_sampler")(num=20, picture=str(tmp_path / "p.png"))
    assert set(accuracy) == {"own", "maskgit"}
    assert min(accuracy.values()) > 0.5
    assert (tmp_path / "p.png").is_file()


@pytest.mark.slow
def test_holes_and_gaps_are_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = main_of("infill")(picture=str(tmp_path / "p.png"))
    assert "0 pixels outside the hole changed" in capsys.readouterr().out
    assert all(text.startswith("And God said, Let there be ") for text in texts)


@pytest.mark.slow
@pytest.mark.skipif(not Path(FASHION_FOLDER).is_dir(), reason="Fashion-MNIST is not installed")
def test_a_folder_is_scored(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FashionMnist.__init__, "__defaults__", (None, 100, 1000))
    assert 0 < main_of("score_folder")(num=100) < 10
    assert "frechet_distance[fashion-classifier] of 100 images to 1000 of" in capsys.readouterr().out

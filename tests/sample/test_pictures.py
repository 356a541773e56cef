"""Grids and files of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskgen.core.errors import UserError
from maskgen.data.image.grid import grid
from maskgen.data.image.pictures import to_pil
from maskgen.pipelines.sheet import write_images
from maskgen.sample.pictures import check_writable


def test_a_grid_has_every_image_in_its_place() -> None:
    pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 60, 60) * 40
    sheet = grid(pixels, n_columns=3)
    assert sheet.size == (3 * 62 + 2, 2 * 62 + 2)
    assert [sheet.getpixel((2 + 62 * column + 30, 2 + 62 * row + 30)) for row in (0, 1) for column in (0, 1, 2)] == [
        0, 40, 80, 120, 160, 200
    ]  # fmt: skip


def test_colour_images_keep_their_channels() -> None:
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    pixels[:, 2] = 255
    assert to_pil(pixels)[0].getpixel((0, 0)) == (0, 0, 255)


def test_writing_replaces_whole_files_and_leaves_nothing_beside_them(tmp_path: Path) -> None:
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    for _ in range(2):
        write_images(tmp_path / "a.png", pixels, None)
        write_images(tmp_path / "a.npz", pixels, [0, 1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.png"]


def test_an_output_is_checked_before_the_work(tmp_path: Path) -> None:
    assert check_writable(str(tmp_path / "new" / "a.png"), (".png",)).parent.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        check_writable(str(tmp_path / "file" / "a.png"), (".png",))

"""Laws of the strategies that look at nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.strategies import Blocks, Color, Grid, Random


def neighbours_alike(mask: Tensor, grid: tuple[int, int]) -> float:
    """Share of pairs of neighbours of which both or none are masked."""
    x = mask.view(-1, *grid)
    down, right = x[:, 1:] == x[:, :-1], x[:, :, 1:] == x[:, :, :-1]
    return torch.cat([down.flatten(), right.flatten()]).double().mean().item()


def largest_component(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B,) tokens of the largest connected part: labels flow to neighbours until nothing changes."""
    x = mask.view(-1, 1, *grid).double()
    labels = torch.arange(1, 1 + grid[0] * grid[1]).view(1, 1, *grid) * x
    cross = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    for _ in range(grid[0] * grid[1]):
        padded = torch.nn.functional.pad(labels, (1, 1, 1, 1))
        around = [padded.roll(shift, (2, 3))[:, :, 1:-1, 1:-1] for shift in cross]
        grown = torch.stack([labels, *around]).amax(0) * x
        if torch.equal(grown, labels):
            break
        labels = grown
    return torch.stack([row[row > 0].long().bincount().max() for row in labels.flatten(1)])


def power(scores: Tensor, grid: tuple[int, int]) -> tuple[float, float, float]:
    """Mean power of scores at low, middle and high frequencies, through a Hann window."""
    window = torch.hann_window(grid[0])[:, None] * torch.hann_window(grid[1])
    spectrum = torch.fft.fft2(scores.view(-1, *grid) * window).abs().square().mean(0)
    fy, fx = torch.fft.fftfreq(grid[0]), torch.fft.fftfreq(grid[1])
    radius = (fy[:, None].square() + fx[None].square()).sqrt()
    bands = [(0.0, 0.02), (0.09, 0.13), (0.4, 1.0)]
    low, middle, high = (spectrum[(radius >= a) & (radius < b)].mean().item() for a, b in bands)
    return low, middle, high


def test_random_masks_every_place_equally_often_and_places_independently() -> None:
    mask = Random().mask(0.75, 8000, (4, 4), Rng.stream(0)).double()
    assert mask.mean(0).tolist() == pytest.approx([0.75] * 16, abs=0.02)
    together = (mask.T @ mask / len(mask)).fill_diagonal_(11 / 20)
    assert together.flatten().tolist() == pytest.approx([11 / 20] * 256, abs=0.025)  # 12/16 * 11/15


def test_blocks_hang_together_more_than_random_masks() -> None:
    grid, ratio = (14, 14), 0.4
    blocks, random = (largest_component(s.mask(ratio, 60, grid, Rng.stream(0)), grid) for s in (Blocks(), Random()))
    n_masked = round(ratio * 196)
    assert blocks.double().mean() > 0.8 * n_masked
    assert random.double().mean() < 0.5 * n_masked


def test_the_first_block_is_a_rectangle_of_the_areas_and_sides_asked_for() -> None:
    grid, strategy = (20, 20), Blocks(area=(0.1, 0.2), aspect=0.5)
    scores = strategy.scores(200, grid, Rng.stream(0)).view(200, *grid)
    for row in scores < 1:
        height, width = (int(row.any(axis).sum()) for axis in (1, 0))
        assert row.sum() == height * width
        assert 0.09 < height * width / 400 < 0.22
        assert 0.4 < height / width < 2.5


def test_blocks_rank_every_token_once() -> None:
    scores = Blocks().scores(50, (9, 6), Rng.stream(0))
    assert all(len(set(row)) == 54 for row in scores.tolist())


def test_blocks_of_a_text_are_spans() -> None:
    mask = Blocks(area=(0.1, 0.1)).mask(0.1, 40, (1, 60), Rng.stream(0))
    edges = (mask[:, 1:] != mask[:, :-1]).sum(1)
    assert edges.max() <= 2


@pytest.mark.parametrize("period", [2, 3, 4])
def test_a_grid_repeats_after_its_period(period: int) -> None:
    grid = (12, 12)
    ratio = (period - 1) ** 2 / period**2  # a whole square of each cell
    mask = Grid((period, period)).mask(ratio, 30, grid, Rng.stream(0)).view(-1, *grid)
    assert torch.equal(mask[:, period:], mask[:, :-period])
    assert torch.equal(mask[:, :, period:], mask[:, :, :-period])


def test_a_grid_of_period_two_leaves_one_token_of_four_at_three_quarters() -> None:
    kept = ~Grid((2, 2)).mask(0.75, 30, (8, 8), Rng.stream(0)).view(-1, 4, 2, 4, 2)
    assert (kept.sum((2, 4)) == 1).all()


def test_the_steps_of_a_grid_are_whole_but_one() -> None:
    scores = Grid((3, 3)).scores(20, (9, 9), Rng.stream(0))
    steps = scores.floor().view(20, 3, 3, 3, 3)
    assert (steps == steps[:, :1, :, :1]).all()


def test_a_grid_has_every_period_and_offset_asked_for() -> None:
    scores = Grid((2, 4)).scores(600, (12, 12), Rng.stream(0)).floor()
    n_steps = {len(set(row)) for row in scores.tolist()}
    assert n_steps == {4, 9, 16}
    firsts = {row.index(0) for row in scores.tolist() if 0 in row}
    assert firsts == {12 * y + x for y in range(4) for x in range(4)}


def test_colors_have_the_power_where_their_names_say() -> None:
    grid = (32, 32)
    low, middle, high = power(Color("low").scores(60, grid, Rng.stream(0)), grid)
    assert low > middle > 50 * high
    low, middle, high = power(Color("high").scores(60, grid, Rng.stream(0)), grid)
    assert low < 0.1 * middle < middle < high
    low, middle, high = power(Color("band").scores(60, grid, Rng.stream(0)), grid)
    assert middle > 2 * low
    assert middle > 20 * high
    low, middle, high = power(Color("stop").scores(60, grid, Rng.stream(0)), grid)
    assert middle < 0.1 * min(low, high)


@pytest.mark.parametrize("color", ["low", "high", "band", "stop"])
def test_filtered_noise_has_one_law_everywhere_on_the_grid(color: Any) -> None:
    share = Color(color).mask(0.5, 6000, (5, 5), Rng.stream(0)).double().mean(0)
    assert share.tolist() == pytest.approx([0.5] * 25, abs=0.06)
    variance = Color(color).scores(6000, (5, 5), Rng.stream(0)).var(0)
    assert (variance / variance.mean()).tolist() == pytest.approx([1.0] * 25, abs=0.1)


def test_low_noise_clumps_and_high_noise_scatters() -> None:
    grid = (14, 14)
    alike = {
        color: neighbours_alike(Color(color).mask(0.5, 200, grid, Rng.stream(0)), grid) for color in ("low", "high")
    }
    random = neighbours_alike(Random().mask(0.5, 200, grid, Rng.stream(0)), grid)
    assert alike["low"] > random + 0.15
    assert alike["high"] < random - 0.02


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blocks(area=(0.5, 0.2)), r"area must be two shares in \(0, 1\], the least first, got \(0.5, 0.2\)"),
        (lambda: Blocks(area=(0.0, 0.2)), "area must be two shares"),
        (lambda: Blocks(aspect=0.0), r"aspect must be in \(0, 1\], got 0.0"),
        (lambda: Grid((1, 4)), r"period must be two whole numbers from 2 on, the least first, got \(1, 4\)"),
        (lambda: Grid((4, 2)), "period must be"),
        (lambda: Color("band", 2.0, 1.0), "sigma must be positive and below wide, got 2.0 and 1.0"),
    ],
)
def test_a_setting_without_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_blocks_and_grids_of_a_video_are_boxes_and_cubes() -> None:
    scores = Blocks(area=(0.1, 0.2)).scores(50, (6, 8, 8), Rng.stream(0)).view(50, 6, 8, 8)
    for row in scores < 1:
        sides = [int(row.flatten(0, 1).any(0).sum()), int(row.any(2).any(0).sum()), int(row.any(2).any(1).sum())]
        assert row.sum() == sides[0] * sides[1] * sides[2]
        assert 0.05 < float(row.double().mean()) < 0.35
    kept = ~Grid((2, 2)).mask(7 / 8, 20, (4, 6, 8), Rng.stream(0)).view(-1, 2, 2, 3, 2, 4, 2)
    assert (kept.sum((2, 4, 6)) == 1).all()


def test_filtered_noise_of_a_video_is_smooth_along_every_axis() -> None:
    for color, low in (("low", True), ("high", False)):
        x = Color(color).scores(20, (8, 8, 8), Rng.stream(0)).view(-1, 8, 8, 8)  # type: ignore[arg-type]
        for axis in (1, 2, 3):
            step = x.diff(dim=axis).square().mean() / x.var()
            assert bool(step < 1) is low

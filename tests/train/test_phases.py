"""Runs of several phases: exact resume at every step, data in one order, resolutions that change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from maskgen.checkpoints.checkpoint import load_model, read_checkpoint
from maskgen.core.errors import UserError
from maskgen.data.loader import CounterSampler
from maskgen.models import MODELS, change_grid
from maskgen.train.clock import Clock
from maskgen.train.program import run

TINY = [
    *("model.width=8", "model.depth=1", "model.heads=2", "model.dropout=0.1", "train.batch_size=8", "train.warmup=2"),
    *(
        "train.ema=0.9",
        "train.log_every=1",
        "train.preview_every=0",
        "train.validation_rows=8",
        "train.tensorboard=false",
    ),
    "train.phases=[{steps: 3, keep_ratio: {type: linear, start: 0.25, end: 0.5, levels: 2}}, "
    "{steps: 2, keep_ratio: 1, batch_size: 4, accumulate: 2, lr: 1.0e-3}, {steps: 1, lr_schedule: constant}]",
]


def digits(output: Path, *overrides: str, resume: bool = False) -> Path:
    return run("digits-maskgit", [*TINY, "train.steps=6", *overrides], str(output), resume, "cpu")


def weights(checkpoint: Path) -> list[Any]:
    """Stamps of averaged and raw weights and moments."""
    files = read_checkpoint(checkpoint).info["files"]
    return [files["model.safetensors"], files["training.safetensors"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    digits(directory, "train.checkpoint_every=1", "train.keep_checkpoints=9")
    return directory


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_run_resumed_at_any_step_is_the_run_that_was_not_interrupted(whole: Path, tmp_path: Path, step: int) -> None:
    (tmp_path / f"checkpoint-{step}").symlink_to(whole / f"checkpoint-{step}")
    torch.manual_seed(step)
    digits(tmp_path, "train.checkpoint_every=6", "train.keep_checkpoints=9", resume=True)
    assert weights(tmp_path / "checkpoint-6") == weights(whole / "checkpoint-6")


def test_metrics_show_the_keep_ratio_of_each_step(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/keep_ratio"] for line in lines if "train/loss" in line] == [0.25, 0.25, 0.5, 1, 1, 1]


def test_the_run_leaves_its_costs(whole: Path) -> None:
    cost = json.loads((whole / "cost.json").read_text())
    assert [phase["steps"] for phase in cost["phases"]] == [3, 2, 1]
    assert [phase["samples"] for phase in cost["phases"]] == [24, 8, 8]
    assert all(phase["samples_per_second"] > 0 and phase["cpu_seconds"] > 0 for phase in cost["phases"])
    ratios = [row["keep_ratio"] for row in cost["macs_per_sample"]]
    assert ratios == [0.25, 0.5, 1.0]
    by_ratio = {row["keep_ratio"]: row["macs"] for row in cost["macs_per_sample"]}
    samples = {0.25: 16, 0.5: 8, 1.0: 16}
    assert cost["flops"] == 6 * sum(by_ratio[ratio] * n for ratio, n in samples.items())


def test_phases_go_on_in_one_order_of_the_data() -> None:
    n, seed = 10, 3
    whole = CounterSampler(n, 1, seed)
    order = [whole.indices(batch)[0] for batch in range(40)]
    first, second = CounterSampler(n, 8, seed), CounterSampler(n, 4, seed, offset=24)
    found = [row for batch in range(3) for row in first.indices(batch)]
    found += [row for batch in range(4) for row in second.indices(batch)]
    assert found == order


def test_a_clock_counts_on_from_a_checkpoint_and_leaves_pauses_out() -> None:
    phase = {"phase": 0, "steps": 2, "samples": 8, "seconds": 3.0, "cpu_seconds": 2.0}
    clock = Clock({"seconds": 50, "cpu_seconds": 40, "phases": [phase]})
    clock.step(0, 4)
    clock.step(1, 4)
    assert [(phase["steps"], phase["samples"]) for phase in clock.phases()] == [(3, 12), (1, 4)]
    assert 50 <= clock.so_far()["seconds"] < 51
    assert clock.phases()[0]["seconds"] == 3, "nothing was spent on steps"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index in range(24):
        folder = tmp_path / "pictures" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), index * 10).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def recipe(path: Path, pictures: Path, **model: Any) -> str:
    content = {
        "data": {"type": "folder", "path": str(pictures), "size": 4, "channels": 1, "test_fraction": 0.3},
        "tokenizer": {"type": "pixels", "levels": 4},
        "model": {"type": "maskgit", "width": 8, "depth": 1, "heads": 2, "positions": "rotary", **model},
        "objective": "masked_tokens",
        "train": {
            "phases": [{"steps": 2}, {"steps": 2, "resolution": 8}], "batch_size": 4, "preview_every": 4,
            "validation_rows": 2, "tensorboard": False, "checkpoint_every": 1, "keep_checkpoints": 9,
        },
        "sampler": {"type": "maskgit", "steps": 2},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_run_goes_from_one_resolution_to_another_and_resumes_across_it(tmp_path: Path, pictures: Path) -> None:
    source = recipe(tmp_path / "r.yaml", pictures)
    run(source, output=str(tmp_path / "a"), device="cpu")
    last = read_checkpoint(tmp_path / "a")
    assert last.image_shape == (1, 8, 8)
    assert read_checkpoint(tmp_path / "a" / "checkpoint-2").image_shape == (1, 4, 4)
    network, tokenizer = load_model(last)
    assert tokenizer is not None
    assert tokenizer.grid == (8, 8)
    assert network(torch.zeros(1, 64, dtype=torch.int64), torch.ones(1)).logits.shape == (1, 64, 4)
    for step in (1, 2, 3):
        home = tmp_path / f"from-{step}"
        home.mkdir()
        (home / f"checkpoint-{step}").symlink_to(tmp_path / "a" / f"checkpoint-{step}")
        run(source, ["train.checkpoint_every=9"], str(home), resume=True, device="cpu")
        assert weights(home / "checkpoint-4") == weights(last.path)


def test_masks_follow_the_grid_of_a_phase(tmp_path: Path, pictures: Path) -> None:
    source = recipe(tmp_path / "r.yaml", pictures)  # a process of another grid refuses rows of this one
    last = run(source, ["process={type: absorbing, strategy: block}"], str(tmp_path / "a"), device="cpu")
    assert read_checkpoint(last).image_shape == (1, 8, 8)


def test_a_network_of_one_grid_is_refused_before_the_first_step(tmp_path: Path, pictures: Path) -> None:
    source = recipe(tmp_path / "r.yaml", pictures, positions="learned")
    with pytest.raises(UserError, match=r"learned positions are for one grid of tokens; use model\.positions rotary"):
        run(source, output=str(tmp_path / "run"), device="cpu")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_positions_between_are_interpolated() -> None:
    spec = {"type": "maskgit", "width": 8, "depth": 1, "heads": 2, "positions": "rotary", "condition": "token"}
    network: Any = MODELS.build(spec, vocab_size=4, grid=(3, 3), n_classes=2)
    before = network.rotation.clone()
    change_grid(network, (6, 6))
    assert network.rotation.shape == (37, 2)
    coarse = network.rotation[1:].view(6, 6, 2)[::2, ::2].reshape(9, 2)
    assert torch.equal(coarse, before[1:])
    assert torch.equal(network.rotation[0], before[0])
    change_grid(network, (3, 3))
    assert torch.equal(network.rotation, before)


def test_a_network_that_has_no_grid_cannot_change_it() -> None:
    with pytest.raises(UserError, match="Linear cannot work on a grid"):
        change_grid(torch.nn.Linear(2, 2), (3, 3))

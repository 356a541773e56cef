"""MAGE and MAGE-C from recipe to samples, on the digits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import maskgen
from maskgen.checkpoints.checkpoint import load_model, read_checkpoint
from maskgen.core.streams import Stream, TokenLayout
from maskgen.processes import Absorbing
from maskgen.recipes.build import DataFacts, build_system
from maskgen.recipes.cost import Subject, count, subject
from maskgen.recipes.load import load_recipe, parse_recipe
from maskgen.train.experiment import read_experiment
from maskgen.train.program import run
from tests.tiny import tree

Command = Callable[..., tuple[int, str, str]]

MODEL = {"type": "mage", "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1}
TRAIN = {
    "steps": 4, "batch_size": 8, "checkpoint_every": 2, "keep_ratio": 0.5, "log_every": 1, "validation_rows": 8,
    "preview_every": 4, "tensorboard": False, "keep_checkpoints": 3,
}  # fmt: skip
PLAIN = tree(
    process={"type": "absorbing", "schedule": "truncated_normal"},
    model=MODEL,
    objective={"type": "masked_tokens", "label_smoothing": 0.1},
    sampler={"type": "maskgit", "steps": 3},
    train=TRAIN,
)
PAIRED = PLAIN | {
    "model": {**MODEL, "projection": 8},
    "objective": {"type": "masked_tokens", "contrastive": {"weight": 0.1, "temperature": 0.2}},
    "train": {**TRAIN, "views": {"n": 2, "shift": 1}},
}


def trained(tree_of: dict[str, Any], home: Path, resume: bool = False) -> Path:
    home.mkdir(exist_ok=True)
    (home / "recipe-to-run.yaml").write_text(json.dumps(tree_of))
    return run(str(home / "recipe-to-run.yaml"), output=str(home / "run"), resume=resume, device="cpu")


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MAGE-C trained for four steps."""
    return trained(PAIRED, tmp_path_factory.mktemp("paired"))


def logged(run_directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key.startswith(("train/loss", "train/contr"))} for line in lines]


def test_the_term_is_logged_in_training_and_near_that_of_a_network_that_knows_nothing(paired: Path) -> None:
    lines = [line for line in logged(paired.parent) if line]
    assert len(lines) == 4
    assert all(2.0 < line["train/contrastive"] < 4.0 for line in lines)  # ln 15 = 2.71
    text = (paired.parent / "metrics.jsonl").read_text()
    assert "validation/loss" in text
    assert "validation/contrastive" not in text


def test_a_resumed_run_with_views_is_the_one_that_was_not_interrupted(paired: Path, tmp_path: Path) -> None:
    shutil.copytree(paired.parent, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again = trained(PAIRED, tmp_path, resume=True)
    first, second = (read_checkpoint(path).info["files"] for path in (paired, again))
    for name in ("model.safetensors", "training.safetensors"):
        assert first[name] == second[name]
    assert logged(tmp_path / "run") == logged(paired.parent)


def test_a_checkpoint_is_unconditional_though_its_data_have_classes(paired: Path) -> None:
    checkpoint = read_checkpoint(paired)
    assert checkpoint.classes == ()
    samples = maskgen.load(paired)(num=3)
    assert samples.labels is None
    assert samples.tokens.shape == (3, 64)
    with pytest.raises(ValueError, match="this checkpoint is unconditional"):
        maskgen.load(paired)(num=1, classes=["3"])
    network: Any = load_model(checkpoint)[0]
    assert network.features(samples.tokens).shape == (3, 64, 16)


def test_a_hole_is_filled_and_the_rest_of_the_picture_stays(paired: Path) -> None:
    pipeline = maskgen.load(paired)
    given = pipeline(num=1).pixels[0]
    filled = pipeline(num=4, picture=given, hole="center").pixels
    is_outside = torch.ones(8, 8, dtype=torch.bool)
    is_outside[2:6, 2:6] = False
    assert torch.equal(filled[..., is_outside], given[:, is_outside].expand(4, -1, -1))


def test_with_classes_a_checkpoint_is_asked_for_them_and_can_be_guided(tmp_path: Path) -> None:
    path = trained(PLAIN | {"model": {**MODEL, "condition": "token"}}, tmp_path)
    assert len(read_checkpoint(path).classes) == 10
    samples = maskgen.load(path)(num=2, classes=["3"], guidance=2.0)
    assert samples.labels == [3, 3]


def test_precomputed_views_are_those_that_training_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(PAIRED))
    code, out, error = command("precompute", file, "--parts", "3")
    assert code == 0, error
    assert "4,500 train" in out
    made = sorted((tmp_path / "cache").iterdir())
    trained(PAIRED, tmp_path / "home")
    assert sorted((tmp_path / "cache").iterdir()) == made
    assert len(made) == 4  # two files a split


def counted(tree_of: dict[str, Any]) -> Mapping[str, float]:
    recipe = parse_recipe(tree_of)
    with torch.device("meta"):
        what = subject(build_system(recipe, DataFacts(0, (1, 8, 8)), layout=recipe.build_tokenizer((1, 8, 8)).layout))
    return count(what, 0.5).stages


def test_another_view_costs_a_pass_of_the_encoder() -> None:
    single, pair = counted(PLAIN), counted(PAIRED)
    assert pair["encoder"] == 2 * single["encoder"]
    assert pair["decoder"] == single["decoder"]


def test_half_of_the_tokens_dropped_halve_the_encoder_and_not_the_decoder() -> None:
    recipe = load_recipe("image/imagenet-mage-b")
    with torch.device("meta"):
        network = recipe.build_model(n_classes=1000, image_shape=(3, 256, 256), vocab_size=1024, grid=(16, 16))
    layout = TokenLayout.of(Stream("image", "image", 1024, (16, 16)))
    what = Subject(network, recipe.build_objective(1024), (256,), layout)
    whole, half = count(what).stages, count(what, 0.5).stages
    block = {n: 12 * n * 768**2 + 2 * n**2 * 768 for n in (257, 129)}
    assert whole["encoder"] == 12 * block[257]
    assert half["encoder"] == 12 * block[129]
    assert half["decoder"] - 129 * 768**2 == whole["decoder"] - 257 * 768**2 == 8 * block[257]


def test_the_experiment_on_mask_ratios_has_arms_that_differ_in_what_they_say() -> None:
    experiment = read_experiment(None, "mage")
    assert experiment.evaluate is not None
    assert experiment.probe is not None
    arms = {
        name: load_recipe(arm.recipe, [*experiment.overrides, *arm.overrides]) for name, arm in experiment.arms.items()
    }
    for names in experiment.groups.values():
        assert set(names) <= set(arms)
    ratios = {}
    for name, recipe in arms.items():
        process = recipe.build_process(512)
        assert isinstance(process, Absorbing)
        ratios[name] = process.schedule.mask_ratio(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
    assert ratios["fixed-55"] == pytest.approx([0.55, 0.55])
    assert ratios["fixed-75"] == pytest.approx([0.75, 0.75])
    assert ratios["cosine"] == pytest.approx([0.38268, 0.92388], abs=1e-5)
    assert (
        ratios["variable"]
        == ratios["contrastive"]
        == ratios["per-batch"]
        == pytest.approx([0.58557, 0.78681], abs=1e-5)
    )
    assert len({(recipe.train.steps, recipe.train.lr, recipe.train.batch_size) for recipe in arms.values()}) == 1

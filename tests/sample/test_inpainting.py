"""Filling holes: by masked autoencoders and by all others, and the measure of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import maskgen
from maskgen.checkpoints.checkpoint import MODEL, write_checkpoint
from maskgen.core.errors import UserError
from maskgen.data.base import DATASETS
from maskgen.evaluation.metrics.scored import Scored
from maskgen.evaluation.protocols.features import Extractor, Features
from maskgen.pipelines.base import HEAD_NFE, settings_of
from maskgen.pipelines.edit import Edit
from maskgen.recipes.load import parse_recipe
from maskgen.sample.inpainting import Completions, Painted
from tests.tiny import CLASSES, FIELD, GENERATOR, INFO, SHAPE, generator_checkpoint

Command = Callable[..., tuple[int, str, str]]
_SMALL = {"width": 16, "depth": 1, "heads": 2}
MAE: dict[str, Any] = {
    "data": "digits",
    "tokenizer": {"type": "patches", "size": 2},
    "process": {"type": "absorbing", "schedule": "fixed"},
    "model": {"type": "mae", **_SMALL, "decoder": {"type": "cross", **_SMALL}},
    "objective": {"type": "masked_regression", "normalise": False},
    "sampler": {"type": "masked", "order": "random", "steps": 1},
}
DIFFMAE: dict[str, Any] = {
    **MAE,
    "process": {"type": "gaussian", "schedule": {"type": "betas", "power": 0.8}, "target": "x_0", "steps": 1000},
    "model": {"type": "diffmae", **_SMALL, "decoder": {"type": "cross_self", **_SMALL}},
    "objective": "masked_denoising",
    "sampler": {"type": "ddpm", "steps": 4},
}
MAGE: dict[str, Any] = {**GENERATOR, "model": {"type": "mage", **_SMALL, "decoder_depth": 1}, "sampler": "mage"}
MAR: dict[str, Any] = {
    **MAE,
    "model": {"type": "mar", **_SMALL, "n_buffer": 2, "head": {"type": "diffusion", "width": 8, "depth": 1}},
    "objective": "token_diffusion",
    "sampler": {"type": "mar", "steps": 2},
}
KINDS = {"maskgit": GENERATOR, "dit": FIELD, "mae": MAE, "diffmae": DIFFMAE, "mage": MAGE, "mar": MAR}
every_kind = pytest.mark.parametrize("kind", KINDS)
picture = DATASETS.build("digits").split("test")[0][0]  # type: ignore[union-attr]


def pipeline(path: Path, kind: str, **changes: Any) -> Any:
    generator_checkpoint(path, KINDS[kind], **changes)
    return maskgen.load(str(path), device="cpu")


@pytest.mark.parametrize("kind", ["mae", "diffmae"])
def test_a_picture_is_completed_and_what_is_known_of_it_stays(kind: str, tmp_path: Path) -> None:
    made = pipeline(tmp_path / "model", kind)(3, picture=picture, hole="left").pixels
    wanted = Edit.of(picture, "left", SHAPE).wanted
    assert torch.equal(made.masked_fill(wanted, 0), picture.masked_fill(wanted, 0).expand(3, -1, -1, -1))
    assert torch.equal(made[0], made[1]) is (kind == "mae")  # a mean has no second opinion


@pytest.mark.parametrize("kind", ["mae", "mar", "maskgit"])
def test_a_diffusion_head_is_named_where_there_is_one(kind: str, tmp_path: Path) -> None:
    settings = settings_of(pipeline(tmp_path / "model", kind).generator)
    assert {name in settings for name in ("head", HEAD_NFE)} == {kind == "mar"}


def test_an_interval_of_guidance_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = pipeline(tmp_path / "model", "mae")
    monkeypatch.setattr(type(loaded), "classes", ())
    with pytest.raises(UserError, match="this checkpoint is unconditional"):
        loaded(1, guidance_interval=(0.1, 0.4))


def test_diffmae_looks_at_what_is_known_and_does_not_only_blend_it(tmp_path: Path) -> None:
    """At the first step there is but noise in x_t: what is said then depends on the known part all the same."""
    loaded, said = pipeline(tmp_path / "model", "diffmae"), []
    for shown in (picture, 255 - picture):
        steps: list[Tensor] = []
        loaded(1, picture=shown, hole="left", on_step=lambda done, total, x_0, steps=steps: steps.append(x_0))
        said.append(steps[0])
    hole = Edit.of(picture, "left", SHAPE).known(loaded.generator.tokenizer, [0]).isnan()
    assert not torch.allclose(said[0][hole], said[1][hole], atol=1e-3)


@pytest.mark.parametrize("kind", ["mae", "diffmae"])
def test_a_completion_depends_on_its_own_seed_only(kind: str, tmp_path: Path) -> None:
    loaded = pipeline(tmp_path / "model", kind)
    many = loaded(3, picture=picture, seed=4).pixels
    assert torch.equal(many[2], loaded(1, picture=picture, seed=6).pixels[0])


@pytest.mark.parametrize("kind", ["mae", "diffmae"])
def test_it_is_unconditional_though_the_data_have_classes(kind: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(KINDS[kind]))
    once = ["train.steps=1", "train.batch_size=4", "train.preview_every=1", "train.validation_rows=4"]
    code, _, error = command("train", str(tmp_path / "recipe.yaml"), *once, "--output", str(tmp_path / "run"))
    assert code == 0, error
    loaded = maskgen.load(str(tmp_path / "run"), device="cpu")
    assert loaded(2).labels is None
    with pytest.raises(UserError, match="no classes to choose from"):
        loaded(2, ["3"])


def test_normalised_patches_make_no_picture(command: Command, tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", MAE, objective="masked_regression", train={"preview_every": 0})
    for name, more in (("sample", []), ("evaluate", ["--metric", "inpainting"])):
        code, _, error = command(name, str(tmp_path / "model"), *more)
        assert code == 2
        assert "predicts a target that cannot be turned into images" in error
        assert "objective.target=pixels" in error
        assert len(error.strip().splitlines()) == 1


def test_the_command_completes_a_picture(command: Command, tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", DIFFMAE)
    Image.fromarray(picture[0].numpy()).save(tmp_path / "picture.png")
    output = tmp_path / "made.png"
    code, _, error = command(
        "sample", str(tmp_path / "model"), "--picture", str(tmp_path / "picture.png"), "--hole", "right",
        "--num", "2", "--output", str(output),
    )  # fmt: skip
    assert (code, output.is_file()) == (0, True), error


def judge(path: Path) -> str:
    recipe = parse_recipe(
        {"data": "digits", "model": {"type": "classifier", "width": 4}, "objective": "classification"}
    )
    network = recipe.build_model(n_classes=len(CLASSES), image_shape=SHAPE)
    write_checkpoint(path, recipe, {MODEL: network.state_dict()}, INFO)
    return str(path)


@every_kind
def test_every_checkpoint_is_measured(kind: str, command: Command, tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", KINDS[kind])
    report = tmp_path / "report.json"
    few = ["--num", "40", "--completions", "2", "--output", str(report)]
    code, text, error = command(
        "evaluate", str(tmp_path / "model"), "--metric", "inpainting", "--protocol", judge(tmp_path / "judge"), *few
    )
    assert code == 0, error
    found = json.loads(report.read_text())
    values = {entry["name"]: entry["value"] for entry in found["others"]}
    assert found["score"]["of"] == "completed images"
    assert found["score"]["facts"] == {"completions": 2}
    assert found["score"]["sampler"]["hole"] == "center"
    assert 0 < values["squared_error"] < 1
    assert (values["pixel_diversity"] == 0) is (values["feature_diversity[judge]"] == 0) is (kind == "mae")
    assert "pixel_diversity" in text


def extractor() -> Extractor:
    """The four quarters' means."""

    def network(images: Tensor) -> Features:
        return Features(torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1))

    return Extractor("means", "none", "-", network, 1, (1, 8, 8))


def test_error_and_diversity_are_what_they_are_called() -> None:
    """Images of 0; the first completion is 51 (0.2) in the hole, the second 102 (0.4)."""
    wanted = Edit.of(picture, "0,0,0.5,0.5", SHAPE).wanted
    images = torch.zeros(5, *SHAPE, dtype=torch.uint8)
    completed = torch.stack(
        [torch.where(wanted, torch.tensor(level, dtype=torch.uint8), images) for level in (51, 102)]
    )
    found = Completions(extractor(), wanted, 2)
    found.add(Painted(0, images, completed, 1.0, 10))

    samples = found.sets[0].result("completed images")
    values = {entry.name: entry.value for entry in found.entries(Scored(None, samples, samples))}
    assert values["squared_error"] == pytest.approx((0.2**2 + 0.4**2) / 2)
    assert values["pixel_diversity"] == pytest.approx(0.2)
    assert values["feature_distance[means]"] == pytest.approx(0.3)  # one of four quarters differs
    assert values["feature_diversity[means]"] == pytest.approx(0.2)
    assert values["nfe_per_sample"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num", "100000"], "--num must be 2 to 297"),
        (["--hole", "middle"], "hole 'middle': choose from"),
        (["--hole", "0,0,1,1"], "leaves nothing of the picture"),
        (["--strata", "3"], "--strata does not go with this metric"),
    ],
)
def test_what_cannot_be_measured_is_one_message(
    more: list[str], message: str, command: Command, tmp_path: Path
) -> None:
    generator_checkpoint(tmp_path / "model", MAE)
    options = ["--metric", "inpainting", "--protocol", judge(tmp_path / "judge"), *more]
    code, _, error = command("evaluate", str(tmp_path / "model"), *options)
    assert code == 2
    assert message in error

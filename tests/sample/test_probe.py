"""`maskgen probe`: from a checkpoint to accuracies, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.evaluation.probes.classifiers import SETTINGS
from maskgen.evaluation.probes.finetune import Tuning
from maskgen.evaluation.probes.representation import PIXELS, features_of
from maskgen.sample.probe import ground_of
from maskgen.sample.probe_features import encoder_of
from tests.tiny import FIELD, GENERATOR, POEM, generator_checkpoint, text_checkpoint, tokenizer_checkpoint

Command = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")
SMALL = {"type": "maskgit", "width": 8, "depth": 1, "heads": 2}
DEFERRED = FIELD["model"] | {"masking": "deferred", "depth": 2}
MASKDIT = FIELD["model"] | {"masking": {"type": "maskdit", "depth": 1, "width": 8, "heads": 2}}
MAE = FIELD | {
    "process": "absorbing",
    "objective": {"type": "masked_regression", "normalise": False},
    "sampler": {"type": "masked", "order": "random"},
}
MAR = FIELD | {"process": "absorbing", "objective": "token_diffusion", "sampler": "mar"}
TINY = {"width": 16, "depth": 1, "heads": 2}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adaln": (GENERATOR, SMALL),
    "token": (GENERATOR, SMALL | {"condition": "token"}),
    "bert": (GENERATOR, SMALL | {"condition": "token", "norm": "post"}),
    "time": (GENERATOR, SMALL | {"has_time": True}),
    "dit": (FIELD, FIELD["model"]),
    "deferred": (FIELD, DEFERRED),
    "maskdit": (FIELD, MASKDIT),
    "mae": (MAE, {"type": "mae", **TINY, "decoder": {"type": "joint", **TINY}}),
    "mar": (MAR, {"type": "mar", **TINY, "n_buffer": 2, "head": {"type": "diffusion", "width": 8, "depth": 1}}),
}


@pytest.mark.parametrize("case", CASES)
def test_features_are_of_the_images_alone_whatever_the_batch(tmp_path: Path, case: str) -> None:
    base, model = CASES[case]
    generator_checkpoint(tmp_path / "c", base, model=model)
    checkpoint = read_checkpoint(tmp_path / "c")
    encoder = encoder_of(checkpoint, "c", 0, CPU)
    images = ground_of(checkpoint, None, None, 1.0).test
    ours = [features_of(images, encoder, batch_size=n, cache_dir=tmp_path / str(n)) for n in (250, 31)]
    assert ours[0].shape == (297, model["width"])
    torch.testing.assert_close(ours[0], ours[1], atol=1e-5, rtol=1e-4)
    assert ours[0].std(0).min() > 0


@pytest.mark.parametrize("case", CASES)
def test_no_class_reaches_the_features(tmp_path: Path, case: str) -> None:
    base, model = CASES[case]
    generator_checkpoint(tmp_path / "c", base, model=model)
    encoder = encoder_of(read_checkpoint(tmp_path / "c"), "c", 0, CPU)
    image = torch.full((1, 1, 8, 8), 90, dtype=torch.uint8)
    before, network = encoder(image), encoder.module
    assert network is not None
    n_tables = 0
    for name, parameter in network.named_parameters():  # the rows of classes, not that of "no class"
        if name.startswith("labels."):
            parameter.data[:10] += 5
            n_tables += 1
        if name == "embedding.weight" and getattr(network, "n_prefix", 0):
            parameter.data[6:16] += 5
            n_tables += 1
    assert n_tables == (case != "mae")
    assert torch.equal(encoder(image), before)


def test_the_score_of_pixels_is_kept_and_a_damaged_one_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / "cache"))
    generator_checkpoint(tmp_path / "c")
    ground = ground_of(read_checkpoint(tmp_path / "c"), None, 60, 1.0)
    first = ground.probed("knn", PIXELS, Tuning())
    (file,) = (tmp_path / "cache").glob("baseline-*.json")
    whole = file.read_text()
    for damaged in (whole[:-5], "{}", '{"name": "x", "accuracy": 3, "facts": {}}', "[]", ""):
        file.write_text(damaged)
        assert ground.probed("knn", PIXELS, Tuning()) == first
        assert file.read_text() == whole
    monkeypatch.setitem(SETTINGS, "neighbours", (5, 0.07))
    ground.probed("knn", PIXELS, Tuning())
    assert len(list((tmp_path / "cache").glob("baseline-*.json"))) == 2


@pytest.mark.slow
def test_a_run_is_probed_and_the_report_says_how(command: Command, digits_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    code, out, error = command("probe", digits_run, "--num", 400, "--label-share", 0.5, "--output", file)
    assert code == 0, error
    tree = json.loads(file.read_text())
    entries = [tree["score"], *tree["others"]]
    assert [one["name"].split("[")[0] for one in entries] == ["linear_probe", "knn"] * 2
    assert [one["of"] for one in entries] == ["MaskGIT after the encoder, mean of tokens"] * 2 + ["raw pixels"] * 2
    for one in entries:
        assert (one["reference"], one["n_samples"]) == ("digits train images", 297)
        assert abs(one["n_reference"] - 200) < 6
        assert one["standard_error"] == pytest.approx((one["value"] * (1 - one["value"]) / 297) ** 0.5)
    assert entries[2]["value"] > 0.85  # digits are easy
    assert re.search(r"linear_probe\[mean,bn,lbfgs,0\.\d+ of labels\]", out)


@pytest.mark.slow
def test_fine_tuning_stands_beside_and_evaluate_knows_the_probe(
    command: Command, digits_run: Path, tmp_path: Path
) -> None:
    options = ("--method", "finetune", "--epochs", 1, "--num", 200, "--output", tmp_path / "f.json")
    code, _, error = command("probe", digits_run, *options)
    assert code == 0, error
    tree = json.loads((tmp_path / "f.json").read_text())
    assert tree["score"]["name"] == "finetune[mean,bn,adamw,1 epochs]"
    assert not tree["others"]
    code, out, error = command("evaluate", digits_run, "--metric", "probe")
    assert code == 0, error
    assert "knn[mean,cosine,k=20,T=0.07]" in out


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[tuple[object, ...], str]]:
    root = tmp_path_factory.mktemp("refused")
    generator_checkpoint(root / "ok")
    generator_checkpoint(root / "dit", FIELD)
    mdt = FIELD["model"] | {"masking": {"type": "mdt", "depth": 2}, "depth": 4}
    generator_checkpoint(root / "mdt", FIELD, model=mdt)
    bound = SMALL | {"condition": "token", "has_null_label": False}
    generator_checkpoint(root / "bound", model=bound, objective={"type": "masked_tokens", "label_dropout": 0.0})
    tokenizer_checkpoint(root / "fsq")
    text_checkpoint(root / "text")
    for side in ("train", "test"):
        (root / "bare" / side).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8)).save(root / "bare" / side / f"{index}.png")
            (root / "one" / side / "class").mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(root / "one" / side / "class" / f"{index}.png")
    return {
        "other images": ((root / "ok", "--data", "fashion_mnist"), "has images (1, 28, 28), the checkpoint takes"),
        "no such data": ((root / "ok", "--data", "nowhere"), "unknown data set 'nowhere'"),
        "no labels": ((root / "ok", "--data", root / "bare"), "have no labels"),
        "text data": ((root / "ok", "--data", "kjv"), "has no images"),
        "a tokenizer": ((root / "fsq",), "is a tokenizer; probe a generator"),
        "text": ((root / "text", "--method", "linear"), "is for images"),
        "an image": ((root / "ok", "--method", "retrieval"), "is for text generators"),
        "no features": ((root / "mdt",), "cannot be probed: the blocks of a MDTTrunk"),
        "no null label": ((root / "bound",), "its features depend on a class"),
        "a block of MaskGIT": ((root / "ok", "--block", 1), "--block 1 is of diffusion transformers"),
        "no such block": ((root / "dit", "--block", 9), "block must be in 1 to 1, or 0"),
        "a share of nothing": ((root / "ok", "--label-share", 0), "--label-share: the share of labels must be in"),
        "no minutes": ((root / "ok", "--method", "finetune", "--minutes", 0), "0.0 is not in the range x>0"),
        "one image": ((root / "ok", "--data", root / "one", "--label-share", 0.1), "leaves 1 training image"),
        "epochs of nothing": ((root / "ok", "--epochs", 2), "--epochs is of fine-tuning: add --method finetune"),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("other images", "no such data", "no labels", "text data", "a tokenizer", "text", "an image", "no features"),
        *("no null label", "a block of MaskGIT", "no such block", "a share of nothing", "epochs of nothing"),
        *("no minutes", "one image"),
    ],
)
def test_what_cannot_be_probed_is_one_message(
    command: Command, refused: dict[str, tuple[tuple[object, ...], str]], case: str
) -> None:
    arguments, message = refused[case]
    code, out, error = command("probe", *arguments)
    assert code == 2, (out, error)
    assert message in error
    assert "Traceback" not in error
    assert not out


def test_a_text_generator_is_probed_by_retrieval_and_inversion(command: Command, tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text(10 * POEM)
    text_checkpoint(tmp_path / "text")
    code, out, error = command("probe", tmp_path / "text", "--output", tmp_path / "r.json")
    assert code == 0, error
    tree = json.loads((tmp_path / "r.json").read_text())
    found = {(one["name"], one["of"]): one["value"] for one in [tree["score"], *tree["others"]]}
    assert [name for name, _ in found] == [
        *["retrieval_top1[infonce]", "retrieval_top1[cosine]"] * 2, "inversion_accuracy"
    ]  # fmt: skip
    assert all(0 <= value <= 1 for value in found.values())
    assert "inversion_accuracy" in out

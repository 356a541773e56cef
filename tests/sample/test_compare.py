"""`maskgen fid` and `maskgen statistics`: one number from any pair of sources, and never across protocols."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maskgen.core.pixels import to_uint8
from maskgen.core.rng import Rng

Command = Callable[..., tuple[int, str, str]]


class Pool(nn.Module):
    """(B, C, H, W) -> (B, 12): a coarse picture."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, (2, 2)).flatten(1)


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two networks of different weights."""
    root = tmp_path_factory.mktemp("judges")
    for name, gain in (("one", 1.0), ("two", 2.0)):
        network = nn.Sequential(Pool(), nn.Linear(12, 12))
        nn.init.eye_(network[1].weight)
        network[1].weight.data *= gain
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(network).save(str(root / f"{name}.pt"))
    return root / "one.pt", root / "two.pt"


@pytest.fixture(scope="session")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a` and `b` as folder, zip and npz."""
    root = tmp_path_factory.mktemp("sides")
    for name, gain in (("a", 1.0), ("b", 0.7)):
        images = to_uint8(gain * Rng.stream(name).uniform((40, 3, 6, 6)))
        arrays = images.permute(0, 2, 3, 1).numpy()
        np.savez(root / f"{name}.npz", arr_0=arrays)
        (root / name).mkdir()
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for index, image in enumerate(arrays):
                file = root / name / f"{index:02d}.png"
                Image.fromarray(image).save(file)
                archive.write(file, file.name)
    return root


def score(command: Command, *arguments: str | Path) -> float:
    report = Path(arguments[0]).parent / "found.json"
    code, out, error = command("fid", *arguments, "--output", report)
    assert code == 0, error
    assert "frechet_distance[one.pt]" in out
    return float(json.loads(report.read_text())["score"]["value"])


def test_folder_zip_npz_and_statistics_give_one_number(
    command: Command, judges: tuple[Path, Path], sides: Path, tmp_path: Path
) -> None:
    judge = ("--protocol", judges[0])
    wanted = score(command, sides / "a", sides / "b", *judge)
    assert wanted > 0.01
    assert score(command, sides / "a.zip", sides / "b.npz", *judge) == pytest.approx(wanted, rel=1e-9)
    for name in "ab":
        assert command("statistics", sides / name, tmp_path / f"{name}.npz", *judge)[0] == 0
    assert score(command, sides / "a", tmp_path / "b.npz", *judge) == pytest.approx(wanted, rel=1e-9)
    code, out, error = command("fid", tmp_path / "a.npz", tmp_path / "b.npz")  # no network is needed any more
    assert code == 0, error
    assert f"{wanted:.4f}" in out
    assert "frechet_distance[one.pt]" in out
    assert "FID" not in out


def test_every_score_carries_its_protocol_its_reference_and_its_floor(
    command: Command, judges: tuple[Path, Path], sides: Path, tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    code, out, error = command("fid", sides / "a", sides / "b.npz", "--protocol", judges[0], "--output", file)
    assert code == 0, error
    tree = json.loads(file.read_text())
    found = tree["score"]
    assert (found["protocol"], found["n_samples"], found["n_reference"]) == ("one.pt", 40, 40)
    assert (found["format"], found["reference"]) == ("png", str(sides / "b.npz"))
    assert all(len(found[key]) == 64 for key in ("weights", "reference_digest"))
    assert found["resize"].startswith("none")
    assert "torch" in found["versions"]
    floor = tree["others"][0]
    assert floor["of"] == f"halves of {sides / 'b.npz'} (floor)"
    assert (floor["n_samples"], floor["name"]) == (20, found["name"])
    assert "protocol: one.pt; resize: none" in out
    assert "(floor)" in out


def test_metrics_beside_the_distance(command: Command, judges: tuple[Path, Path], sides: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    metrics = [word for name in ("kid", "precision-recall", "fid-infinity") for word in ("--metric", name)]
    code, _, error = command("fid", sides / "a", sides / "b", "--protocol", judges[0], *metrics, "--output", file)
    assert code == 0, error
    names = [entry["name"].split("[")[0] for entry in json.loads(file.read_text())["others"]]
    assert names[1:] == ["KID", "KID", "precision", "recall", "density", "coverage", "frechet_distance"]


def test_a_foreign_statistics_file_is_taken_for_the_protocol_and_the_reader_is_told(
    command: Command, judges: tuple[Path, Path], sides: Path, tmp_path: Path
) -> None:
    assert command("statistics", sides / "b", tmp_path / "ours.npz", "--protocol", judges[0])[0] == 0
    with np.load(tmp_path / "ours.npz") as stored:
        np.savez(tmp_path / "theirs.npz", mu=stored["mu"], sigma=stored["sigma"])
    wanted = score(command, sides / "a", sides / "b", "--protocol", judges[0])
    assert score(command, sides / "a", tmp_path / "theirs.npz", "--protocol", judges[0]) == pytest.approx(wanted)
    out = command("fid", sides / "a", tmp_path / "theirs.npz", "--protocol", judges[0])[1]
    assert "does not name its protocol or size; taken to be of one.pt" in out
    assert "n = ?" in out


def refused(sides: Path, judges: tuple[Path, Path], folder: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    one = ("--protocol", judges[0])
    a, b = sides / "a", sides / "b"
    return {
        "two protocols": ((folder / "one.npz", folder / "two.npz"), "do not compare: protocol one.pt and two.pt"),
        "another protocol's statistics": ((a, folder / "two.npz", *one), "do not compare"),
        "statistics that do not say": ((folder / "bare.npz", folder / "bare.npz"), "give --protocol"),
        "statistics and images that do not say": ((a, folder / "bare.npz"), "give --protocol"),
        "ADM's statistics by another protocol": ((a, folder / "adm.npz", *one), "give --protocol adm"),
        "ADM's statistics unsaid": ((folder / "one.npz", folder / "adm.npz"), "give --protocol adm"),
        "a protocol that neither file is of": (
            (folder / "one.npz", folder / "one.npz", "--protocol", judges[1]), "is of one.pt, so they do not compare"
        ),
        "one image": ((folder / "single", b, *one), "holds 1 image"),
        "no image": ((folder / "empty", b, *one), "holds no image"),
        "a damaged image": ((folder / "bad", b, *one), "bad.png is not a readable image"),
        "mixed sizes": ((folder / "mixed", b, *one), "9.png is 8 x 8, earlier images are 6 x 6"),
        "features of statistics": ((a, folder / "one.npz", *one, "--metric", "kid"), "needs the images"),
        "classes of none": ((a, b, *one, "--metric", "inception-score"), "has no classes"),
        "spatial features of none": ((a, b, *one, "--metric", "sfid"), "only protocol adm has spatial features"),
        "an unknown protocol": ((a, b, "--protocol", "fidd"), "choose from adm, clean-fid"),
        "a protocol that is no judge": ((a, b, "--protocol", "fashion-vq"), "is a tokenizer"),
        "images of another shape": ((a, b, "--protocol", "fashion-classifier"), "network takes grey ones"),
        "weights of a checkpoint": ((a, b, "--protocol", "fashion-classifier", "--weights", a), "has its own"),
        "no weights": ((a, b), "inception-2015-12-05.pt are not here"),
        "no weights of adm": ((a, b, "--protocol", "adm"), "weights-inception-2015-12-05-6726825d.pth are not here"),
        "nothing there": ((folder / "nowhere", b, *one), "no folder, .zip, .npz or DATASET:SPLIT"),
        "text": (("kjv-md4", b, *one), "kjv-md4"),
        "an output of another kind": ((a, b, *one, "--output", folder / "r.txt"), ".json"),
    }  # fmt: skip


CASES = list(refused(Path(), (Path(), Path()), Path()))


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory, sides: Path, judges: tuple[Path, Path]) -> Path:
    """Things that cannot be scored."""
    from maskgen.sample import compare

    root = tmp_path_factory.mktemp("odd")
    for name, judge in zip(("one", "two"), judges, strict=True):
        compare.statistics(str(sides / "a"), str(root / f"{name}.npz"), str(judge), None)
    np.savez(root / "bare.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(root / "adm.npz", mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(3), sigma_s=np.eye(3))
    for name in ("single", "bad", "mixed", "empty"):
        (root / name).mkdir()
    picture = Image.new("RGB", (6, 6))
    picture.save(root / "single" / "0.png")
    for name in ("bad", "mixed"):
        for index in range(3):
            picture.save(root / name / f"{index}.png")
    (root / "bad" / "bad.png").write_bytes((root / "bad" / "0.png").read_bytes()[:40])
    Image.new("RGB", (8, 8)).save(root / "mixed" / "9.png")
    return root


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_compare_is_one_message_and_no_number(
    command: Command, judges: tuple[Path, Path], sides: Path, odd: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(odd / "torch"))
    monkeypatch.delenv("MASKGEN_WEIGHTS", raising=False)
    arguments, message = refused(sides, judges, odd)[case]
    code, out, error = command("fid", *arguments)
    assert code == 2, (out, error)
    assert not out
    answer = error[error.index("Error: ") :]
    assert message in answer
    assert len(answer.strip().splitlines()) <= 2
    assert "Traceback" not in error


def test_a_checkpoint_is_sampled_and_a_data_set_is_read(
    command: Command, digits_run: Path, digits_judge: Path, tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    options = ("--protocol", digits_judge, "--num", 30, "--seed", 5, "--output", file)
    code, _, error = command("fid", digits_run, "digits:test", *options)
    assert code == 0, error
    found = json.loads(file.read_text())["score"]
    assert (found["n_samples"], found["n_reference"], found["seed"]) == (30, 297, 5)
    assert found["sampler"]["checkpoint"] == str(digits_run)
    assert "steps" in found["sampler"]


def test_our_file_and_a_foreign_one_compare_if_the_protocol_is_said(
    command: Command, judges: tuple[Path, Path], sides: Path, tmp_path: Path
) -> None:
    for name in "ab":
        assert command("statistics", sides / name, tmp_path / f"{name}.npz", "--protocol", judges[0])[0] == 0
    with np.load(tmp_path / "b.npz") as stored:
        np.savez(tmp_path / "theirs.npz", mu=stored["mu"], sigma=stored["sigma"])
    values, digests = [], []
    for other in ("b.npz", "theirs.npz"):
        report = tmp_path / "r.json"
        protocol = ("--protocol", judges[0])
        code, _, error = command("fid", tmp_path / "a.npz", tmp_path / other, *protocol, "--output", report)
        assert code == 0, error
        found = json.loads(report.read_text())["score"]
        values.append(found["value"])
        digests.append(found["reference_digest"])
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    assert [len(one) for one in digests] == [64, 64]
    code, _, error = command("fid", tmp_path / "a.npz", tmp_path / "theirs.npz")
    assert code == 2
    assert "give --protocol" in error


def test_a_folder_without_images_is_said_before_any_weights_are_looked_for(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, error = command("statistics", tmp_path / "empty", tmp_path / "s.npz", "--weights", tmp_path / "none.pt")
    assert code == 2
    assert "holds no image" in error


def test_a_classifier_does_not_go_by_the_name_of_a_protocol(
    command: Command, digits_judge: Path, sides: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits_judge, tmp_path / "adm")
    code, _, error = command("fid", sides / "a", sides / "b", "--protocol", tmp_path / "adm")
    assert code == 2
    assert "would be reported under the name of the protocol adm; rename the folder" in error

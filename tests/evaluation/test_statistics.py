"""Moments do not depend on batches, come back from files as they were, and nothing that is wrong is counted."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.pixels import to_float, to_uint8
from maskgen.core.predictions import NULL
from maskgen.core.rng import Rng
from maskgen.data.image.opening import open_images
from maskgen.data.image.sets import ArraySet
from maskgen.evaluation.metrics import statistics, stored
from maskgen.evaluation.metrics.frechet import Moments, frechet_distance
from maskgen.evaluation.metrics.statistics import Collector, Statistics, collect
from maskgen.evaluation.metrics.stored import cached, read_statistics, write_statistics
from maskgen.evaluation.protocols.features import Extractor, Features


def corners(images: Tensor) -> Features:
    """Four pixels; the brightest of the first three is the class; six more are spatial. 17 is not a number."""
    pool = to_float(images[:, 0, :2, :2].flatten(1))
    pool = torch.where(images[:, 0, :2, :2].flatten(1) == 17, math.nan, pool)
    return Features(pool, pool[:, :3], to_float(images[:, 0, 2:4, :3].flatten(1)))


def extractor(protocol: str = "corners", mixes_sizes: bool = False) -> Extractor:
    return Extractor(protocol, "none", "0", corners, 1, mixes_sizes=mixes_sizes, n_classes=3)


def images(key: str, n: int) -> Tensor:
    found = to_uint8(Rng.stream(key).uniform((n, 1, 4, 4)))
    return torch.where(found == 17, 18, found)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_statistics_do_not_depend_on_the_batches(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collect(ArraySet(images("a", 53)), extractor(), keeps=True)
    monkeypatch.setattr(statistics, "BATCH", size)
    found = collect(ArraySet(images("a", 53)), extractor(), keeps=True)
    assert found.n == 53
    for one, other in ((found.moments, whole.moments), (found.spatial, whole.spatial)):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.mean, other.mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(one.cov, other.cov, rtol=0, atol=1e-14)
    assert torch.equal(found.features, whole.features)  # type: ignore[arg-type]
    assert found.floor == pytest.approx(whole.floor, rel=1e-9)


def test_the_floor_is_the_distance_of_images_in_even_places_to_the_others() -> None:
    x = images("a", 40)
    even, odd = (collect(ArraySet(x[part::2]), extractor()).moments for part in (0, 1))
    assert collect(ArraySet(x), extractor()).floor == pytest.approx((frechet_distance(even, odd), 20))


def test_features_are_held_only_when_they_are_asked_for() -> None:
    assert collect(ArraySet(images("a", 9)), extractor()).features is None


def test_accuracy_is_the_share_of_labelled_images_that_show_their_label() -> None:
    x = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    x[[0, 1, 2], 0, 0, 0] = 255  # class 0
    x[[3, 4], 0, 0, 1] = 255  # class 1
    collector = Collector(extractor())
    collector.update(x, torch.tensor([0, 0, 1, 1, NULL]))
    found = collector.result("x")
    assert found.accuracy == 3 / 4
    assert (found.n_labelled.tolist(), found.n_right.tolist()) == ([2, 2, 0], [2, 1, 0])
    with pytest.raises(ValueError, match=r"in \[0, 3\), got 0 to 3"):
        collector.update(x, torch.tensor([0, 3, 0, 0, 0]))
    with pytest.raises(ValueError, match="need as many labels"):
        collector.update(x, torch.tensor([0, 1]))


def test_a_file_gives_back_what_was_written_and_other_tools_read_it(tmp_path: Path) -> None:
    found = collect(ArraySet(images("a", 30), "set"), extractor(), keeps=True)
    write_statistics(tmp_path / "s.npz", found)
    again = read_statistics(tmp_path / "s.npz")
    assert (again.name, again.identity, again.n, again.digest) == (
        str(tmp_path / "s.npz"),
        found.identity,
        30,
        found.digest,
    )
    assert again.floor == found.floor
    torch.testing.assert_close(again.moments.cov, found.moments.cov, rtol=1e-14, atol=0)
    torch.testing.assert_close(again.spatial.cov, found.spatial.cov, rtol=1e-14, atol=0)  # type: ignore[union-attr]
    assert torch.equal(again.features, found.features)  # type: ignore[arg-type]
    with np.load(tmp_path / "s.npz") as stored:
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(stored.files)
        assert np.allclose(stored["sigma"], np.cov(found.features, rowvar=False))


def test_a_foreign_file_needs_to_be_told_its_protocol(tmp_path: Path) -> None:
    x = Rng.stream("x").normal((50, 4)).double().numpy()
    np.savez(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    with pytest.raises(UserError, match="does not name its protocol; give --protocol"):
        read_statistics(tmp_path / "theirs.npz")
    found = read_statistics(tmp_path / "theirs.npz", {"protocol": "adm"})
    assert found.n is None
    assert np.allclose(found.moments.cov.numpy(), np.cov(x, rowvar=False))


def test_a_foreign_file_of_few_images_is_as_far_away_as_our_own(tmp_path: Path) -> None:
    x, y = (Rng.stream(key).normal((n, 40)).double() for key, n in (("x", 9), ("y", 300)))
    np.savez(tmp_path / "theirs.npz", mu=x.mean(0).numpy(), sigma=np.cov(x.numpy(), rowvar=False))
    write_statistics(tmp_path / "ours.npz", Statistics("x", {"protocol": "adm"}, Moments.of(x), n=9))
    theirs, ours = (read_statistics(tmp_path / f"{name}.npz", {"protocol": "adm"}) for name in ("theirs", "ours"))
    wanted = frechet_distance(Moments.of(y), ours.moments)
    assert frechet_distance(Moments.of(y), theirs.moments) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(ValueError, match="unknown number of samples"):
        theirs.moments.merge(ours.moments)


def test_images_seen_before_are_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path))
    looks = 0

    def counting(x: Tensor) -> Features:
        nonlocal looks
        looks += 1
        return corners(x)

    def judge(weights: str) -> Extractor:
        return Extractor("corners", "none", weights, counting, 1, n_classes=3)

    first = cached(ArraySet(images("a", 20)), judge("0"))
    again = cached(ArraySet(images("a", 20)), judge("0"))
    assert looks == 1
    torch.testing.assert_close(again.moments.cov, first.moments.cov, rtol=1e-14, atol=0)
    altered = images("a", 20)
    altered[3, 0, 3, 3] ^= 1
    cached(ArraySet(altered), judge("0"))
    cached(ArraySet(images("a", 20)), judge("1"))
    assert looks == 3
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert cached(ArraySet(images("a", 20)), judge("0")).n == 20
    assert looks == 4, "a damaged file is made again"


def test_another_version_of_what_decodes_or_computes_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path))
    for version in ("1", "2", "2"):
        monkeypatch.setattr(stored, "packages", lambda version=version: {"pillow": version})
        cached(ArraySet(images("a", 20)), extractor())
    assert len(list(tmp_path.iterdir())) == 2


def test_two_cached_files_that_were_exchanged_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path))
    sets = [ArraySet(images(key, 20)) for key in ("a", "b")]
    means = [cached(one, extractor()).moments.mean for one in sets]
    one, other = sorted(tmp_path.glob("statistics-*.npz"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    for images_, mean in zip(sets, means, strict=True):
        assert torch.equal(cached(images_, extractor()).moments.mean, mean)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b" " * (118 - len(header) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def test_a_hostile_file_is_one_message_and_allocates_nothing(tmp_path: Path) -> None:
    def header(shape: str, kind: str = "<f8") -> str:
        return "{'descr': '%s', 'fortran_order': False, 'shape': %s, }" % (kind, shape)  # noqa: UP031

    cases = {
        "negative": npy(header("(-1,)"), bytes(8)), "zero": npy(header("(0,)")), "scalar": npy(header("()"), bytes(8)),
        "huge": npy(header("(2000000, 2000000)"), bytes(8)), "text": npy(header("(2,)", "<U4"), bytes(32)),
        "object": npy(header("(1,)", "|O"), bytes(8)), "cut": npy(header("(4,)"), bytes(8)), "no header": b"\x93NUMPY",
        "no type": npy("{'shape': (1,)}"), "nested": npy("(" * 90), "empty": b"",
    }  # fmt: skip
    sigma = npy(header("(1, 1)"), bytes(8))
    for name, member in cases.items():
        file = tmp_path / f"{name}.npz"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("mu.npy", member)
            archive.writestr("sigma.npy", sigma)
        with pytest.raises(UserError, match=f"{name}.npz") as caught:
            read_statistics(file, {"protocol": "p"})
        assert "\n" not in str(caught.value), name


def test_an_image_with_features_that_are_not_numbers_is_named(tmp_path: Path) -> None:
    x = images("a", 5)
    x[3, 0, 0, 1] = 17
    for index, image in enumerate(x):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{index}.png")
    with pytest.raises(UserError, match=r"3\.png: .*NaN or infinite \(1 of 5 images"):
        collect(open_images(str(tmp_path)), extractor())


def mixed(tmp_path: Path) -> Path:
    for index, side in enumerate([4, 4, 6, 4, 4]):
        Image.fromarray(np.full((side, side), index * 20, np.uint8)).save(tmp_path / f"{index}.png")
    return tmp_path


def test_images_of_mixed_size_are_refused_by_name_unless_each_is_resized_by_itself(tmp_path: Path) -> None:
    folder = mixed(tmp_path)
    with pytest.raises(UserError, match=r"2\.png is 6 x 6, earlier images are 4 x 4"):
        collect(open_images(str(folder)), extractor())
    assert collect(open_images(str(folder)), extractor(mixes_sizes=True)).n == 5


def test_one_image_has_no_distance() -> None:
    with pytest.raises(UserError, match="holds 1 image; a distance needs at least 2"):
        collect(ArraySet(images("a", 1), "lonely"), extractor())


@pytest.mark.parametrize("damage", ["cut", "nan", "keys", "json"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "s.npz"
    write_statistics(file, collect(ArraySet(images("a", 20)), extractor()))
    with np.load(file) as stored:
        arrays = dict(stored)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:200])
    else:
        arrays |= {"nan": {"mu": arrays["mu"] * np.nan}, "json": {"maskgen": np.array("{")}}.get(damage, {})
        if damage == "keys":
            del arrays["sigma"]
        np.savez(file, **arrays)
    with pytest.raises(UserError, match=r"s\.npz is (no statistics file or )?damaged"):
        read_statistics(file)


def test_facts_are_plain_json(tmp_path: Path) -> None:
    write_statistics(tmp_path / "s.npz", collect(ArraySet(images("a", 20)), extractor()))
    with np.load(tmp_path / "s.npz", allow_pickle=False) as stored:
        assert json.loads(str(stored["maskgen"]))["identity"]["protocol"] == "corners"

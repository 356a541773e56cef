"""Every protocol runs offline on Inceptions with random weights, and gives what its own package gives.

Weights are random, so the numbers mean nothing; that they are equal does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.data.image.opening import open_images
from maskgen.evaluation.metrics.frechet import Moments, frechet_distance
from maskgen.evaluation.metrics.statistics import Statistics, collect
from maskgen.evaluation.protocols import protocol as protocols
from maskgen.evaluation.protocols.adm import tf1_bilinear
from maskgen.evaluation.protocols.published import TorchFidelity
from maskgen.evaluation.protocols.weight_files import INCEPTION, WeightsError
from tests import inception

CPU = torch.device("cpu")
N, FEW = 2, 64


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inception")
    inception.write(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of smooth pictures, 48 x 40."""
    root = tmp_path_factory.mktemp("pictures")
    for name, gain in (("a", 60.0), ("b", 90.0)):
        (root / name).mkdir()
        for index, noise in enumerate(Rng.stream(name).normal((N, 5, 6, 3))):
            small = (128 + gain * noise).clamp(0, 255).to(torch.uint8)
            Image.fromarray(small.numpy()).resize((40, 48), Image.Resampling.BICUBIC).save(root / name / f"{index}.png")
    return root / "a", root / "b"


def ours(name: str, weights: Path, folders: tuple[Path, Path]) -> tuple[Statistics, Statistics]:
    extractor = protocols.build(name, str(weights), CPU)
    assert protocols.score_name(extractor.protocol) == f"FID[{name}]"
    assert "not the published Inception" in extractor.notes[0]
    a, b = (collect(open_images(str(folder)), extractor, keeps=True) for folder in folders)
    return a, b


def narrow_distance(a: Statistics, b: Statistics) -> float:
    """The distance by the first features only: packages take ten seconds for the root of a matrix of all."""
    assert a.features is not None
    assert b.features is not None
    return frechet_distance(*(Moments.of(found[:, :FEW]) for found in (a.features, b.features)))


class Narrow(nn.Module):
    """An Inception with its first features only."""

    num_features = FEW

    def __init__(self, inception: nn.Module) -> None:
        super().__init__()
        self.inception = inception

    def forward(self, images: Tensor) -> Tensor:
        return self.inception(images)[:, :FEW]


def pixels(folder: Path) -> Tensor:
    images = open_images(str(folder))
    return torch.stack(images.read(range(len(images))))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow", "legacy_pytorch"])
def test_clean_fid_gives_its_own_number(
    mode: str, weights: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W

    a, b = ours("clean-fid" if mode == "clean" else f"clean-fid-{mode.replace('_', '-')}", weights, folders)
    if mode == "legacy_pytorch":
        monkeypatch.setattr(
            "cleanfid.inception_pytorch.load_state_dict_from_url",
            lambda *_, **__: torch.load(weights / INCEPTION.names[0], weights_only=True),
        )
        network = fid.build_feature_extractor(mode, CPU, use_dataparallel=False)
    else:
        network = InceptionV3W(str(weights), download=False, resize_inside=mode == "legacy_tensorflow").eval()
    features = [
        fid.get_folder_features(str(folder), model=network, mode=mode, num_workers=0, device=CPU, verbose=False)
        for folder in folders
    ]
    for one, theirs in zip((a, b), features, strict=True):
        assert one.features is not None
        assert np.allclose(one.features.numpy(), theirs, rtol=1e-4, atol=1e-6)
    if mode != "clean":  # the distance is one and the same
        return
    try:
        theirs = fid.fid_from_feats(*(found[:, :FEW] for found in features))
    except TypeError:
        pytest.skip("this clean-fid does not run with this scipy")
    assert narrow_distance(a, b) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_torch_fidelity_gives_its_own_number(weights: Path, folders: tuple[Path, Path]) -> None:
    torch_fidelity = pytest.importorskip("torch_fidelity")
    a, b = ours("torch-fidelity", weights, folders)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), fid=True, isc=True, isc_splits=1, cuda=False, cache=False,
        save_cpu_ram=True, verbose=False, feature_extractor_weights_path=str(weights / INCEPTION.names[0]),
    )  # fmt: skip
    wanted = theirs["frechet_inception_distance"]
    assert frechet_distance(a.moments, b.moments) == pytest.approx(wanted, rel=1e-4)
    from maskgen.evaluation.metrics.fidelity import inception_score

    assert a.logits is not None
    assert inception_score(a.logits, N)[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("antialias", [False, True])
def test_torchmetrics_gives_its_own_number(antialias: bool, weights: Path, folders: tuple[Path, Path]) -> None:
    pytest.importorskip("torch_fidelity")
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = ours("torchmetrics-antialias" if antialias else "torchmetrics", weights, folders)
    file = str(weights / INCEPTION.names[0])
    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=file, antialias=antialias)
    if antialias:  # the distance is one and the same
        torch.testing.assert_close(a.features, metric.inception(pixels(folders[0])), rtol=1e-4, atol=1e-6)
        return
    metric = FrechetInceptionDistance(Narrow(metric.inception))
    metric.update(pixels(folders[0]), real=False)
    metric.update(pixels(folders[1]), real=True)
    assert narrow_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_adm_sees_what_torch_fidelity_sees_and_its_spatial_features_beside(
    weights: Path, folders: tuple[Path, Path]
) -> None:
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = protocols.build("adm", str(weights), CPU)
    images = pixels(folders[0])
    found = extractor(images)
    file = str(weights / INCEPTION.names[0])
    network = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=file)
    caught: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: caught.append(call[2]))
    pool, logits = network(images)
    torch.testing.assert_close(found.pool, pool, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-6)
    assert found.spatial is not None
    assert found.spatial.shape == (N, 2023)
    nhwc = caught[0][:, :7].numpy().transpose(0, 2, 3, 1).reshape(N, -1)
    assert np.allclose(found.spatial.numpy(), nhwc, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(28, 28), (48, 40), (299, 299), (400, 310)])
def test_the_resizing_of_tensorflow_1_is_torch_fidelitys(size: tuple[int, int]) -> None:
    theirs = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    x = Rng.stream("x").uniform((2, 3, *size)).float() * 255
    wanted = theirs.interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    torch.testing.assert_close(tf1_bilinear(x, 299), wanted, rtol=0, atol=2e-3)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    for name in ("adm", "clean-fid-legacy-pytorch", "torch-fidelity"):
        with pytest.raises(WeightsError, match=r"a\.pth is not of the Inception"):
            protocols.build(name, str(tmp_path / "a.pth"), CPU)
    with pytest.raises(WeightsError, match=r"a\.pth is no TorchScript Inception"):
        protocols.build("clean-fid", str(tmp_path / "a.pth"), CPU)


def test_tensors_that_a_package_cannot_read_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    for name in ("torch-fidelity", "torchmetrics"):
        with pytest.raises(WeightsError, match=r"read no \.safetensors; give the \.pth file"):
            protocols.build(name, str(tmp_path / "a.safetensors"), CPU)


def test_a_package_that_is_not_there_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchFidelity, "packages", ("no-such-package",))
    with pytest.raises(UserError, match=r"no-such-package: pip install 'maskgen\[fidelity\]'"):
        protocols.build("torch-fidelity", None, CPU)

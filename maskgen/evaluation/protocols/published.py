"""The published protocols of FID, each through the package that defines it: decoding, resizing, network."""

from __future__ import annotations

import inspect
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

from maskgen.core.errors import UserError, first_line
from maskgen.evaluation.protocols.adm import AdmInception
from maskgen.evaluation.protocols.features import Extractor, Features
from maskgen.evaluation.protocols.protocol import PROTOCOLS, Protocol
from maskgen.evaluation.protocols.weight_files import (
    INCEPTION,
    INCEPTION_SCRIPT,
    WeightsError,
    WeightsFile,
    read_tensors,
    sha256_of,
)

Network = Callable[[Tensor], Features]


def clean_fid(mode: str, file: Path, device: torch.device) -> Network:
    """clean-fid's own resizer and network (Parmar et al., arXiv 2104.11222); images (B, 3, H, W) uint8."""
    from cleanfid.resize import build_resizer

    if mode == "legacy_pytorch":
        blocks = _loading(file, lambda: import_module("cleanfid.inception_pytorch").InceptionV3(resize_input=False))
        blocks = blocks.to(device).eval()

        def network(x: Tensor) -> Tensor:
            found: Tensor = blocks(x / 255)[0].flatten(1)
            return found
    else:
        network = _script(file, mode == "legacy_tensorflow").to(device).eval()
    resize = build_resizer(mode)

    def features(images: Tensor) -> Features:
        resized = [torch.as_tensor(resize(image.permute(1, 2, 0).numpy())) for image in images.cpu()]
        return Features(network(torch.stack(resized).permute(0, 3, 1, 2).float().to(device)))

    return features


def _script(file: Path, resizes: bool) -> nn.Module:
    """clean-fid's wrapper of a TorchScript file, which it finds under its own name in a folder."""
    from cleanfid.inception_torchscript import InceptionV3W

    try:
        with TemporaryDirectory() as folder, _quiet():
            (Path(folder) / INCEPTION_SCRIPT.names[0]).symlink_to(file.resolve())
            network: nn.Module = InceptionV3W(folder, download=False, resize_inside=resizes)
            return network
    except (RuntimeError, OSError, AttributeError) as error:
        raise WeightsError(f"{file} is no TorchScript Inception: {first_line(error)}") from None


def torch_fidelity(file: Path, device: torch.device) -> Network:
    """torch-fidelity's own network, which resizes as TensorFlow 1 did."""
    module = _required("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
    _require_loadable(file)
    names = ["2048", "logits_unbiased"]
    network = _state_of(
        file,
        lambda: module.FeatureExtractorInceptionV3(
            "inception-v3-compat", names, feature_extractor_weights_path=str(file)
        ),
    ).to(device)
    return lambda images: Features(*network(images.to(device)))


def torchmetrics(file: Path, device: torch.device, antialias: bool) -> Network:
    """torchmetrics' own network, resizing as it does with and without its `antialias`."""
    _required("torch_fidelity", "torch-fidelity")
    _require_loadable(file)
    kind = import_module("torchmetrics.image.fid").NoTrainInceptionV3
    options = {"antialias": antialias} if "antialias" in inspect.signature(kind.__init__).parameters else {}
    if antialias and not options:
        raise UserError(f"torchmetrics {version('torchmetrics')} has no antialiasing; take --protocol torchmetrics")
    names = ["2048", "logits_unbiased"]
    network = _state_of(
        file, lambda: kind("inception-v3-compat", names, feature_extractor_weights_path=str(file), **options)
    ).to(device)
    return lambda images: Features(*network._torch_fidelity_forward(images.to(device)))


def adm(file: Path, device: torch.device) -> Network:
    """The evaluator of ADM (arXiv 2105.05233) without TensorFlow; sFID's features are `spatial`."""
    network = AdmInception(_loading(file, import_module("cleanfid.inception_pytorch").fid_inception_v3))
    return network.to(device).eval()


TF1 = "bilinear of TensorFlow 1, no antialiasing"


class InceptionProtocol(Protocol):
    """The 2015 Inception behind one way of resizing.

    Attributes:
        file: weights it needs.
        resize: for reports.
        packages: that do the work.
        mixes_sizes: whether every image is resized by itself.
    """

    is_inception = True
    file: ClassVar[WeightsFile] = INCEPTION
    resize: ClassVar[str] = TF1
    packages: ClassVar[tuple[str, ...]] = ()
    mixes_sizes: ClassVar[bool] = False
    name: ClassVar[str]

    @abstractmethod
    def network(self, file: Path, device: torch.device) -> Network:
        """Images (B, 3, H, W) uint8 -> Features."""

    def extractor(self, weights: str | None, device: torch.device, batch_size: int = 64) -> Extractor:
        versions = {package: _version(package) for package in self.packages}
        file = self.file.find(weights)
        network, digest = self.network(file, device), sha256_of(file)
        is_published = self.file.is_published(digest)
        notes = () if is_published else (f"{file} is not the published Inception: not comparable with FIDs",)
        return Extractor(
            self.name, self.resize, digest, network, mixes_sizes=self.mixes_sizes, batch_size=batch_size,
            versions=versions, notes=notes,
        )  # fmt: skip


@PROTOCOLS.register("clean-fid")
class CleanFid(InceptionProtocol):
    """clean-fid with its antialiased bicubic resizing (the default of `maskgen fid`)."""

    name, file, packages = "clean-fid", INCEPTION_SCRIPT, ("clean-fid",)
    resize, mixes_sizes = "PIL bicubic, antialiased, not rounded", True

    def network(self, file: Path, device: torch.device) -> Network:
        return clean_fid("clean", file, device)


@PROTOCOLS.register("clean-fid-legacy-pytorch")
class CleanFidLegacyPytorch(InceptionProtocol):
    """clean-fid's mode that resizes as pytorch-fid does."""

    name, packages = "clean-fid-legacy-pytorch", ("clean-fid",)
    resize, mixes_sizes = "PyTorch bilinear, no antialiasing", True

    def network(self, file: Path, device: torch.device) -> Network:
        return clean_fid("legacy_pytorch", file, device)


@PROTOCOLS.register("clean-fid-legacy-tensorflow")
class CleanFidLegacyTensorflow(InceptionProtocol):
    """clean-fid's mode that resizes as the original TensorFlow code does."""

    name, file, packages = "clean-fid-legacy-tensorflow", INCEPTION_SCRIPT, ("clean-fid",)

    def network(self, file: Path, device: torch.device) -> Network:
        return clean_fid("legacy_tensorflow", file, device)


@PROTOCOLS.register("torch-fidelity")
class TorchFidelity(InceptionProtocol):
    """The package torch-fidelity."""

    name, packages = "torch-fidelity", ("torch-fidelity",)

    def network(self, file: Path, device: torch.device) -> Network:
        return torch_fidelity(file, device)


@PROTOCOLS.register("torchmetrics")
class Torchmetrics(InceptionProtocol):
    """The package torchmetrics."""

    name, packages = "torchmetrics", ("torchmetrics", "torch-fidelity")

    def network(self, file: Path, device: torch.device) -> Network:
        return torchmetrics(file, device, False)


@PROTOCOLS.register("torchmetrics-antialias")
class TorchmetricsAntialias(InceptionProtocol):
    """The package torchmetrics with its antialiased resizing."""

    name, packages = "torchmetrics-antialias", ("torchmetrics", "torch-fidelity")
    resize = "PyTorch bilinear, antialiased"

    def network(self, file: Path, device: torch.device) -> Network:
        return torchmetrics(file, device, True)


@PROTOCOLS.register("adm")
class Adm(InceptionProtocol):
    """The evaluator of ADM (guided-diffusion), with sFID, Inception score, precision and recall."""

    name = "adm"

    def network(self, file: Path, device: torch.device) -> Network:
        return adm(file, device)


def _require_loadable(file: Path) -> None:
    """torch-fidelity unpickles whatever a file holds, so it is read without running code first."""
    if file.suffix == ".safetensors":
        raise WeightsError(
            f"{file}: torch-fidelity and torchmetrics read no .safetensors; give the .pth file, or write it with "
            "torch.save(safetensors.torch.load_file(FILE), 'FILE.pth')"
        )
    read_tensors(file)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise UserError(f"this protocol needs the package {package}: pip install 'maskgen[fidelity]'") from None


def _required(module: str, package: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f"this protocol needs the package {package}: pip install 'maskgen[fidelity]'") from None


def _loading(file: Path, make: Callable[[], nn.Module]) -> nn.Module:
    """A network of clean-fid with our file's tensors where it would fetch its own."""
    state = read_tensors(file)
    with patch("cleanfid.inception_pytorch.load_state_dict_from_url", lambda *_, **__: state), _quiet():
        network: nn.Module = _state_of(file, make)
        return network


def _state_of(file: Path, make: Callable[[], nn.Module]) -> Any:
    try:
        return make()
    except RuntimeError as error:
        raise WeightsError(f"{file} is not of the Inception of FID: {first_line(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the packages' prints and warnings."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield

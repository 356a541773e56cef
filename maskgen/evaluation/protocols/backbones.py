"""Any other network as an extractor: a TorchScript file, timm and torchvision models by name, DINOv2 of the hub."""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import local_path
from maskgen.core.hub import download, is_hub_id
from maskgen.core.pixels import to_float
from maskgen.evaluation.protocols.features import Extractor, Features
from maskgen.evaluation.protocols.protocol import PROTOCOLS, Protocol
from maskgen.evaluation.protocols.weight_files import WeightsError, read_tensors, sha256_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Backbone(Protocol):
    """A network of another library, chosen by a model name.

    Attributes:
        model: the library's name of the model.
        prefix: name of the protocol.
    """

    model: str
    prefix: ClassVar[str]

    @abstractmethod
    def make(self, weights: str | None, device: torch.device) -> _Made:
        """Network, how it resizes, versions, channels."""

    def extractor(self, weights: str | None, device: torch.device, batch_size: int = 64) -> Extractor:
        network, resize, versions, channels = self.make(weights, device)
        digest, label = _digest(network.module), f"{self.prefix}:{self.model}"
        return Extractor(label, resize, digest, network, channels, batch_size=batch_size, versions=versions)


class _Head:
    """A network up to its last linear layer: images (B, C, H, W) uint8 -> pool (B, D), logits (B, K).

    Args:
        module: gives logits, or features if it has no linear layer to stop before.
        prepare: uint8 images -> what the module takes.
    """

    def __init__(self, module: nn.Module, prepare: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.module, self.prepare, self.device = module.to(device).eval(), prepare, device
        self._caught: list[Tensor] = []
        linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise UserError(f"{type(module).__name__} has no linear layer whose input could be the features")
        linear[-1].register_forward_pre_hook(lambda _, inputs: self._caught.append(inputs[0]))

    def __call__(self, images: Tensor) -> Features:
        self._caught.clear()
        logits = self.module(self.prepare(images.to(self.device)))
        return Features(self._caught[-1].flatten(1), logits)


class _Whole:
    """A network whose answer is the features."""

    def __init__(self, module: nn.Module, prepare: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.module, self.prepare, self.device = module.to(device).eval(), prepare, device

    def __call__(self, images: Tensor) -> Features:
        found = self.module(self.prepare(images.to(self.device)))
        found = getattr(found, "pooler_output", found)
        if not isinstance(found, Tensor) or len(found) != len(images):
            raise UserError(f"the network gave {type(found).__name__}, not a tensor (B, ...) of features")
        return Features(found.flatten(1))


_Made = tuple[_Head | _Whole, str, dict[str, str], int | None]
"""Network, how it resizes, versions, channels."""


@PROTOCOLS.register("timm")
@dataclass(frozen=True)
class Timm(Backbone):
    """A model of timm by its name, pooled features."""

    model: str
    prefix = "timm"

    def make(self, weights: str | None, device: torch.device) -> _Made:
        name = self.model
        timm = _package("timm")
        if name not in timm.list_models() and not timm.list_models(name.partition(".")[0]):
            raise UserError(f"timm has no model {name!r}; timm.list_models() has the names")
        module = _fetched(f"timm:{name}", lambda: timm.create_model(name, pretrained=weights is None, num_classes=0))
        if weights is not None:
            _load(module, weights, strict=False)
        config = timm.data.resolve_model_data_config(module)
        size = config["input_size"][-1]
        prepare = _resizer(size, config["mean"], config["std"])
        return _Whole(module, prepare, device), _describe(size), {"timm": timm.__version__}, 3


@PROTOCOLS.register("torchvision")
@dataclass(frozen=True)
class Torchvision(Backbone):
    """A classifier of torchvision by its name, the input of its last linear layer."""

    model: str
    prefix = "torchvision"

    def make(self, weights: str | None, device: torch.device) -> _Made:
        name = self.model
        models = import_module("torchvision.models")
        if name not in models.list_models(module=models):
            raise UserError(f"torchvision has no classifier {name!r}; torchvision.models.list_models() has the names")
        module = _fetched(f"torchvision:{name}", lambda: models.get_model(name, weights=None if weights else "DEFAULT"))
        if weights is not None:
            _load(module, weights)
        return (
            _Head(module, _resizer(224, *IMAGENET), device),
            _describe(224),
            {"torchvision": version("torchvision")},
            3,
        )


@PROTOCOLS.register("dinov2")
@dataclass(frozen=True)
class Dinov2(Backbone):
    """DINOv2 by hub id or folder, class token after the last norm (Stein et al., arXiv 2306.04675)."""

    model: str
    prefix = "dinov2"

    def make(self, weights: str | None, device: torch.device) -> _Made:
        name = self.model
        transformers = _package("transformers")
        source = weights or name
        allow = ["*.json", "*.safetensors"]
        try:
            folder = download(source, allow) if is_hub_id(source) else local_path(source)
            module = transformers.Dinov2Model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"dinov2:{name} is not here: {first_line(error)}. Download facebook/dinov2-large from the "
                "Hugging Face hub and give the folder as --weights"
            ) from None
        return (
            _Whole(module, _resizer(224, *IMAGENET), device),
            _describe(224),
            {"transformers": version("transformers")},
            3,
        )


@PROTOCOLS.register("torchscript")
@dataclass(frozen=True)
class TorchScript(Protocol):
    """A TorchScript file: images float in [0, 1], in their own size and channels -> (B, D). FILE.pt alone does, too."""

    model: str

    def extractor(self, weights: str | None, device: torch.device, batch_size: int = 64) -> Extractor:
        if weights is not None:
            raise UserError(f"--weights: {self.model} holds its own; leave it out")
        path = local_path(self.model)
        if not path.is_file():
            raise UserError(f"--protocol {self.model}: no such TorchScript file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit is old, its files are what people have
                module = torch.jit.load(str(path), map_location="cpu")
        except (RuntimeError, OSError) as error:
            raise WeightsError(f"{path} is not TorchScript: {first_line(error)}") from None
        network, resize = _Whole(module, to_float, device), "none: images as they are, in [0, 1]"
        return Extractor(path.name, resize, sha256_of(path), network, None, batch_size=batch_size)


def _resizer(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def prepare(images: Tensor) -> Tensor:
        x = F.interpolate(to_float(images), (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return (x - shift.to(x)) / scale.to(x)

    return prepare


def _describe(size: int) -> str:
    return f"PyTorch bicubic to {size}, antialiased"


def _fetched(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # every library and its hub has its own
        first = first_line(error)
        raise WeightsError(
            f"the weights of {name} are not here and could not be fetched ({first}); give --weights FILE"
        ) from None


def _load(module: nn.Module, weights: str, strict: bool = True) -> None:
    path = local_path(weights)
    if not path.is_file():
        raise WeightsError(f"--weights {weights}: no such file")
    state = read_tensors(path)
    try:
        missing = module.load_state_dict(state, strict=strict).missing_keys
    except RuntimeError as error:
        raise WeightsError(f"{path} is of another network: {str(error).strip().splitlines()[-1].strip()}") from None
    if missing:
        raise WeightsError(f"{path} lacks {missing[0]} and {len(missing) - 1} more tensors of the network")


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"this protocol needs the package {name}: pip install 'maskgen[fidelity]'") from None


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

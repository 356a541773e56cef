"""Protocols by name: a network, how images are resized for it, and the packages that do both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from maskgen.core.registry import Registry
from maskgen.evaluation.protocols.features import Extractor

SCRIPT, SCRIPT_ENDINGS = "torchscript", (".pt", ".ts", ".torchscript")


class Protocol(ABC):
    """How images become features. An entry whose constructor takes `model` is written NAME:MODEL.

    Attributes:
        is_inception: whether features are those of the 2015 Inception, so that a Fréchet distance of them is a FID.
    """

    is_inception: ClassVar[bool] = False

    @abstractmethod
    def extractor(self, weights: str | None, device: torch.device, batch_size: int = 64) -> Extractor:
        """The network with its weights.

        Args:
            weights: a file or folder; None to search for them.
            device: where it runs.
            batch_size: images at once.

        Raises:
            UserError: no such model, a package is missing, or weights are neither here nor can be fetched.
        """


PROTOCOLS: Registry[Protocol] = Registry("protocol", home="maskgen.evaluation.protocols:PROTOCOLS")


def is_protocol(name: str) -> bool:
    """Whether a name is that of a protocol, NAME or NAME:MODEL, or of a TorchScript file."""
    return name.partition(":")[0] in PROTOCOLS.names() or name.endswith(SCRIPT_ENDINGS)


def protocol_of(name: str) -> Protocol:
    """The protocol of a name for which `is_protocol`.

    Raises:
        UserError: a model is missing or not taken.
    """
    prefix, colon, model = name.partition(":")
    if prefix not in PROTOCOLS.names():
        return PROTOCOLS.build({"type": SCRIPT, "model": name})
    return PROTOCOLS.build({"type": prefix, "model": model} if colon else prefix)


def build(name: str, weights: str | None, device: torch.device, batch_size: int = 64) -> Extractor:
    """The extractor of a protocol.

    Raises:
        UserError: see `Protocol.extractor`.
    """
    return protocol_of(name).extractor(weights, device, batch_size)


def score_name(protocol: str) -> str:
    """Name of a Fréchet distance of a protocol's features: "FID" is that of the 2015 Inception only."""
    is_fid = protocol in PROTOCOLS.names() and protocol_of(protocol).is_inception
    return f"FID[{protocol}]" if is_fid else f"frechet_distance[{protocol}]"

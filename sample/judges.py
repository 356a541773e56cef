"""The network that scores images: a protocol by name, or the checkpoint of a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import MODEL, Checkpoint, CheckpointError, load_model, read_checkpoint
from maskgen.core.errors import UserError, closest
from maskgen.core.pixels import to_float
from maskgen.evaluation.protocols.features import Extractor, Features
from maskgen.evaluation.protocols.protocol import PROTOCOLS, build, is_protocol

DEFAULT = "fashion-classifier"
CLASSIFIER_BATCH = 256


def pick_extractor(name: str, weights: str | None, device: torch.device) -> Extractor:
    """The extractor of a protocol: `clean-fid`, `adm`, ..., `timm:NAME`, `FILE.pt`, or a classifier's checkpoint.

    Raises:
        UserError: unknown, or its weights are not to be had; the message lists the protocols.
    """
    if is_protocol(name):
        return build(name, weights, device)
    try:
        judge = read_checkpoint(name)
    except CheckpointError as error:
        hint, known = closest(name, PROTOCOLS.names()), ", ".join(PROTOCOLS.names())
        raise UserError(
            f"--protocol {name}: {hint}choose from {known}, FILE.pt, or the checkpoint of a classifier ({error})"
        ) from None
    if weights is not None:
        raise UserError(f"--weights: {name} is a checkpoint and has its own; leave it out")
    return _classifier(judge, name, device)


def _classifier(judge: Checkpoint, name: str, device: torch.device) -> Extractor:
    if judge.recipe.task != "classifier":
        raise UserError(f"--protocol {name} is a {judge.recipe.task}; it must be a classifier's checkpoint")
    network: Any = load_model(judge)[0].to(device).eval()

    def features(images: Tensor) -> Features:
        pool = network.features(to_float(images.to(device)))
        return Features(pool, network.head(pool))

    label = Path(name).name
    if is_protocol(label):
        raise UserError(
            f"--protocol {name}: its scores would be reported under the name of the protocol {label}; rename the folder"
        )
    return Extractor(
        label,
        "none: images as they are",
        judge.info["files"][MODEL]["sha256"],
        features,
        judge.image_shape[0],
        judge.image_shape,
        n_classes=len(judge.classes),
        batch_size=CLASSIFIER_BATCH,
    )


def require_fit(extractor: Extractor, checkpoint: Checkpoint) -> None:
    """Raises:
    UserError: a classifier of images of another shape or of other classes than the checkpoint makes.
    """
    shape, n_classes = extractor.image_shape, extractor.n_classes
    is_other = shape is not None and shape != checkpoint.image_shape
    if is_other or (n_classes and checkpoint.classes and n_classes != len(checkpoint.classes)):
        raise UserError(
            f"--protocol {extractor.protocol}, a classifier, judges {shape} images of {n_classes} classes, the "
            f"checkpoint makes {checkpoint.image_shape} of {len(checkpoint.classes)}: train a classifier recipe on the "
            "same data"
        )

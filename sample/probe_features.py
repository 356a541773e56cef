"""The features of a checkpoint that probes are fitted on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.checkpoints.checkpoint import MODEL, Checkpoint, load_model
from maskgen.core.errors import UserError
from maskgen.core.traits import network_of, traits_of
from maskgen.evaluation.probes.representation import Encoder
from maskgen.processes.preconditioned import Preconditioned
from maskgen.tokenizers import ImageTokenizer


@dataclass(frozen=True)
class TokenFeatures:
    """Features of unmasked tokens, without a class.

    Attributes:
        network: of the checkpoint.
        features: images (B, C, H, W) in [0, 1] -> (B, L, D), by a pass of the network.
        grid: (h, w) of the L tokens.
        name: of the network and the place in it.
        identity: everything they depend on beside the images.
    """

    network: nn.Module
    features: Callable[[Tensor], Tensor]
    grid: tuple[int, int]
    name: str
    identity: Mapping[str, object]


def token_features(checkpoint: Checkpoint, source: str, block: int, device: torch.device) -> TokenFeatures:
    """The features of a checkpoint.

    Args:
        checkpoint: of a generator of images.
        source: where it comes from, for messages.
        block: of a diffusion transformer, counted from 1; 0 is the middle one.
        device: where the network runs.

    Raises:
        UserError: it is no generator of images, or its network offers no features.
    """
    recipe, (network, tokenizer) = checkpoint.recipe, _loaded(checkpoint, source)
    features: Callable[..., Tensor] = network_of(network).features
    choices = _choices(features, block, source)
    network, tokenizer, process = network.to(device), tokenizer.to(device), recipe.field_process()
    if process is not None and "t" in inspect.signature(features).parameters:
        features = Preconditioned(process, network).features
    place = f"block {block or 'in the middle'}" if choices else "the encoder"
    identity = {
        "weights": checkpoint.info["files"][MODEL]["sha256"],
        "tokenizer": tokenizer.fingerprint(),
        "model": recipe.model,
        "process": recipe.process if process is not None else None,
        "block": block,
        "device": device.type,
    }
    found = TokenFeatures(
        network,
        lambda images: features(tokenizer.encode(images), **choices),
        tokenizer.grid,
        f"{type(network).__name__} after {place}",
        identity,
    )
    try:
        found.features(torch.zeros(1, *checkpoint.image_shape, device=device))
    except ValueError as error:
        raise UserError(f"{source} cannot be probed: {error}") from None
    return found


def _loaded(checkpoint: Checkpoint, source: str) -> tuple[nn.Module, ImageTokenizer]:
    """Network and tokenizer.

    Raises:
        UserError: it is no generator of images, or its network offers no features.
    """
    recipe = checkpoint.recipe
    if recipe.task != "generator":
        raise UserError(f"{source} is a {recipe.task}; probe a generator")
    network, tokenizer = load_model(checkpoint)
    assert tokenizer is not None
    if not traits_of(network).has_features:
        raise UserError(f"{source}: a {type(network).__name__} has no features to be probed")
    return network, tokenizer


def encoder_of(checkpoint: Checkpoint, source: str, block: int, device: torch.device, cells: int = 1) -> Encoder:
    """`token_features`, averaged over each of cells x cells parts of the grid; 1 is the mean of all tokens.

    Of a classifier what its head reads.

    Raises:
        UserError: see `token_features`; also a grid with fewer cells.
    """
    if checkpoint.recipe.task == "classifier":
        return _pooled(checkpoint, source, block, device, cells)
    found = token_features(checkpoint, source, block, device)
    grid, name = found.grid, f"{found.name}, mean of tokens"
    if cells > min(grid):
        raise UserError(f"--cells {cells} is more than the grid {grid} of tokens has; use at most {min(grid)}")
    if cells == 1:
        return Encoder(name, found.identity, lambda images: found.features(images).mean(1), device, found.network)
    pooling = f"{cells}x{cells} cells"
    return Encoder(
        f"{name} in {pooling}",
        {**found.identity, "cells": cells},
        lambda images: mean_in_cells(found.features(images), grid, cells),
        device,
        found.network,
        pooling,
    )


def _pooled(checkpoint: Checkpoint, source: str, block: int, device: torch.device, cells: int) -> Encoder:
    """What the head of a classifier reads, one vector an image.

    Raises:
        UserError: a block or parts of the image are asked for.
    """
    if block or cells > 1:
        raise UserError(f"{source} is a classifier, whose features are one vector; leave out --block and --cells")
    network = load_model(checkpoint)[0].to(device)
    identity = {"weights": checkpoint.info["files"][MODEL]["sha256"], "device": device.type}
    features: Callable[[Tensor], Tensor] = network_of(network).features
    return Encoder(f"{type(network).__name__} before its head", identity, features, device, network, "head")


def mean_in_cells(features: Tensor, grid: tuple[int, int], cells: int) -> Tensor:
    """Features (B, h w, D) averaged over each of cells x cells parts of their grid, side by side: (B, cells^2 D)."""
    return F.adaptive_avg_pool2d(features.mT.unflatten(2, grid), cells).flatten(1)


def _choices(features: Callable[..., Tensor], block: int, source: str) -> dict[str, int]:
    """Arguments of `features` beside the tokens."""
    if "block" in inspect.signature(features).parameters:
        return {"block": block}
    if block:
        raise UserError(f"--block {block} is of diffusion transformers; {source} is probed after its encoder")
    return {}

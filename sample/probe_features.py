"""The features of a checkpoint that probes are fitted on."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.checkpoints.checkpoint import MODEL, Checkpoint, load_model
from maskgen.core.errors import UserError
from maskgen.core.traits import network_of, traits_of
from maskgen.evaluation.probes.representation import Encoder
from maskgen.processes.preconditioned import Preconditioned


def encoder_of(checkpoint: Checkpoint, source: str, block: int, device: torch.device, cells: int = 1) -> Encoder:
    """What the features of a checkpoint are: of unmasked tokens, without a class, averaged over parts of the image.

    Args:
        checkpoint: of a generator of images.
        source: where it comes from, for messages.
        block: of a diffusion transformer, counted from 1; 0 is the middle one.
        device: where the network runs.
        cells: features are averaged over each of cells x cells parts of the grid; 1 is the mean of all tokens.

    Raises:
        UserError: it is no generator of images, its network offers no features, or its grid has fewer cells.
    """
    recipe = checkpoint.recipe
    if recipe.kind == "text" or recipe.task != "generator":
        raise UserError(
            f"{source} is a {'text generator' if recipe.kind == 'text' else recipe.task}; probe one of images"
        )
    network, tokenizer = load_model(checkpoint)
    assert tokenizer is not None
    if not traits_of(network).has_features:
        raise UserError(f"{source}: a {type(network).__name__} has no features to be probed")
    features: Callable[..., Tensor] = network_of(network).features
    choices = _choices(features, block, source)
    network, tokenizer, process = network.to(device), tokenizer.to(device), recipe.field_process()
    if process is not None and "t" in inspect.signature(features).parameters:
        features = Preconditioned(process, network).features

    def pooled(images: Tensor) -> Tensor:
        found: Tensor = features(tokenizer.encode(images), **choices)
        return found.mean(1) if cells == 1 else mean_in_cells(found, tokenizer.grid, cells)

    try:
        pooled(torch.zeros(1, *checkpoint.image_shape, device=device))
    except ValueError as error:
        raise UserError(f"{source} cannot be probed: {error}") from None
    place = f"block {block or 'in the middle'}" if choices else "the encoder"
    identity: dict[str, object] = {
        "weights": checkpoint.info["files"][MODEL]["sha256"],
        "tokenizer": tokenizer.fingerprint(),
        "model": recipe.model,
        "process": recipe.process if process is not None else None,
        "block": block,
        "device": device.type,
    }
    name = f"{type(network).__name__} after {place}, mean of tokens"
    if cells == 1:
        return Encoder(name, identity, pooled, device, network)
    identity["cells"], pooling = cells, f"{cells}x{cells} cells"
    return Encoder(f"{name} in {pooling}", identity, pooled, device, network, pooling)


def mean_in_cells(features: Tensor, grid: tuple[int, int], cells: int) -> Tensor:
    """Features (B, h w, D) averaged over each of cells x cells parts of their grid, side by side: (B, cells^2 D).

    Raises:
        ValueError: more cells than the grid has tokens in a row or column.
    """
    if cells > min(grid):
        raise ValueError(f"--cells {cells} is more than the grid {grid} of tokens has; use at most {min(grid)}")
    whole = features.mT.unflatten(2, grid)  # (B, D, h, w)
    return F.adaptive_avg_pool2d(whole, cells).flatten(1)


def _choices(features: Callable[..., Tensor], block: int, source: str) -> dict[str, int]:
    """Arguments of `features` beside the tokens."""
    if "block" in inspect.signature(features).parameters:
        return {"block": block}
    if block:
        raise UserError(f"--block {block} is of diffusion transformers; {source} is probed after its encoder")
    return {}

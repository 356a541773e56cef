"""Weights and the network of a recipe: held against each other by shape before memory is taken, then filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskgen.checkpoints.manifest import CheckpointError

MORE_TENSORS, MORE_ELEMENTS = 2_000, 2**28
"""Results of operations that building a network may take beyond `PER_STORED` for each stored tensor and number."""

PER_STORED = 64
"""A parameter is made, initialised by a few operations, and may be replaced by another; sizes are counted each time."""


class TooLargeError(Exception):
    """A network needs far more memory than its weights have."""


class BoundedBuild(TorchDispatchMode):
    """Ends the construction of a network by `TooLargeError` once it has made more than so many tensors or numbers."""

    def __init__(self, n_tensors: int, n_elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_tensors, self.n_elements = n_tensors, n_elements

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        made: Iterable[object] = tree_leaves(result)
        for value in made:
            if isinstance(value, Tensor):
                self.n_tensors -= 1
                self.n_elements -= value.numel()
        if self.n_tensors < 0 or self.n_elements < 0:
            raise TooLargeError
        return result


def require_matching(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], home: Path) -> None:
    """Check on the meta device that stored weights fill the network that `build` makes.

    Sizes in a recipe can ask for any amount of memory and time; the stored tensors bound what is believed.

    Raises:
        CheckpointError: the network is much larger than its weights, or a tensor is missing, left over or of another
            shape.
    """
    n_elements = sum(value.numel() for value in tensors.values())
    bounds = BoundedBuild(MORE_TENSORS + PER_STORED * len(tensors), MORE_ELEMENTS + PER_STORED * n_elements)
    try:
        with torch.device("meta"), bounds:
            network = build()
    except (TooLargeError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{home}: sizes in its recipe or description do not belong to its weights ({n_elements:,} numbers): the "
            "network would be far larger"
        ) from error
    fill(network, {name: value.to("meta") for name, value in tensors.items()}, home)


def fill(network: nn.Module, tensors: Mapping[str, Tensor], home: Path) -> None:
    """Load tensors into a network.

    Raises:
        CheckpointError: one is missing, left over or of another shape.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{home}: weights do not fit the recipe: {str(error).splitlines()[-1].strip()}") from None


def require_finite(network: nn.Module, home: Path) -> None:
    """Check that no parameter holds NaN or infinity.

    Raises:
        CheckpointError: one does.
    """
    for name, value in network.named_parameters():
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{home}: weights {name} hold NaN or infinity; use an earlier checkpoint")

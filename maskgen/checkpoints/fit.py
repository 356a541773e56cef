"""Weights and the network of a recipe: held against each other by shape before memory is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules import module
from torch.overrides import TorchFunctionMode

from maskgen.checkpoints.manifest import CheckpointError

MORE_PARTS, MORE_ELEMENTS = 2_000, 2**28
"""Modules, parameters and buffers, and numbers in them, that a network may register beyond `PER_STORED` for each stored
tensor and number."""

PER_STORED = 16
"""A parameter may be registered again, by a list of modules or in place of another; a buffer need not be stored."""


_RANDOM = {
    *("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"),
    *("xavier_normal_", "orthogonal_", "erfinv_"),
}


class Uninitialised(TorchFunctionMode):
    """Leaves random initial values out: on the meta device they cost the import of a compiler."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        if func.__name__ in _RANDOM:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


class TooLargeError(Exception):
    """A network has far more parts or numbers than its weights."""


@contextmanager
def bounded_build(n_parts: int, n_elements: int) -> Iterator[None]:
    """End the construction of a network in this thread once it has registered more than so many parts or numbers.

    Raises:
        TooLargeError: it has.
    """
    thread, left = threading.get_ident(), [n_parts, n_elements]

    def count(_module: nn.Module, _name: str, part: Tensor | nn.Module | None) -> None:
        if threading.get_ident() != thread:
            return
        left[0] -= 1
        left[1] -= part.numel() if isinstance(part, Tensor) else 0
        if min(left) < 0:
            raise TooLargeError

    with ExitStack() as hooks:
        for register in (
            module.register_module_module_registration_hook,
            module.register_module_parameter_registration_hook,
            module.register_module_buffer_registration_hook,
        ):
            hooks.callback(register(count).remove)
        yield


def require_matching(
    build: Callable[[], nn.Module], fill: Callable[[nn.Module], None], tensors: Iterable[Tensor], home: Path
) -> None:
    """Check on the meta device that stored tensors fill the network that `build` makes.

    Sizes in a recipe can ask for any amount of memory and time; the stored tensors bound what is believed.

    Args:
        build: makes the network on the default device.
        fill: loads the stored tensors, by shape only, into a network on the meta device.
        tensors: all that are stored.
        home: the checkpoint.

    Raises:
        CheckpointError: the network is much larger than its weights; also what `fill` raises.
    """
    sizes = [value.numel() for value in tensors]
    n_elements = sum(sizes)
    bounds = bounded_build(MORE_PARTS + PER_STORED * len(sizes), MORE_ELEMENTS + PER_STORED * n_elements)
    try:
        with torch.device("meta"), Uninitialised(), bounds:
            network = build()
    except (TooLargeError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{home}: sizes in its recipe or description do not belong to its weights ({n_elements:,} numbers): the "
            "network would be far larger"
        ) from error
    fill(network)


def require_finite(network: nn.Module, home: Path) -> None:
    """Check that no parameter holds NaN or infinity.

    Raises:
        CheckpointError: one does.
    """
    for name, value in network.named_parameters():
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{home}: weights {name} hold NaN or infinity; use an earlier checkpoint")

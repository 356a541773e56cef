"""Networks whose blocks are spread over devices, memory of the CPU and the disk, through accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from maskgen.checkpoints.stored import StoredTensors
from maskgen.core.devices import numbered_device
from maskgen.core.errors import UserError, closest, unknown
from maskgen.models.huggingface import HuggingFaceDenoiser
from maskgen.nn.checkpointing import named_blocks

Strategy = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""How accelerate fills the devices; `auto` is `balanced`, over all accelerators alike."""

DeviceMap = str | Mapping[str, int | str | torch.device]
MaxMemory = Mapping[int | str, int | str]

DISK = "disk"
HEADROOM = 0.9
"""Share of free memory that weights take where `max_memory` is not given; activations need some, too."""


@dataclass(frozen=True)
class Spread:
    """How a network is to be spread.

    Attributes:
        device_map: a `Strategy`, or names of parts -> device, `cpu` or `disk`.
        max_memory: device -> bytes or a size such as `10GB`; None for what is free.

    Raises:
        UserError: an unknown strategy, or `max_memory` beside a map that already says where everything is.
    """

    device_map: DeviceMap
    max_memory: MaxMemory | None = None

    def __post_init__(self) -> None:
        if isinstance(self.device_map, Mapping):
            if self.max_memory is not None:
                raise UserError("max_memory goes with device_map auto; a map of parts already places everything")
        elif self.device_map not in get_args(Strategy):
            raise UserError(unknown("device_map", str(self.device_map), list(get_args(Strategy))))

    def place(self, network: nn.Module, reserved: int = 0) -> Placement:
        """Where the parts of a network go.

        Args:
            network: built, on any device; the meta device will do.
            reserved: bytes that are needed beside the network on its device.

        Raises:
            UserError: a network that cannot be spread, devices that are not there or too small, or a map that does not
                fit the network.
        """
        blocks = dict(_blocks(network))
        if isinstance(self.device_map, Mapping):
            return _given(network, blocks, self.device_map)
        return _inferred(network, blocks, self, reserved)


def spread_of(device: str | torch.device, device_map: DeviceMap | None, max_memory: MaxMemory | None) -> Spread | None:
    """The spread that arguments of `maskgen.load` describe; None for one device.

    Raises:
        UserError: see `Spread`; also a device beside a map, or `max_memory` without one.
    """
    if device_map is None:
        if max_memory is not None:
            raise UserError("max_memory limits what device_map may place; give device_map='auto' as well")
        return None
    if str(device) != "auto":
        raise UserError(f"device_map places the network, so leave out device, got {device}")
    return Spread(device_map, max_memory)


@dataclass(frozen=True)
class Placement:
    """Where the parts of a network are.

    Attributes:
        device: of everything outside of blocks, and of the inputs and outputs of blocks. Blocks that are on the CPU or
            on disk are computed there.
        homes: name of a block -> name of a device, `cpu` or `disk`.
    """

    device: torch.device
    homes: Mapping[str, str]

    def where(self, name: str) -> torch.device:
        """The device that a parameter is on, the meta device for one that stays on disk."""
        home = next((home for block, home in self.homes.items() if name.startswith(f"{block}.")), None)
        return self.device if home is None else torch.device("meta" if home == DISK else home)

    def apply(self, network: nn.Module, stored: StoredTensors) -> None:
        """Make a network compute where its parts are; its parameters are there already.

        Args:
            network: filled by `where`.
            stored: its tensors, from which blocks on disk are read in every pass.
        """
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module
        from accelerate.utils.offload import PrefixedDataset

        for name, home in self.homes.items():
            block, is_disk = network.get_submodule(name), home == DISK
            is_offloaded = is_disk or (home == "cpu" and self.device.type != "cpu")
            if not is_offloaded and torch.device(home) == self.device:
                continue
            hook = AlignDevicesHook(
                execution_device=self.device if is_offloaded else torch.device(home),
                offload=is_offloaded,
                io_same_device=True,
                weights_map=PrefixedDataset(stored, f"{name}.") if is_disk else None,
                place_submodules=True,
            )
            add_hook_to_module(block, hook)
        for name, buffer in list(network.named_buffers()):
            if not any(name.startswith(f"{block}.") for block in self.homes):
                owner, _, own = name.rpartition(".")
                setattr(network.get_submodule(owner), own, buffer.to(self.device))

    def described(self) -> dict[str, str]:
        """As `hf_device_map` of transformers: "" for all that is outside of blocks, then every block."""
        return {"": str(self.device), **self.homes}


def _blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts that are not split, by name: each is called once a pass, and no other part reads its parameters.

    Raises:
        UserError: there are none, or one shares parameters.
    """
    names = network.block_classes() if isinstance(network, HuggingFaceDenoiser) else frozenset()
    named = ((name, part) for name, part in network.named_modules() if type(part).__name__ in names)
    blocks: list[tuple[str, nn.Module]] = [*named, *named_blocks(network)]
    if not blocks:
        raise UserError(f"device_map: {type(network).__name__} has no blocks to spread over devices; give device")
    n_places = sum(1 for _ in network.named_parameters(remove_duplicate=False))
    if n_places > sum(1 for _ in network.parameters()) and not names:
        raise UserError(f"device_map: parts of {type(network).__name__} share parameters; give device")
    return iter(blocks)


def _outside(network: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers that are in no block."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    return {name: value for name, value in tensors.items() if not any(name.startswith(f"{key}.") for key in blocks)}


def _inferred(network: nn.Module, blocks: Mapping[str, nn.Module], spread: Spread, reserved: int) -> Placement:
    """Fill devices in turn with blocks, then the CPU, then the disk; all else is on the first device."""
    from accelerate.utils import get_balanced_memory, infer_auto_device_map

    budget = _budget(spread.max_memory)
    first = next(iter(budget))
    outside = reserved + sum(value.nbytes for value in _outside(network, blocks).values())
    if outside > budget[first]:
        raise UserError(
            f"device_map: all that is outside of blocks is on one device and takes {outside:,} bytes; device {first} "
            f"has {budget[first]:,}"
        )
    budget[first] -= outside
    layers, classes = nn.ModuleList(blocks.values()), sorted({type(block).__name__ for block in blocks.values()})
    if spread.device_map != "sequential":
        is_low = spread.device_map == "balanced_low_0"
        budget = get_balanced_memory(layers, budget, no_split_module_classes=classes, low_zero=is_low)
    found = infer_auto_device_map(layers, budget, no_split_module_classes=classes, clean_result=False)
    homes = {name: found[str(index)] for index, name in enumerate(blocks)}
    return Placement(numbered_device(first), {name: _home(home) for name, home in homes.items()})


def _budget(given: MaxMemory | None) -> dict[int | str, int]:
    """Bytes that each device may hold, accelerators first, the CPU last.

    Raises:
        UserError: a device that is not there, or a size that is none.
    """
    from accelerate.utils import get_max_memory

    if given is None:
        return {device: int(HEADROOM * size) for device, size in get_max_memory().items()}
    if not given:
        raise UserError("max_memory names no device; give for example {0: '10GB', 'cpu': '30GB'}")
    for device in given:
        if device != DISK:
            numbered_device(device)
    try:
        budget: dict[int | str, int] = get_max_memory({key: size for key, size in given.items() if key != DISK})
    except ValueError as error:
        raise UserError(f"max_memory: {error}") from None
    return budget or {"cpu": 0}


def _given(network: nn.Module, blocks: Mapping[str, nn.Module], device_map: Mapping[str, object]) -> Placement:
    """The placement that a map of parts describes: the longest name that a part's name begins with counts."""
    parts = [name for name, _ in network.named_modules()] + [name for name, _ in network.named_parameters()]
    for key in device_map:
        if key not in parts:
            raise UserError(f"device_map: the network has no part {key!r}; {closest(key, parts)}".rstrip("; "))
        for block in blocks:
            if key.startswith(f"{block}."):
                raise UserError(f"device_map: {key} is within {block}, which is not split; place {block}")

    def home_of(name: str) -> str:
        keys = [key for key in device_map if not key or name == key or name.startswith(f"{key}.")]
        if not keys:
            raise UserError(f"device_map: {name} has no place; add '' for all that is not named")
        return _home(device_map[max(keys, key=len)])

    outside = {home_of(name) for name in _outside(network, blocks)}
    if len(outside) != 1 or DISK in outside:
        raise UserError(
            f"device_map: all that is outside of blocks must be on one device, got {', '.join(sorted(outside))}; add "
            "'' for it, and name blocks alone"
        )
    return Placement(torch.device(*outside), {name: home_of(name) for name in blocks})


def _home(place: object) -> str:
    """The name of a device, `cpu` or `disk`."""
    if place == DISK:
        return DISK
    if not isinstance(place, int | str | torch.device):
        raise UserError(f"device_map: a place is a device, its number, cpu or disk, got {place!r}")
    return str(numbered_device(place))

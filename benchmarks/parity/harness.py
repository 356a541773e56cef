"""Official networks beside ours, with equal weights and inputs: what every script of this folder shares.

A script names a layout, how the public code builds a small network of it, and what both sides compute from equal
inputs. Every number of weights and inputs follows from a seed by the rule of `draw`, so that the outputs of the public
code can be kept as facts (`tests/golden/parity/NAME.json`) which a test computes again without that code.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.convert.published import Published
from maskgen.core.rng import Rng
from maskgen.recipes.build import build_network
from maskgen.recipes.load import parse_recipe

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "parity"
N_VALUES = 48
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Input:
    """An input of both networks: uniform numbers of mean 0 and deviation 1, or whole ones from 0 to `below` - 1."""

    shape: tuple[int, ...]
    below: int = 0


@dataclass(frozen=True)
class Parity:
    """A public layout of weights, small, and what is compared.

    Attributes:
        name: of the layout, the script and the file of facts.
        inputs: by name.
        build: folder of the public code -> the public network, on the CPU.
        theirs: the public network and the inputs -> outputs by name; a loss is one of them.
        ours: a public state dict and the inputs -> the same outputs.
        fixed: tensors that the public code computes, as formulas of their shapes; they are not drawn.
        skipped: endings of names of tensors that no converter reads (index tables, unused parts).
        tolerance: largest difference allowed, over the largest number of an output.
        seed: of weights and inputs.
    """

    name: str
    inputs: Mapping[str, Input]
    build: Callable[[Path], nn.Module]
    theirs: Callable[[Any, Tensors], dict[str, Tensor]]
    ours: Callable[[dict[str, Tensor], Tensors], dict[str, Tensor]]
    fixed: Mapping[str, Callable[[Sequence[int]], Tensor]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    tolerance: float = 1e-5
    seed: int = 0

    def drawn_inputs(self) -> dict[str, Tensor]:
        """Inputs of the seed."""
        return {
            name: whole(Rng.stream(self.seed, "input", name), one) if one.below else unit(self.seed, name, one.shape)
            for name, one in self.inputs.items()
        }

    def state(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """The public state dict of the seed, from names and shapes."""
        return {
            name: self.fixed[name](shape) if name in self.fixed else draw(self.seed, name, shape)
            for name, shape in shapes.items()
        }


def draw(seed: int, name: str, shape: Sequence[int]) -> Tensor:
    """The initialisation rule: a tensor of a public network from its name and shape, never at its neutral start.

    With u uniform of mean 0 and deviation 1 from the stream (seed, "weight", name): vectors named `weight` are
    1 + 0.1 u (norms), other vectors and tensors of three dimensions 0.1 u, matrices and convolutions u over the root
    of their inputs.
    """
    u = unit(seed, name, shape, "weight")
    if len(shape) in (2, 4):
        return u / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * u if len(shape) == 1 and name.endswith("weight") else 0.1 * u


def unit(seed: int, name: str, shape: Sequence[int], purpose: str = "input") -> Tensor:
    """Float32, uniform with mean 0 and deviation 1: 53 random bits and two operations, equal on all processors."""
    u = Rng.stream(seed, purpose, name).uniform(shape)
    return ((2 * u - 1) * math.sqrt(3)).float()


def whole(rng: Rng, one: Input) -> Tensor:
    """Int64 from 0 to `below` - 1."""
    return (rng.uniform(one.shape) * one.below).long()


def converted(layout: str, state: dict[str, Tensor], **config: object) -> Any:
    """Our network, filled by the converter of a layout; `config` is what a published config.json says."""
    converter, found = CONVERTERS.build(layout), Published(state, config)
    target = converter.target(found)
    network = build_network(parse_recipe(target.recipe), target.facts, target.layout)
    network.load_state_dict(converter.tensors(found))
    return network.eval()


def imported(public: Path, module: str) -> ModuleType:
    """A module of the public code."""
    if str(public) not in sys.path:
        sys.path.insert(0, str(public))
    return importlib.import_module(module)


def prepared(parity: Parity, public: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The public network, filled, and its state dict as a converter gets it.

    Raises:
        ValueError: a tensor that the public code computes is not what its formula says.
    """
    network = parity.build(public).eval()
    given = {
        name: value
        for name, value in network.state_dict().items()
        if value.is_floating_point() and not name.endswith(parity.skipped)
    }
    for name, formula in parity.fixed.items():
        if not torch.allclose(formula(given[name].shape), given[name], atol=1e-5):
            raise ValueError(f"{name} of the public network is not what its formula says")
    state = parity.state({name: tuple(value.shape) for name, value in given.items()})
    network.load_state_dict(state, strict=False)
    return network, state


@torch.no_grad()
def compare(parity: Parity, public: Path) -> tuple[dict[str, tuple[float, float]], dict[str, Any]]:
    """(largest difference, largest number) of each output, and the facts to keep."""
    inputs = parity.drawn_inputs()
    network, state = prepared(parity, public)
    theirs = parity.theirs(network, inputs)
    ours = parity.ours(dict(state), inputs)
    assert theirs.keys() == ours.keys()
    found = {name: difference(ours[name], theirs[name]) for name in theirs}
    facts = {
        "layout": parity.name,
        "seed": parity.seed,
        "tensors": {name: list(value.shape) for name, value in state.items()},
        "outputs": {
            name: {"shape": list(value.shape), "values": [float(f"{x:.8g}") for x in thinned(value).tolist()]}
            for name, value in theirs.items()
        },
    }
    return found, facts


def difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """(largest difference, largest number)."""
    assert ours.shape == theirs.shape, f"ours is {tuple(ours.shape)}, theirs {tuple(theirs.shape)}"
    return float((ours.double() - theirs.double()).abs().max()), float(theirs.double().abs().max())


def thinned(value: Tensor) -> Tensor:
    """At most `N_VALUES` numbers of a tensor, evenly spaced, the first and last included, float64."""
    flat = value.flatten().double()
    return flat[torch.linspace(0, len(flat) - 1, min(N_VALUES, len(flat)), dtype=torch.float64).round().long()]


@torch.no_grad()
def recompute(parity: Parity, facts: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """(largest difference, largest number) of our outputs against kept facts; needs no public code.

    Raises:
        ValueError: an output of another shape or name.
    """
    ours = parity.ours(parity.state(facts["tensors"]), parity.drawn_inputs())
    if {name: list(value.shape) for name, value in ours.items()} != {
        name: one["shape"] for name, one in facts["outputs"].items()
    }:
        raise ValueError(f"the outputs of {parity.name} are not those of its facts; make the facts again")
    return {
        name: difference(thinned(ours[name]), torch.tensor(one["values"], dtype=torch.float64))
        for name, one in facts["outputs"].items()
    }


@torch.no_grad()
def unseen(parity: Parity, state: Mapping[str, Tensor]) -> list[str]:
    """Drawn tensors of a public state dict whose change leaves all our outputs what they are."""
    inputs = parity.drawn_inputs()
    before = parity.ours(dict(state), inputs)
    found = []
    for name in state.keys() - parity.fixed.keys():
        after = parity.ours({**state, name: 1.5 * state[name] + 0.1}, inputs)
        if all(torch.equal(before[output], after[output]) for output in before):
            found.append(name)
    return sorted(found)


def run(parity: Parity, description: str | None) -> None:
    """The command line of a script: compare, print a row an output, keep the facts with `--golden`.

    Raises:
        SystemExit: 1 if a difference is above the tolerance, or no output depends on a tensor.
    """
    parser = argparse.ArgumentParser(
        prog=parity.name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--public", type=Path, required=True, metavar="DIR", help="folder of the public code")
    parser.add_argument("--golden", action="store_true", help=f"write {GOLDEN.name}/{parity.name}.json of the tests")
    options = parser.parse_args()
    found, facts = compare(parity, options.public)
    for name, (largest, scale) in found.items():
        print(f"{parity.name:<12} {name:<16} largest difference {largest:.2g}, of the scale {largest / scale:.2g}")
    if missed := unseen(parity, parity.state(facts["tensors"])):
        raise SystemExit(f"no output depends on {', '.join(missed)}: compare more, or list them in `skipped`")
    is_equal = all(largest <= parity.tolerance * scale for largest, scale in found.values())
    if options.golden and is_equal:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        (GOLDEN / f"{parity.name}.json").write_text(json.dumps(facts, indent=None) + "\n")
    raise SystemExit(0 if is_equal else f"a difference is above {parity.tolerance:g} of the scale")

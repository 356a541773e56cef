"""A network whose blocks are spread over devices, memory and disk computes what it does on one device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import maskgen
from maskgen.checkpoints.filling import fill_mapped
from maskgen.checkpoints.placement import Placement, Spread
from maskgen.checkpoints.stored import StoredTensors
from maskgen.core.errors import UserError
from maskgen.nn.checkpointing import named_blocks
from tests import tiny
from tests.cases import each
from tests.nn.test_recompute import NETWORKS, built, passed

CPU = torch.device("cpu")


@each("spec", NETWORKS)
@torch.no_grad()
def test_blocks_that_stay_on_disk_or_on_another_device_change_no_output(spec: dict[str, Any], tmp_path: Path) -> None:
    network = built(spec).eval()
    expected = passed(network)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "a.safetensors")
    stored, blocks = StoredTensors.of(tmp_path / "a.safetensors"), [name for name, _ in named_blocks(network)]
    homes = {name: ("disk", "cpu:1", "cpu")[index % 3] for index, name in enumerate(blocks)}
    placement = replace(Spread({"": "cpu"}).place(network), homes=homes)  # torch has any number of CPUs
    again = built(spec).eval()
    fill_mapped(again, stored, where=placement.where)
    placement.apply(again, stored)
    for _ in range(2):
        assert torch.equal(passed(again), expected)
        on_disk = [name for name, value in again.named_parameters() if value.is_meta]
        assert on_disk == [name for name, _ in again.named_parameters() if placement.where(name).type == "meta"] != []


def test_samples_are_the_same_with_blocks_on_disk(tmp_path: Path) -> None:
    deep = {"type": "mdlm", "width": 32, "depth": 4, "heads": 2}
    tiny.text_checkpoint(tmp_path / "t", model=deep)
    tiny.generator_checkpoint(tmp_path / "c", model={"type": "maskgit", "width": 32, "depth": 4, "heads": 2})
    for name, limit in (("t", "130KB"), ("c", "150KB")):
        plain = maskgen.load(tmp_path / name, device="cpu")
        placed = maskgen.load(tmp_path / name, device_map="auto", max_memory={"cpu": limit})
        assert placed.device_map is not None
        assert {placed.device_map[""], *placed.device_map.values()} == {"cpu", "disk"}
        assert torch.equal(placed(3, seed=1).tokens, plain(3, seed=1).tokens)
        assert plain.device_map is None


def test_a_half_format_halves_what_blocks_need(tmp_path: Path) -> None:
    tiny.text_checkpoint(tmp_path / "t", model={"type": "mdlm", "width": 32, "depth": 4, "heads": 2})
    on_disk = []
    for dtype in (torch.float32, torch.bfloat16):
        placed = maskgen.load(tmp_path / "t", dtype=dtype, device_map="auto", max_memory={"cpu": "130KB"})
        assert placed.dtype == dtype
        on_disk.append(list((placed.device_map or {}).values()).count("disk"))
    assert on_disk[0] > on_disk[1]


def test_a_map_of_parts_places_by_the_longest_name() -> None:
    network = built(NETWORKS["mdlm"])
    found = Spread({"": "cpu", "blocks": "disk", "blocks.1": CPU}).place(network)
    assert found == Placement(CPU, {"blocks.0": "disk", "blocks.1": "cpu"})
    assert found.described() == {"": "cpu", "blocks.0": "disk", "blocks.1": "cpu"}
    assert Spread("sequential", {"cpu": "1GB"}).place(network).described() == dict.fromkeys(found.described(), "cpu")


@each(
    "device_map, max_memory, message",
    [
        ("all", None, "unknown device_map 'all'"),
        ({"": "cpu"}, {"cpu": "1GB"}, "max_memory goes with device_map auto"),
        ({"": "cpu", "block.1": "disk"}, None, "no part 'block.1'; did you mean blocks.1"),
        ({"": "cpu", "blocks.0.mlp": "disk"}, None, "blocks.0.mlp is within blocks.0, which is not split"),
        ({"blocks": "cpu"}, None, "embedding.weight has no place; add ''"),
        ({"": "disk"}, None, "outside of blocks must be on one device, got disk"),
        ({"": 99}, None, "device cuda:99"),
        ({"": 0.5}, None, "its number, cpu or disk, got 0.5"),
        ("auto", {"cpu": "1KB"}, "outside of blocks is on one device and takes"),
        ("auto", {"cpu": "much"}, "max_memory: "),
        ("auto", {}, "max_memory names no device"),
        ("auto", {99: "1GB"}, "device cuda:99"),
    ],
)
def test_a_map_that_cannot_be_is_refused(device_map: Any, max_memory: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        Spread(device_map, max_memory).place(built(NETWORKS["mdlm"]))
    assert message in str(refused.value)


def test_what_cannot_be_spread_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Linear has no blocks to spread"):
        Spread("auto").place(nn.Linear(2, 2))
    tiny.generator_checkpoint(tmp_path / "c")
    with pytest.raises(UserError, match="leave out device, got cpu"):
        maskgen.load(tmp_path / "c", device="cpu", device_map="auto")
    with pytest.raises(UserError, match="give device_map='auto' as well"):
        maskgen.load(tmp_path / "c", max_memory={"cpu": "1GB"})
    placed = maskgen.load(tmp_path / "c", device_map="auto", max_memory={"cpu": "1GB"})
    with pytest.raises(UserError, match="spread over devices"):
        placed.to("cpu")

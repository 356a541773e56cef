"""What accelerate may be asked for: FSDP 2 by blocks, and nothing that would be done otherwise without a word."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from accelerate import Accelerator, DistributedType

from maskgen.core.errors import UserError
from maskgen.recipes.load import parse_recipe
from maskgen.train.parts import build
from maskgen.train.sharding import fsdp_plugin, require_supported, wrap_blocks
from tests.tiny import text_tree, tree


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM"])
def test_what_spreads_parameters_otherwise_is_refused(kind: str) -> None:
    recipe = parse_recipe(tree())
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType[kind])
    with pytest.raises(UserError, match=f"accelerate is set to {kind}, which is not supported"):
        require_supported(accelerator, recipe)
    for good in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
        accelerator.distributed_type = DistributedType[good]
        require_supported(accelerator, recipe)


def test_a_network_that_is_read_from_outside_cannot_be_spread(tmp_path: Path) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(UserError, match="state_dependent reads parameters outside of the network; use DDP"):
        require_supported(accelerator, parse_recipe(text_tree(tmp_path / "poem.txt", "genmd4")))


def test_fsdp_is_what_accelerate_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fsdp_plugin() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP 1 is not supported: set fsdp_version: 2"):
        fsdp_plugin()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert fsdp_plugin() is not None
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    with pytest.raises(UserError, match=r"use train\.gradient_checkpointing=true"):
        fsdp_plugin()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("FSDP_VERSION", "x"), ("FSDP_AUTO_WRAP_POLICY", "FOO"), ("FSDP_STATE_DICT_TYPE", "FOO")),
        *(("FSDP_RESHARD_AFTER_FORWARD", "FULL_SHARD"), ("FSDP_OFFLOAD_PARAMS", "true")),
    ],
)
def test_what_fsdp_cannot_be_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    for name, given in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "2"), (key, value)):
        monkeypatch.setenv(name, given)
    with pytest.raises(UserError, match=f"{key}={value}|fsdp_offload_params: false") as error:
        fsdp_plugin()
    assert "\n" not in str(error.value)


def test_one_process_has_nothing_to_spread_over(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.NO)
    with pytest.raises(UserError, match="there is one process and nothing to shard over"):
        require_supported(accelerator, parse_recipe(tree()), cast(Any, object()))


@pytest.mark.parametrize(
    ("policy", "classes", "wrapped"),
    [
        *((None, None, ["Block"]), ("TRANSFORMER_BASED_WRAP", None, ["Block"])),
        *(("TRANSFORMER_BASED_WRAP", "LayerNorm", ["LayerNorm"]), ("NO_WRAP", None, None)),
        ("SIZE_BASED_WRAP", None, None),
    ],
)
def test_blocks_are_spread_one_by_one_unless_a_rule_is_given(
    monkeypatch: pytest.MonkeyPatch, policy: str | None, classes: str | None, wrapped: list[str] | None
) -> None:
    given = {"FSDP_AUTO_WRAP_POLICY": policy, "FSDP_TRANSFORMER_CLS_TO_WRAP": classes}
    given |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for key, value in given.items():
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key, raising=False)
    plugin = fsdp_plugin()
    state = SimpleNamespace(fsdp_plugin=plugin)
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.FSDP, state=state)
    wrap_blocks(accelerator, build(parse_recipe(tree()), Accelerator(cpu=True)).module)
    assert plugin is not None
    assert plugin.transformer_cls_names_to_wrap == wrapped


def test_a_rule_for_blocks_the_network_has_not_is_refused() -> None:
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(transformer_cls_names_to_wrap=["Blok"]))
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.FSDP, state=state)
    with pytest.raises(UserError, match=r"the network has no Blok .*leave it out for its blocks \(Block\)"):
        wrap_blocks(accelerator, build(parse_recipe(tree()), Accelerator(cpu=True)).module)

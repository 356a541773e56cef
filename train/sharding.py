"""Parameters sharded over processes (FSDP 2, by accelerate), and full tensors gathered from the shards."""

from __future__ import annotations

import os

from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, register_fsdp_forward_method
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from maskgen.core.errors import UserError
from maskgen.nn.block import Block
from maskgen.nn.checkpointing import blocks_of
from maskgen.objectives import OBJECTIVES, traits_of_objective
from maskgen.recipes.schema import Recipe

FSDP = "ACCELERATE_USE_FSDP"
POLICY = "FSDP_AUTO_WRAP_POLICY"


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """The FSDP plugin of accelerate's configuration, None if FSDP is not enabled.

    Raises:
        UserError: a setting that accelerate does not know; FSDP 1, which flattens parameters; a loading in which only
            the first process has weights; parameters kept on processors.
    """
    if os.environ.get(FSDP, "false").lower() != "true":
        return None
    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, KeyError, AttributeError, TypeError, ImportError) as error:
        given = ", ".join(f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("FSDP_"))
        said = " ".join(str(error).split())
        raise UserError(f"FSDP: accelerate cannot use one of {given} ({type(error).__name__}: {said})") from error
    if plugin.fsdp_version != 2:
        raise UserError(
            "FSDP 1 is not supported: set fsdp_version: 2 in accelerate's configuration (or FSDP_VERSION=2)"
        )
    if plugin.cpu_ram_efficient_loading:
        raise UserError(
            "FSDP: every process builds the network from the seed; set fsdp_cpu_ram_efficient_loading: false"
        )
    if plugin.activation_checkpointing:
        raise UserError("FSDP: use train.gradient_checkpointing=true instead of fsdp_activation_checkpointing")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise UserError(
            "FSDP: averages and moments stay on the device, so parameters do; set fsdp_offload_params: false"
        )
    return plugin


def require_supported(
    accelerator: Accelerator, recipe: Recipe, plugin: FullyShardedDataParallelPlugin | None = None
) -> None:
    """Refuse other ways of sharding parameters; enable FSDP on CPUs too.

    accelerate spreads over GPUs only, and on processors would go on with DDP without a word.

    Args:
        accelerator: made with the plugin.
        recipe: of the training.
        plugin: of `fsdp_plugin`.

    Raises:
        UserError: DeepSpeed, Megatron or the like; a recipe whose network cannot be sharded; FSDP with one process.
    """
    kind = accelerator.distributed_type
    if plugin is not None and kind == DistributedType.NO:
        raise UserError(
            "FSDP is enabled, but there is one process and nothing to shard over: start several (torchrun "
            f"--nproc_per_node N -m maskgen.train ...), or unset {FSDP}"
        )
    if plugin is not None and kind == DistributedType.MULTI_CPU:
        accelerator.state.distributed_type = kind = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = kind  # every state copies it from there
        accelerator.state.fsdp_plugin = plugin
    if kind == DistributedType.FSDP:
        _require_spreadable(recipe)
    elif kind != DistributedType.NO and not kind.name.startswith("MULTI_"):
        raise UserError(
            f"accelerate is set to {kind.name}, which is not supported: train in one process, with DDP (torchrun, or "
            "accelerate launch --multi_gpu) or with FSDP 2 (fsdp_version: 2 in accelerate's configuration)"
        )


def _require_spreadable(recipe: Recipe) -> None:
    name = OBJECTIVES.check(recipe.objective)[0]
    if traits_of_objective(name).learns_exponents:
        raise UserError(f"FSDP: objective {name} reads parameters outside of the network; use DDP")
    if recipe.task == "generator" and recipe.build_objective(recipe.stand_in).copies_network:
        raise UserError("FSDP: objective.target or objective.teacher_decay keeps a copy of the whole network; use DDP")


def wrap_blocks(accelerator: Accelerator, module: nn.Module) -> None:
    """Shard block by block, unless accelerate's configuration has its own wrapping rule.

    Raises:
        UserError: the rule names a class that the network has no module of.
    """
    plugin = accelerator.state.fsdp_plugin if is_sharded(accelerator) else None
    if plugin is None or os.environ.get(POLICY, "").upper() in ("NO_WRAP", "SIZE_BASED_WRAP"):
        return
    named = [name for name in plugin.transformer_cls_names_to_wrap or () if name]
    strange = set(named) - {type(part).__name__ for part in module.modules()}
    names = sorted({type(block).__name__ for block in blocks_of(module)})
    if strange:
        raise UserError(
            f"FSDP: the network has no {', '.join(sorted(strange))} of fsdp_transformer_layer_cls_to_wrap; "
            f"leave it out for its blocks ({', '.join(names)})"
        )
    if named or names:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = transformer_auto_wrap_policy, named or names


def gather_for(module: nn.Module, method: str) -> None:
    """Register `method` of a sharded network, and `weights` of its blocks, with FSDP, beside `forward`.

    FSDP gathers parameters for registered methods only; a network that is not sharded is left alone.
    """
    if not isinstance(module, FSDPModule):
        return
    register_fsdp_forward_method(module, method)
    for part in module.modules():
        if part is not module and isinstance(part, Block) and issubclass(type(part), FSDPModule):
            register_fsdp_forward_method(part, "weights")


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds only a shard of each parameter."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def whole(x: Tensor) -> Tensor:
    """A full tensor, gathered from all processes, which must all call; the tensor itself if it is not sharded."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def local(x: Tensor) -> Tensor:
    """The shard of a tensor in this process."""
    return x.to_local() if isinstance(x, DTensor) else x


def like(x: Tensor, model: Tensor) -> Tensor:
    """A full tensor, equal in all processes, sharded like another and on its device."""
    x = x.to(model.device)
    if not isinstance(model, DTensor):
        return x
    return distribute_tensor(x, model.device_mesh, model.placements, src_data_rank=None)


def gathered(tensors: dict[str, Tensor], *, is_kept: bool) -> dict[str, Tensor]:
    """Full tensors, gathered one by one and moved to the CPU if sharded; empty where they are not kept."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        full = whole(value.detach())
        if is_kept:
            found[name] = full.cpu() if isinstance(value, DTensor) else full
    return found

"""A checkpoint, ready to sample from: what pipelines of images and of text share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch

from maskgen.checkpoints.card import card
from maskgen.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    copy_for_use,
    load_placed,
    load_system,
    read_checkpoint,
)
from maskgen.checkpoints.filling import DTYPES, cast_matrices
from maskgen.checkpoints.placement import DeviceMap, MaxMemory, Placement, Spread, spread_of
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError, first_line
from maskgen.core.files import local_path
from maskgen.pipelines.arguments import guided, guided_within, wrong_type
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.settings import HEAD_NFE as HEAD_NFE
from maskgen.pipelines.settings import settings_of as settings_of
from maskgen.recipes.schema import Recipe
from maskgen.samplers import FieldSampler, MaskedSampler
from maskgen.samplers.guidance import Guidance

SamplerLike = str | Mapping[str, object] | MaskedSampler | FieldSampler
"""A preset (`maskgen samplers`), a mapping with `type` and its arguments, or a sampler."""


class Pipeline(ABC):
    """Samples from a checkpoint; `ImagePipeline` and `TextPipeline` are called to draw samples.

    Args:
        checkpoint: of a generator.
        device: of the network and the tokenizer.
        dtype: see `to`; None is float32.
        spread: over several devices, in place of `device`.

    Raises:
        CheckpointError: the checkpoint is a tokenizer or a classifier, or its weights cannot be used.
    """

    generator: Generator

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype | None = None,
        spread: Spread | None = None,
    ) -> None:
        if checkpoint.recipe.task != "generator":
            raise CheckpointError(
                f"{checkpoint.path} is a {checkpoint.recipe.task}; only a generator can be sampled from"
            )
        self._check_kind(checkpoint)
        self.checkpoint = checkpoint
        self._recipe: Recipe | None = checkpoint.recipe  # with the sampler that was set; None if that is an object
        self._dtype = torch.float32
        if dtype is not None:
            self._set_dtype(dtype)
        self._placement: Placement | None = None
        if spread is None:
            system = load_system(checkpoint, dtype)
        else:
            system, self._placement = load_placed(checkpoint, spread, dtype)
            device = self._placement.device
        self.generator = Generator.of(system, device)
        if self.generator.guidance.scale != 1 and not self._can_be_guided():
            # the recipe's own guidance, of which its data or training made nothing; one that is given is refused
            self.generator = replace(self.generator, guidance=replace(self.generator.guidance, scale=1.0))
        self._move(device)

    @abstractmethod
    def _check_kind(self, checkpoint: Checkpoint) -> None:
        """Raises:
        CheckpointError: the checkpoint generates something else.
        """

    def _can_be_guided(self) -> bool:
        try:
            self._check_guidance()
        except UserError:
            return False
        return True

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        device_map: DeviceMap | None = None,
        max_memory: MaxMemory | None = None,
    ) -> Self:
        """See `maskgen.load`."""
        spread = spread_of(device, device_map, max_memory)
        return cls(read_checkpoint(source), pick_device(device), dtype, spread)

    @property
    def model(self) -> Any:
        """The network."""
        return self.generator.denoiser

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.generator.device

    @property
    def device_map(self) -> dict[str, str] | None:
        """Where blocks of the network are, "" for all else; None for a network on one device."""
        return None if self._placement is None else self._placement.described()

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the network's matrix products."""
        return self._dtype

    @property
    def sampler(self) -> MaskedSampler | FieldSampler:
        """How samples are decoded; assign a preset's name, a mapping with `type`, or a sampler."""
        return self.generator.sampler

    @sampler.setter
    def sampler(self, sampler: SamplerLike) -> None:
        self.generator, recipe = replace(self.generator, sampler=self._sampler(sampler, {})), self.checkpoint.recipe
        if isinstance(sampler, MaskedSampler | FieldSampler):
            self._recipe = None
        else:
            self._recipe = recipe.model_copy(update={"sampler": _spec(sampler)})

    @property
    def guidance(self) -> Guidance:
        """Classifier-free guidance; assign a scale (1 is off) or a `Guidance`."""
        return self.generator.guidance

    @guidance.setter
    def guidance(self, guidance: float | Guidance) -> None:
        self.generator = self.with_sampler(guidance=guidance)

    def __repr__(self) -> str:
        sampler, scale = self.generator.effective_sampler(), self.guidance.scale
        spec = None if self._recipe is None else _spec(self._recipe.sampler)
        kind = type(sampler).__name__ if spec is None else spec["type"]
        guided = f", guidance {scale:g}" if scale != 1 else ""
        where = f"{self.device}, {str(self.dtype).removeprefix('torch.')}"
        return (
            f"{type(self).__name__}({self.checkpoint.path.name!r}, {self._contents()}, {kind} in {sampler.steps} steps"
            f"{guided}, {where})"
        )

    @abstractmethod
    def _contents(self) -> str:
        """What is generated, for `repr`."""

    def save_pretrained(
        self, directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **hub: Any
    ) -> None:
        """Write the checkpoint without training state, with a card; `from_pretrained` and `maskgen.load` read it.

        With `push_to_hub` it is uploaded too, as `repo_id` or under the directory's name; `hub` as `push_to_hub` takes.
        """
        path = local_path(directory)
        copy_for_use(self.checkpoint, path)
        (path / "README.md").write_text(card(read_checkpoint(path), path.name), encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(repo_id or path.name, **hub)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, commit_message: str | None = None
    ) -> str:
        """Upload the checkpoint without training state; its address.

        Raises:
            UserError: the hub cannot be reached or refuses.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            path = Path(folder) / repo_id.rsplit("/", 1)[-1]
            self.save_pretrained(path)
            try:
                name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                message = commit_message or f"{path.name}, step {self.checkpoint.step}"
                return str(api.upload_folder(repo_id=name, folder_path=str(path), commit_message=message))
            except (HfHubHTTPError, OSError, ValueError) as error:
                raise UserError(f"{repo_id} cannot be uploaded: {first_line(error)}") from None

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move network and tokenizer to a device, or change the number format of the network; returns the pipeline.

        Args:
            device: `cpu`, `cuda`, `cuda:1`, `mps` or a `torch.device`; None leaves it.
            dtype: `torch.float32`, `bfloat16` or `float16`; None leaves it. Weights of linear layers and convolutions
                are stored in it and matrix products computed in it; norms, embeddings and the sampler stay float32.

        Raises:
            UserError: a device that is not there, another dtype, or a network that is spread over devices.
        """
        if self._placement is not None:
            raise UserError("this network is spread over devices (device_map); load it again to change that")
        if dtype is not None:
            self._set_dtype(dtype)
            cast_matrices(self.model, dtype)
        if device is not None:
            self._move(pick_device(device))
        return self

    def _set_dtype(self, dtype: torch.dtype) -> None:
        if dtype not in DTYPES.values():
            raise wrong_type("dtype", str(dtype), "torch.float32, torch.bfloat16 or torch.float16")
        self._dtype = dtype

    def _move(self, device: torch.device) -> None:
        """Move tokenizer and network, unless that is spread over devices."""
        if self._placement is None:
            self.model.to(device)
        tokenizer = self.generator.tokenizer
        if isinstance(tokenizer, torch.nn.Module):
            tokenizer = tokenizer.to(device)
        self.generator = replace(self.generator, tokenizer=tokenizer, device=device)

    def _computing(self) -> AbstractContextManager[object]:
        """The context in which the network runs."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._dtype)

    def with_sampler(
        self,
        sampler: SamplerLike | None = None,
        guidance: float | Guidance | None = None,
        *,
        guidance_interval: Sequence[float] | None = None,
        **arguments: object,
    ) -> Generator:
        """The generator with another sampler, guidance or sampler arguments (`steps`, `temperature`, ...).

        Raises:
            UserError: unknown sampler or argument, or guidance that the checkpoint cannot do.
        """
        generator = self.generator
        if sampler is not None or arguments:
            generator = replace(generator, sampler=self._sampler(sampler, arguments))
        if guidance is not None:
            generator = replace(generator, guidance=guided(generator.guidance, guidance))
        if guidance_interval is not None:
            generator = replace(generator, guidance=guided_within(generator.guidance, guidance_interval))
            if generator.guidance.scale == 1:
                self._check_guidance()
                raise UserError("guidance interval: guidance is off, its scale is 1; give a scale (--guidance) as well")
        if generator.guidance.scale != 1:
            self._check_guidance()
        return generator

    def _sampler(self, sampler: SamplerLike | None, arguments: Mapping[str, Any]) -> MaskedSampler | FieldSampler:
        """A sampler with some of its arguments replaced; None is the pipeline's.

        Raises:
            UserError: unknown sampler or argument, or a sampler of the other kind.
        """
        recipe = self._recipe if sampler is None else self.checkpoint.recipe
        if recipe is not None and isinstance(sampler, str | Mapping | None):
            return recipe.build_sampler(**({} if sampler is None else _spec(sampler)), **arguments)
        base = self.generator.sampler if sampler is None else sampler
        needed = MaskedSampler if self.generator.process is None else FieldSampler
        if not isinstance(base, needed):
            raise wrong_type("sampler", base, f"a preset's name or a {needed.__name__} for this checkpoint")
        unknown = sorted(set(arguments) - {field.name for field in fields(base)})
        if unknown:
            accepted = ", ".join(field.name for field in fields(base))
            raise UserError(f"{unknown[0]}: unknown key; a {needed.__name__} accepts {accepted}")
        try:
            return replace(base, **arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"sampler: {error}") from None

    @abstractmethod
    def _check_guidance(self) -> None:
        """Raises:
        UserError: this checkpoint cannot be guided.
        """


def _spec(sampler: str | Mapping[str, object]) -> dict[str, object]:
    """A preset as a mapping with `type`."""
    spec: dict[str, object] = {"type": sampler} if isinstance(sampler, str) else dict(sampler)
    return {**spec, "type": str(spec["type"]).replace("-", "_")} if "type" in spec else spec

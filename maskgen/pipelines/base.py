"""A checkpoint, ready to sample from: what pipelines of images and of text share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from maskgen.checkpoints.card import card
from maskgen.checkpoints.checkpoint import Checkpoint, CheckpointError, copy_for_use, read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError, first_line
from maskgen.core.files import local_path
from maskgen.models.token_head import DiffusionLayers
from maskgen.pipelines.generator import Generator
from maskgen.samplers import FieldSampler
from maskgen.samplers.guidance import Guidance


class Pipeline(ABC):
    """Samples from a checkpoint. A final class makes the `generator` and is called with what its samples need."""

    generator: Generator

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        if checkpoint.recipe.task != "generator":
            raise CheckpointError(
                f"{checkpoint.path} is a {checkpoint.recipe.task}; only a generator can be sampled from"
            )
        self.checkpoint = checkpoint
        self.generator = self._make(checkpoint, device)
        self.to(device)

    @abstractmethod
    def _make(self, checkpoint: Checkpoint, device: torch.device) -> Generator: ...

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str = "auto") -> Any:
        """See `maskgen.load`."""
        return cls(read_checkpoint(source), pick_device(device))

    @property
    def model(self) -> Any:
        """The network."""
        return self.generator.denoiser

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

    def to(self, device: torch.device | str) -> Any:
        """Move it; returns itself."""
        device = torch.device(device)
        tokenizer = self.generator.tokenizer
        self.model.to(device)
        if isinstance(tokenizer, torch.nn.Module):
            tokenizer = tokenizer.to(device)
        self.generator = replace(self.generator, tokenizer=tokenizer, device=device)
        return self

    def with_sampler(
        self,
        sampler: str | None = None,
        guidance: float | None = None,
        *,
        guidance_interval: Sequence[float] | None = None,
        **arguments: Any,
    ) -> Generator:
        """The generator with another sampler preset, guidance or sampler arguments (`steps`, `temperature`, ...).

        Raises:
            UserError: unknown sampler or argument, or guidance that the checkpoint cannot do.
        """
        recipe, generator = self.checkpoint.recipe, self.generator
        if sampler is not None:
            arguments["type"] = sampler.replace("-", "_")
        if arguments:
            generator = replace(generator, sampler=recipe.build_sampler(**arguments))
        if guidance is not None:
            if guidance < 0:
                raise UserError(f"guidance must be at least 0 (1 is off), got {guidance}")
            generator = replace(generator, guidance=replace(generator.guidance, scale=guidance))
        if guidance_interval is not None:
            generator = replace(generator, guidance=_within(generator.guidance, guidance_interval))
            if generator.guidance.scale == 1:
                self._check_guidance()
                raise UserError("guidance interval: guidance is off, its scale is 1; give a scale (--guidance) as well")
        if generator.guidance.scale != 1:
            self._check_guidance()
        return generator

    @abstractmethod
    def _check_guidance(self) -> None:
        """Raises:
        UserError: this checkpoint cannot be guided.
        """


def _within(guidance: Guidance, interval: Sequence[float]) -> Guidance:
    """Raises:
    UserError: no interval in [0, 1].
    """
    try:
        low, high = interval
        return replace(guidance, interval=(low, high))
    except ValueError:
        raise UserError(f"guidance interval must be LOW,HIGH in [0, 1], low first, got {list(interval)}") from None


HEAD_EVALUATIONS = "head_evaluations_per_token"
"""Of a diffusion head, twice as many under guidance; the network's own evaluations are counted apart."""


def settings_of(generator: Generator) -> dict[str, Any]:
    """Sampler and guidance as plain values, for a report."""
    sampler = generator.effective_sampler()
    if isinstance(sampler, FieldSampler):
        return {**asdict(sampler), "evaluations": sampler.evaluations, "guidance": repr(generator.guidance)}
    parts = {name: repr(getattr(sampler, name)) for name in ("order", "quota", "remask", "layout")}
    numbers = {name: getattr(sampler, name) for name in ("steps", "temperature", "top_p")}
    if isinstance(getattr(generator.denoiser, "head", None), DiffusionLayers):
        numbers |= {"head": repr(sampler.head), HEAD_EVALUATIONS: sampler.head.evaluations}
    return {**parts, **numbers, "guidance": repr(generator.guidance)}


def slices(num: int, batch_size: int) -> Iterator[slice]:
    """0..num in batches.

    Raises:
        UserError: num or batch_size below 1.
    """
    if num < 1 or batch_size < 1:
        raise UserError(f"num and batch_size must be at least 1, got {num} and {batch_size}")
    return (slice(start, min(start + batch_size, num)) for start in range(0, num, batch_size))

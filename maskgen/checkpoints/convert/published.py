"""A published checkpoint as it was found: tensors by name, configuration and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from maskgen.checkpoints.manifest import stamp
from maskgen.checkpoints.stored import StoredTensors

WeightsKind = Literal["ema", "model"]
"""Which weights to take from a file with several: the moving average, or the last ones."""

Tree = Mapping[str, Any]
"""What a file of a training program holds: tensors by name, settings, and such trees."""


@dataclass(frozen=True)
class Published:
    """A published checkpoint as it was found.

    Attributes:
        state: tensors by name, prefixes of wrappers stripped. Those of a .safetensors file are mapped when they are
            looked up and take memory only while they are used.
        config: config.json of a folder; empty for a file.
        folder: where tokenizer files may be; None for a file.
        files: with the weights.
        image_size: side of the images in pixels if given with --image-size, where tensors do not determine it.
    """

    state: Mapping[str, Tensor]
    config: Mapping[str, object] = field(default_factory=dict)
    folder: Path | None = None
    files: tuple[Path, ...] = ()
    image_size: int | None = None

    def headers(self) -> Published:
        """The same with tensors on the meta device: names, shapes and types without numbers."""
        state = self.state
        shapes = state.headers() if isinstance(state, StoredTensors) else {k: v.to("meta") for k, v in state.items()}
        return replace(self, state=shapes)

    def part(self, prefix: str) -> Published | None:
        """The tensors whose names begin with a prefix, without it; None if there are none."""
        names = {name.removeprefix(prefix): name for name in self.state if name.startswith(prefix)}
        if not names:
            return None
        if isinstance(self.state, StoredTensors):
            return replace(self, state=self.state.renamed(names))
        return replace(self, state={new: self.state[old] for new, old in names.items()})

    def digest(self) -> dict[str, str]:
        """SHA-256 of each file with weights, by its name."""
        return {path.name: str(stamp(path)["sha256"]) for path in self.files}

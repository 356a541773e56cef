"""maskgen: a generative masked modelling engine for images and text.

```python
import maskgen

pipeline = maskgen.load("fashion-maskgit")
pipeline(num=8, classes=["Sandal", "Bag"]).save("samples.png")
```

Names are imported when they are first used: `import maskgen` alone does not import torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from maskgen.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from . import models as models
    from . import objectives as objectives
    from . import processes as processes
    from . import samplers as samplers
    from . import schedules as schedules
    from . import strategies as strategies
    from . import tokenizers as tokenizers
    from .checkpoints.placement import DeviceMap, MaxMemory
    from .core.errors import UserError as UserError
    from .core.predictions import Batch as Batch
    from .core.predictions import Categorical as Categorical
    from .core.predictions import Condition as Condition
    from .core.rng import Rng as Rng
    from .data.image.grid import grid as grid
    from .evaluation import metrics as metrics
    from .evaluation import protocols as protocols
    from .pipelines.base import Pipeline as Pipeline
    from .pipelines.image import ImagePipeline as ImagePipeline
    from .pipelines.joint import JointPipeline as JointPipeline
    from .pipelines.joint_output import JointOutput as JointOutput
    from .pipelines.outputs import ImageOutput as ImageOutput
    from .pipelines.outputs import TextOutput as TextOutput
    from .pipelines.text import TextPipeline as TextPipeline
    from .recipes.load import load_recipe as load_recipe
    from .recipes.schema import Recipe as Recipe
    from .samplers import guidance as guidance
    from .samplers.guidance import Guidance as Guidance

    def train(
        recipe: str | Path | Recipe,
        overrides: Sequence[str] | Mapping[str, object] = (),
        output: str | Path | None = None,
        *,
        resume: bool | Literal["auto"] = False,
        device: str = "auto",
        start: str | Path | None = None,
    ) -> Path:
        """Train a recipe; the directory of the last checkpoint, which `load` takes.

        Args:
            recipe: a name of `maskgen recipes`, a YAML file, or a `Recipe`.
            overrides: changes of the recipe, ``["train.steps=500"]`` or ``{"train.steps": 500}``.
            output: the run directory, ``runs/RECIPE`` by default; required for a `Recipe`.
            resume: continue from the newest checkpoint of the run directory; `auto` where there is one.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            start: a checkpoint whose weights the run starts from, as `load` takes it; the same as the override
                ``start.checkpoint``.

        Raises:
            UserError: a recipe, data set or output directory that cannot be used, or a training that diverged.
        """


MODULES = {
    "guidance": "samplers.guidance",
    "metrics": "evaluation.metrics",
    "models": "models",
    "objectives": "objectives",
    "processes": "processes",
    "protocols": "evaluation.protocols",
    "samplers": "samplers",
    "schedules": "schedules",
    "strategies": "strategies",
    "tokenizers": "tokenizers",
    "train": "train",
}
"""Public modules: name -> module below this package. `train` is the training program, a module that can be called."""

NAMES = {
    "Batch": "core.predictions",
    "Categorical": "core.predictions",
    "Condition": "core.predictions",
    "Guidance": "samplers.guidance",
    "ImageOutput": "pipelines.outputs",
    "ImagePipeline": "pipelines.image",
    "JointOutput": "pipelines.joint_output",
    "JointPipeline": "pipelines.joint",
    "Pipeline": "pipelines.base",
    "Recipe": "recipes.schema",
    "Rng": "core.rng",
    "TextOutput": "pipelines.outputs",
    "TextPipeline": "pipelines.text",
    "UserError": "core.errors",
    "grid": "data.image.grid",
    "load_recipe": "recipes.load",
}
"""Public classes and functions: name -> the module that defines them."""

__all__ = [
    "Batch",
    "Categorical",
    "Condition",
    "Guidance",
    "ImageOutput",
    "ImagePipeline",
    "JointOutput",
    "JointPipeline",
    "Pipeline",
    "Recipe",
    "Rng",
    "TextOutput",
    "TextPipeline",
    "UserError",
    "__version__",
    "grid",
    "guidance",
    "load",
    "load_image",
    "load_joint",
    "load_recipe",
    "load_text",
    "metrics",
    "models",
    "objectives",
    "processes",
    "protocols",
    "samplers",
    "schedules",
    "strategies",
    "tokenizers",
    "train",
]

ImageZoo = Literal["fashion-maskgit"]
TextZoo = Literal["kjv-md4", "kjv-ar", "smollm2-mdlm-lora"]


@overload
def load(
    source: ImageZoo,
    *,
    device: str | torch.device = ...,
    dtype: torch.dtype | None = ...,
    device_map: DeviceMap | None = ...,
    max_memory: MaxMemory | None = ...,
) -> ImagePipeline: ...
@overload
def load(
    source: TextZoo,
    *,
    device: str | torch.device = ...,
    dtype: torch.dtype | None = ...,
    device_map: DeviceMap | None = ...,
    max_memory: MaxMemory | None = ...,
) -> TextPipeline: ...
@overload
def load(
    source: str | Path,
    *,
    device: str | torch.device = ...,
    dtype: torch.dtype | None = ...,
    device_map: DeviceMap | None = ...,
    max_memory: MaxMemory | None = ...,
) -> ImagePipeline | TextPipeline | JointPipeline: ...


def load(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
) -> ImagePipeline | TextPipeline | JointPipeline:
    """The sampling pipeline of a checkpoint; `load_image`, `load_text` and `load_joint` for type checkers.

    Args:
        source: a zoo name (`maskgen zoo` lists them), a checkpoint directory, a run directory (its newest checkpoint
            is loaded) or a Hugging Face hub id ``owner/name``. A hub repository, or a folder of one, in a published
            layout of `maskgen convert --list` is converted once, into ``$MASKGEN_CACHE``.
        device: ``auto`` (CUDA if there is a device), ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or a `torch.device`.
        dtype: of the network, see `Pipeline.to`; None is float32.
        device_map: spreads the network's blocks over devices, memory of the CPU and the disk, in place of ``device``:
            ``auto`` (as ``balanced``), ``balanced_low_0`` or ``sequential``, as accelerate fills them; or names of
            parts -> device, its number, ``cpu`` or ``disk``, with ``""`` for all that is not named.
        max_memory: of each device for ``device_map``: ``{0: "10GB", "cpu": "30GB"}``; what is free by default.

    Raises:
        UserError: no such checkpoint or device; a file of the checkpoint is missing, truncated or altered; a network
            that cannot be spread over devices.
    """
    from .pipelines import load as loader

    return loader.load(source, device=device, dtype=dtype, device_map=device_map, max_memory=max_memory)


def load_image(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
) -> ImagePipeline:
    """`load` for a checkpoint that generates images.

    Raises:
        UserError: see `load`; also a checkpoint that generates text.
    """
    from .pipelines import load as loader

    return loader.load_image(source, device=device, dtype=dtype, device_map=device_map, max_memory=max_memory)


def load_text(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
) -> TextPipeline:
    """`load` for a checkpoint that generates text.

    Raises:
        UserError: see `load`; also a checkpoint that generates images.
    """
    from .pipelines import load as loader

    return loader.load_text(source, device=device, dtype=dtype, device_map=device_map, max_memory=max_memory)


def load_joint(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
) -> JointPipeline:
    """`load` for a checkpoint whose rows hold several streams: pictures with captions, labels or maps.

    Raises:
        UserError: see `load`; also a checkpoint of pictures or text alone.
    """
    from .pipelines import load as loader

    return loader.joint_pipeline(source, device=device, dtype=dtype, device_map=device_map, max_memory=max_memory)


def __getattr__(name: str) -> Any:
    """A public module, class or function, imported on first use."""
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{MODULES[name]}")
    if name in NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

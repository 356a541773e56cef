"""The networks, one a file, by the name a recipe calls them."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from maskgen.errors import UserError
from maskgen.registry import Registry

MODELS: Registry[nn.Module] = Registry(
    "model", derived=("vocab_size", "token_width", "grid", "n_classes", "image_shape", "caption_width")
)

from maskgen.models import (  # noqa: E402 - they register themselves in MODELS
    blockwise,  # noqa: F401
    classifier,  # noqa: F401
    dit,  # noqa: F401
    maskgit,  # noqa: F401
    mdlm,  # noqa: F401
    mdt,  # noqa: F401
    microdit,  # noqa: F401
)

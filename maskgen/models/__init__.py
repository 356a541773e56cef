"""The networks, one a file, by the name a recipe calls them."""

from __future__ import annotations

from torch import nn

from maskgen.registry import Registry

MODELS: Registry[nn.Module] = Registry(
    "model", derived=("vocab_size", "token_width", "grid", "n_classes", "image_shape")
)

from maskgen.models import blockwise, classifier, dit, maskgit, mdlm, mdt  # noqa: E402, F401 - they register themselves in MODELS

"""Networks, one a file."""

from maskgen.models.base import MODELS, change_grid

__all__ = ["MODELS", "change_grid"]

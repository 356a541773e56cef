"""Image tokenizers: images <-> tokens on a grid."""

from maskgen.tokenizers import latent, pixels, vq
from maskgen.tokenizers.base import TOKENIZERS, ImageTokenizer

__all__ = ["TOKENIZERS", "ImageTokenizer", "latent", "pixels", "vq"]

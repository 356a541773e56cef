"""Tokenizers: images <-> tokens on a grid, text <-> tokens in a row."""

from maskgen.tokenizers import latent, patches, pixels, text, vq
from maskgen.tokenizers.base import TOKENIZERS, ImageTokenizer

__all__ = ["TOKENIZERS", "ImageTokenizer", "latent", "patches", "pixels", "text", "vq"]

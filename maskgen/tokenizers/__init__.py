"""Tokenizers: images <-> tokens on a grid, text <-> tokens in a row."""

from maskgen.tokenizers.base import TOKENIZERS, ImageTokenizer, Tokenizer

__all__ = ["TOKENIZERS", "ImageTokenizer", "Tokenizer"]

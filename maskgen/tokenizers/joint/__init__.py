"""Tokenizers of rows of several streams."""

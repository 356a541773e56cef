"""Data: labelled images and text, resumable loading of them and their tokens on disk."""

from maskgen.data import corpora, fashion, folder, hub, stream  # noqa: F401 - each registers itself in DATASETS

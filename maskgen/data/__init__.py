"""Data: labelled images, resumable loading of them and their tokens on disk."""

from maskgen.data import fashion, folder, hub  # noqa: F401 - each registers itself in DATASETS

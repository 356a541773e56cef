"""Checkpoints: files, integrity, loading."""

"""Sampling pipelines: what `maskgen.load` returns."""

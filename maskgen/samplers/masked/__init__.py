"""Masked decoding: one loop, and the policies that make a published sampler of it."""

"""Foundations: errors, files, randomness, registries and the types that every other part uses."""

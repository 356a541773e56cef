"""Sampling of Gaussian processes with the schedulers of `diffusers`."""

"""Layers that treat each token alone: norms and feed-forward layers."""

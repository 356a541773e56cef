"""Text data sets and their tokens on disk."""

"""Scores of samples, one a file."""

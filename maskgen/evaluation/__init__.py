"""Scores of what was generated: distances between sets of images, agreement with the labels, reports."""

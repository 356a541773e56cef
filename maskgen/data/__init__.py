"""Data: labelled images and text, resumable loading of them and their tokens on disk."""

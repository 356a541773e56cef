"""Recipes: read, validate, check, build."""

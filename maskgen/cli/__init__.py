"""The command line; imports nothing heavy."""

from maskgen.cli.commands import cli, main

__all__ = ["cli", "main"]

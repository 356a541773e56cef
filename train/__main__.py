"""`python -m maskgen.train`, for torchrun and `accelerate launch -m`: the same as `maskgen train`."""

from maskgen.cli import main

main("train")

"""Public checkpoints of other projects, one layout a file."""

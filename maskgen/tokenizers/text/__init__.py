"""Text tokenizers and frozen text encoders."""

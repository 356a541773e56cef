"""Image tokenizers, one a file."""

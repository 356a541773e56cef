"""Lossless coding of tokens by masked models: entropy coder, file format, coding of rows."""

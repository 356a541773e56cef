"""Texts with gaps: tokens of what is given, -1 for each token to generate."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from maskgen.tokenizers.text.tokenizer import TextTokenizer

GAP = "_"
"""Stands for one token to generate."""


def gapped_tokens(tokenizer: TextTokenizer, text: str) -> Tensor:
    """(N,) int64 of a text, -1 for each `_` in it.

    Where a word and the space before it are one token, the space before a gap belongs to its first token.

    Raises:
        TokenizerError: see `TextTokenizer.encode`.
    """
    parts = [part for part in re.split(f"({GAP}+)", text) if part]
    found = [torch.empty(0, dtype=torch.int64)]
    for index, part in enumerate(parts):
        if part.startswith(GAP):
            found.append(torch.full((len(part),), -1))
            continue
        if index + 1 < len(parts) and part.endswith(" ") and tokenizer.joins_space:
            part = part[:-1]
        found.append(tokenizer.encode(part) if not index else tokenizer.encode_after(part))
    return torch.cat(found)

"""Gaps of unknown length: the number of tokens that fits the text after the gap best."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.core.traits import traits_of
from maskgen.evaluation.metrics.choices import answer_nll
from maskgen.tokenizers.text.gapped import GAP

RANGE = re.compile(r"_\{(\d+),(\d+)\}")
"""A gap of a range of lengths, `_{3,9}`."""
DRAWS = 128
LONGEST = 256


@torch.no_grad()
def with_lengths(infill: str, tokens: Callable[[str], Tensor], model: Any, mask_id: int) -> str:
    """A text whose gaps `_{low,high}` have become as many `_` as fit best, from left to right.

    The length n of a gap is the one of the smallest -log p(text up to the next gap | text before, n masked tokens), in
    which the contents of the gap are summed over, so a longer gap has no disadvantage. The bound is estimated with the
    same masks for every n: the choice depends on text and network alone.

    Args:
        infill: the text.
        tokens: text -> (N,) int64, -1 for each `_`.
        model: a masked denoiser in evaluation mode.
        mask_id: id of [MASK].

    Raises:
        UserError: a network that generates from left to right, an impossible range, or a gap at the end of the text.
    """
    traits = traits_of(model)
    is_ordered = traits.is_autoregressive or traits.block_length is not None
    if RANGE.search(infill) and (is_ordered or traits.has_exponents):
        raise UserError("gaps of unknown length need a masked checkpoint (md4, mdlm); write one _ for each token")
    while found := RANGE.search(infill):
        low, high = int(found[1]), int(found[2])
        if not 1 <= low <= high <= LONGEST:
            raise UserError(f"gap {found[0]}: lengths are 1 to {LONGEST}, the smaller first")
        before, after = infill[: found.start()], infill[found.end() :]
        answer = after.split(GAP, 1)[0]
        if not answer:
            raise UserError(
                f"gap {found[0]} needs text after it, by which its length is chosen; write one _ for a token"
            )
        fits = []
        for n in range(low, high + 1):
            row = tokens(before + GAP * n + answer)
            start = len(tokens(before + GAP * n))
            given = torch.where(row < 0, mask_id, row)
            rng = Rng.stream("gaps")
            fits.append(answer_nll(model, given[:start], given[start:], rng, DRAWS, mask_id=mask_id).nats)
        infill = before + GAP * (low + fits.index(min(fits))) + after
    return infill

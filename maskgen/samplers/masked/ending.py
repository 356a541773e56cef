"""Texts that end before their row does."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from maskgen.core.streams import TokenLayout
from maskgen.processes import is_mask
from maskgen.samplers.masked.spans import Span


def end_of_text(tokens: Tensor, is_open: Tensor, stop: tuple[int, ...]) -> Tensor:
    """(B,) int64, the position of the first token that ends the text of a row; L where none does.

    Args:
        tokens: (B, L) int64, [MASK] included.
        is_open: (B, L) bool, generated positions. A known token after a stop token keeps the text going.
        stop: ids that end a text.
    """
    length = tokens.shape[1]
    place = torch.arange(length, device=tokens.device)
    last_known = torch.where(is_open, -1, place).amax(1, keepdim=True)
    is_stop = torch.isin(tokens, torch.tensor(stop, dtype=tokens.dtype, device=tokens.device))
    return torch.where(is_stop & (place > last_known), place, length).amin(1)


def ended(x_t: Tensor, is_open: Tensor, mask_id: int, span: Span, streams: TokenLayout | None) -> tuple[Tensor, Span]:
    """x_t (B, L) with the stop token at all masked positions after it, and the span without these.

    Only rows in which no token before it is masked have ended; none in a row without stop tokens.
    """
    if streams is None or not streams.stop:
        return x_t, span
    length = x_t.shape[1]
    place = torch.arange(length, device=x_t.device)
    end = end_of_text(x_t, is_open, streams.stop)[:, None]
    is_masked = is_mask(x_t, mask_id)
    is_final = ~(is_masked & (place < end)).any(1, keepdim=True)
    token = x_t.gather(1, end.clamp(max=length - 1))
    x_t = torch.where(is_masked & is_final & (place > end), token, x_t)
    return x_t, replace(span, is_open=span.is_open & is_mask(x_t, mask_id))

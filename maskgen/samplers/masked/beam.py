"""Beam search: the likeliest of several texts that grow from left to right, in place of draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maskgen.core.positions import categorical_at
from maskgen.core.streams import TokenLayout
from maskgen.processes import is_mask
from maskgen.samplers.masked.ending import ended
from maskgen.samplers.masked.layout import Blocks, Layout
from maskgen.samplers.masked.remask import Remask
from maskgen.samplers.masked.source import Sampled
from maskgen.samplers.masked.spans import Span
from maskgen.samplers.masked.state import Block
from maskgen.samplers.masked.unmasking import One, Unmasking


def require_beam(beam: int, layout: Layout, unmasking: Unmasking, remask: Remask, by: Sampled) -> None:
    """Check the settings of a decoding by their number of texts.

    Raises:
        ValueError: a number below 1; one above 1 if tokens do not come one after another, or would be drawn otherwise.
    """
    is_single = isinstance(layout, Blocks) and layout.block_length == 1 and isinstance(unmasking, One)
    if beam < 1 or (beam > 1 and not (is_single and remask.is_off and by == Sampled(crossing=by.crossing))):
        raise ValueError(
            "beam must be at least 1, and above 1 needs unmasking one, layout blocks of block_length 1, remask none, "
            f"temperature 1, top_p 1 and top_k 0, got beam {beam}"
        )


def beam_search(
    plan: Sequence[Span],
    row: Block,
    block_of: Callable[[Block, Span], Block],
    x_1: Tensor,
    width: int,
    streams: TokenLayout | None,
    on_step: Callable[[int, int, Tensor], None] | None,
) -> Tensor:
    """x_0 (B, L), of each row the text of the highest sum of log-probabilities among those that are kept.

    After each token the `width` best continuations of all kept texts stay. A text that has ended stays as it is. The
    network is evaluated on one text of each row at a time, so rows keep their conditions.

    Args:
        plan: spans of at most one token a row.
        row: the network, with all positions to generate.
        block_of: the same in a span.
        x_1: (B, L) int64, [MASK] at tokens to generate.
        width: number of texts that are kept.
        streams, on_step: see `MaskedSampler`; on_step gets the best texts.
    """
    texts = x_1[:, None].repeat(1, width, 1)  # (B, W, L)
    scores = torch.full(texts.shape[:2], -torch.inf, dtype=torch.float64, device=x_1.device)
    scores[:, 0] = 0
    for index, span in enumerate(plan):
        found = []
        for n in range(width):
            texts[:, n], own = ended(texts[:, n], row.is_open, row.mask_id, span, streams)
            found.append(_continued(block_of(row, own), texts[:, n], width, scores[:, n]))
        gains, tokens = (torch.stack(parts, 1) for parts in zip(*found, strict=True))  # (B, W, W)
        scores, chosen = (scores[:, :, None] + gains).flatten(1).topk(width, 1)
        token = tokens.flatten(1).gather(1, chosen)[..., None]
        parent = torch.div(chosen, width, rounding_mode="floor")[..., None]
        texts = texts.gather(1, parent.expand(-1, -1, x_1.shape[1]))
        texts = torch.where(span.is_open[:, None] & (token >= 0), token, texts)
        if on_step is not None:
            on_step(index + 1, len(plan), texts[:, 0])
    return texts[:, 0]


def _continued(block: Block, x: Tensor, n: int, score: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids (B, n) of the likeliest next tokens of texts x (B, L); 0 and -1 for one that is whole.

    Texts of score (B,) -inf are no texts yet and have none.
    """
    where = block.is_open & score.isfinite()[:, None]
    rows = where.any(1)
    gains = torch.full((len(x), n), -torch.inf, dtype=torch.float64, device=x.device)
    tokens = torch.full((len(x), n), -1, device=x.device)
    gains[~rows, 0] = 0
    if bool(rows.any()):
        t = is_mask(x, block.mask_id).double().mean(1).cpu()
        prediction = block.within_streams(categorical_at(block.denoise(x, t, where=where), where))
        best = prediction.log_probs().double().topk(min(n, prediction.logits.shape[-1]), -1)
        gains[rows, : best.values.shape[1]], tokens[rows, : best.values.shape[1]] = best.values, best.indices
    return gains, tokens

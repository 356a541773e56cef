"""Selective scans h_t = a_t h_{t-1} + b_t: reference loop, chunked form with its own backward, and matrix products.

The loops define the results; `linear_scan` and `state_space_dual` compute the same without a step of Python a token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Tokens of a chunk of `state_space_dual`: within it the work is quadratic, between chunks linear."""


def scan_loop(decay: Tensor, inputs: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + inputs_t from h = 0, token by token: the definition. (B, L, ...) -> (B, L, ...)."""
    state, states = torch.zeros_like(inputs[:, 0]), []
    for t in range(inputs.shape[1]):
        state = decay[:, t] * state + inputs[:, t]
        states.append(state)
    return torch.stack(states, 1)


class LinearScan(torch.autograd.Function):
    """`scan_loop` in about 2 sqrt(L) steps: all chunks at once, then from chunk to chunk.

    The gradient is a scan from the end: g_t = dL/dh_t + decay_{t+1} g_{t+1}, dL/dinputs = g, dL/ddecay_t = g_t h_{t-1}.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor) -> Tensor:
        """decay, inputs (B, L, ...) of one shape -> states."""
        states = _chunked_scan(decay, inputs)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dstates -> dL/ddecay, dL/dinputs."""
        decay, states = ctx.saved_tensors
        (grad,) = grads
        later = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1)
        grad = _chunked_scan(later.flip(1), grad.flip(1)).flip(1)
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
        return grad * before, grad


def linear_scan(decay: Tensor, inputs: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + inputs_t from h = 0; both (B, L, ...) of one shape -> (B, L, ...)."""
    states: Tensor = LinearScan.apply(decay, inputs)
    return states


def _chunked_scan(decay: Tensor, inputs: Tensor) -> Tensor:
    """The scan inside of all chunks at once, then over the chunks; products of decays are never divided by."""
    n_rows, length = inputs.shape[:2]
    size = max(1, math.isqrt(length))
    pad = [0, 0] * (inputs.ndim - 2) + [0, -length % size]
    decay, inputs = (F.pad(x, pad).unflatten(1, (-1, size)) for x in (decay, inputs))
    states, products = torch.empty_like(inputs), torch.empty_like(decay)  # (B, n, size, ...)
    state, product = torch.zeros_like(inputs[:, :, 0]), torch.ones_like(decay[:, :, 0])
    for t in range(size):
        state = decay[:, :, t] * state + inputs[:, :, t]
        product = product * decay[:, :, t]
        states[:, :, t], products[:, :, t] = state, product
    for chunk in range(1, states.shape[1]):
        states[:, chunk] += products[:, chunk] * states[:, chunk - 1, -1:]
    return states.flatten(1, 2)[:, :length].reshape(n_rows, length, *inputs.shape[3:])


def selective_scan(x: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Mamba's scan (arXiv 2312.00752, algorithm 2).

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t, y_t = C_t h_t.

    Args:
        x: (B, L, E).
        delta: (B, L, E) steps, positive.
        rates: (E, N) A, negative.
        b, c: (B, L, N).

    Returns:
        (B, L, E).
    """
    decay = torch.exp(delta[..., None] * rates)  # (B, L, E, N)
    states = linear_scan(decay, (delta * x)[..., None] * b[:, :, None])
    y: Tensor = (states @ c[..., None])[..., 0]
    return y


def state_space_dual(x: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor, chunk: int = CHUNK) -> Tensor:
    """Mamba-2's scan in matrix products, one decay a head (SSD, arXiv 2405.21060, section 6).

    y_t = sum over s <= t of exp(A (S_t - S_s)) (C_t B_s) delta_s x_s with S = cumsum(delta): a masked matrix within a
    chunk of tokens; the state is carried from chunk to chunk.

    Args:
        x: (B, L, H, P).
        delta: (B, L, H) steps, positive.
        rates: (H,) A, negative.
        b, c: (B, L, N), the same for all heads.
        chunk: tokens of a chunk.

    Returns:
        (B, L, H, P).
    """
    length = x.shape[1]
    size = min(chunk, length)
    logs, values = (delta * rates).mT, (delta[..., None] * x).transpose(1, 2)  # (B, H, L), (B, H, L, P)
    pad = -length % size
    logs, values = F.pad(logs, (0, pad)).unflatten(2, (-1, size)), F.pad(values, (0, 0, 0, pad))
    b, c = (F.pad(one, (0, 0, 0, pad)).unflatten(1, (-1, size))[:, None] for one in (b, c))  # (B, 1, n, Q, N)
    values, total = values.unflatten(2, (-1, size)), logs.cumsum(-1)  # (B, H, n, Q, P), (B, H, n, Q)
    above = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
    mixing = (total[..., :, None] - total[..., None, :]).masked_fill(above, -torch.inf).exp() * (c @ b.mT)
    y = mixing @ values  # (B, H, n, Q, P)
    if y.shape[2] > 1:
        to_end = (total[..., -1:] - total).exp()[..., None]
        states = b.mT @ (to_end * values)  # (B, H, n, N, P)
        decay = total[..., -1].exp()[..., None, None]
        carried = scan_loop(decay.transpose(1, 2), states.transpose(1, 2)).transpose(1, 2)
        carried = torch.cat([torch.zeros_like(carried[:, :, :1]), carried[:, :, :-1]], 2)
        y = y + total.exp()[..., None] * (c @ carried)
    out: Tensor = y.flatten(2, 3)[:, :, :length].transpose(1, 2)
    return out

"""Attention with a learned bias on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class BiasedAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d) + bias) v; q, k, v (B, H, n, d), bias (B or 1, H, n, n), with the gradients of all four.

    SDPA has no fast backward pass on CPUs for a bias that requires a gradient. This one computes row by row of the
    batch, so that the scores stay in the processor's cache, and saves the attention weights, one (B, H, n, n) tensor. A
    bias shared by the batch is not expanded, and its gradient is accumulated row by row.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        weights = q.new_empty(*q.shape[:3], k.shape[2])
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        for row in range(len(q)):
            scores = torch.baddbmm(bias[row % len(bias)], q[row], k[row].mT, alpha=scale)
            torch.softmax(scores, -1, out=weights[row])
            out[row] = weights[row] @ v[row]
        ctx.save_for_backward(q, k, v, bias, weights, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """d scores = weights (d weights - sum(grad out)); the rest are products with it."""
        q, k, v, bias, weights, out = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        inner = (grad * out).sum(-1, keepdim=True)
        grad_q, grad_k, grad_v, grad_bias = (torch.empty_like(x) for x in (q, k, v, bias))
        is_shared = len(bias) < len(q)
        for row in range(len(q)):
            grad_v[row] = weights[row].mT @ grad[row]
            scores = (grad[row] @ v[row].mT).sub_(inner[row]).mul_(weights[row])
            torch.mul(scores @ k[row], scale, out=grad_q[row])
            torch.mul(scores.mT @ q[row], scale, out=grad_k[row])
            if is_shared and row:
                grad_bias[0] += scores
            else:
                grad_bias[row] = scores
        return grad_q, grad_k, grad_v, grad_bias

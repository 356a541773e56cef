"""Output heads: adaLN, masked language modelling, one linear layer, predicted difficulty."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.layers.mlp import ACTIVATIONS, Activation
from maskgen.nn.layers.norms import Norm
from maskgen.nn.modulation import modulate


class AdaHead(nn.Module):
    """DiT's last layer: LayerNorm with shift and scale from a condition, then Linear (arXiv 2212.09748).

    Both linear layers are set to zero by the network's initialisation.

    Args:
        width: D.
        n_out: outputs per token.
        cond_width: C; None is D.
        has_scale: the norm has a weight of its own (MicroDiT).
    """

    def __init__(self, width: int, n_out: int, cond_width: int | None = None, has_scale: bool = False) -> None:
        super().__init__()
        self.norm = Norm(has_weight=has_scale, has_bias=False).build(width)
        self.modulation = nn.Linear(cond_width or width, 2 * width)
        self.out = nn.Linear(width, n_out)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (B, L, D), hidden (B, C) -> (B, L, n_out)."""
        shift, scale = self.modulation(hidden)[:, None].chunk(2, -1)
        outputs: Tensor = self.out(modulate(self.norm(x), shift, scale))
        return outputs


class MlmHead(nn.Module):
    """(..., D) -> (..., V): linear, GELU, LayerNorm, then the output weights (BERT's head).

    Args:
        width: D.
        embedding: whose first V rows are the output weights, with one bias for each of its rows, as published; None for
            weights of its own.
        vocab_size: V.
        eps: of the norms.
        has_input_norm: a LayerNorm in front.
        is_detached: the embedding gets no gradient from the head (MAGE).
        activation: of the linear layer.
    """

    def __init__(
        self,
        width: int,
        embedding: nn.Embedding | None,
        vocab_size: int,
        eps: float,
        has_input_norm: bool,
        is_detached: bool = False,
        activation: Activation = "gelu_tanh",
    ) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(width, eps=eps) if has_input_norm else nn.Identity()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.vocab_size, self.is_detached, self.activation = vocab_size, is_detached, activation
        # In a list, so that the embedding is no submodule of the head.
        self.tied = [embedding] if embedding is not None else []
        self.bias = nn.Parameter(torch.zeros(vocab_size if embedding is None else embedding.num_embeddings))
        self.output = nn.Linear(width, vocab_size, bias=False) if embedding is None else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(ACTIVATIONS[self.activation](self.dense(self.input_norm(x))))
        weight = self.tied[0].weight[: self.vocab_size] if self.output is None else self.output.weight
        return F.linear(x, weight.detach() if self.is_detached else weight, self.bias[: self.vocab_size])


class LinearHead(nn.Module):
    """(..., D) -> (..., V): a norm, then one linear layer.

    Args:
        width: D.
        embedding: whose first V rows are the output weights, with one bias for each of its rows; None for weights of
            its own, without bias.
        vocab_size: V.
        norm: in front.
        cond_width: C of a condition that shifts and scales what the norm returns (adaLN); None without. An RMSNorm has
            a learned offset then (Halton-MaskGIT).
    """

    def __init__(
        self, width: int, embedding: nn.Embedding | None, vocab_size: int, norm: Norm, cond_width: int | None = None
    ) -> None:
        super().__init__()
        self.norm, self.vocab_size = norm.build(width), vocab_size
        self.modulation = nn.Linear(cond_width, 2 * width) if cond_width else None
        self.offset = nn.Parameter(torch.zeros(width)) if cond_width and norm.kind == "rms" else None
        self.tied = [embedding] if embedding is not None else []  # in a list: the embedding is no submodule of the head
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings)) if embedding is not None else None
        self.output = nn.Linear(width, vocab_size, bias=False) if embedding is None else None

    def normed(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """x (B, L, D) normalised, then shifted and scaled by hidden (B, C) if the head has a condition."""
        x = self.norm(x)
        x = x if self.offset is None else x + self.offset
        if self.modulation is None or hidden is None:
            return x
        shift, scale = self.modulation(hidden)[:, None].chunk(2, -1)
        return modulate(x, shift, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of what `normed` returns."""
        if self.output is not None:
            logits: Tensor = self.output(x)
            return logits
        assert self.bias is not None
        return F.linear(x, self.tied[0].weight[: self.vocab_size], self.bias[: self.vocab_size])


def maskgit_head(
    kind: Literal["mlm", "linear"],
    width: int,
    embedding: nn.Embedding | None,
    vocab_size: int,
    norm: Literal["pre", "post", "rms"],
    is_modulated: bool,
) -> MlmHead | LinearHead:
    """MaskGIT's head, after blocks with norms of this place and kind."""
    eps = {"post": 1e-12, "pre": 1e-6, "rms": 1e-5}[norm]
    if kind == "mlm":
        return MlmHead(width, embedding, vocab_size, eps, has_input_norm=norm != "post")
    own = Norm("rms" if norm == "rms" else "layer", eps)
    return LinearHead(width, embedding, vocab_size, own, width if is_modulated else None)


class LossHead(nn.Module):
    """(..., D) -> (...): predicted difficulty, which ranks tokens by their expected loss (HPM, arXiv 2304.05919).

    The paper trains a decoder for it; this one is a LayerNorm and a linear layer, at negligible cost.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        expected: Tensor = self.out(self.norm(x))[..., 0]
        return expected

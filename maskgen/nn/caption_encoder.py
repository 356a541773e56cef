"""The encoder of captions (MicroDiT, arXiv 2407.15811)."""

from __future__ import annotations

from torch import Tensor, nn

from maskgen.nn.layers.mlp import GatedMlp
from maskgen.nn.mixers.attention import AttentionBackend, AttentionSettings, QKNorm
from maskgen.nn.mixers.self_attention import SelfAttention
from maskgen.nn.published_blocks import NO_BIAS, PLAIN, init_attention


class CaptionEncoder(nn.Module):
    """Embedded captions -> tokens for cross-attention and a pooled vector: MLP, attention block, mean and MLP.

    Args:
        caption_width: C, width of the text encoder's vectors.
        width: D.
        heads: of the attention block.
        hidden: width of its feed-forward layer.
        backend: see `resolve_backend`.
    """

    def __init__(
        self, caption_width: int, width: int, heads: int, hidden: int, backend: AttentionBackend = "auto"
    ) -> None:
        super().__init__()
        self.project = _mlp(caption_width, width)
        self.attention_norm, self.mlp_norm = NO_BIAS.build(width), NO_BIAS.build(width)
        settings = AttentionSettings(
            width, heads, qk_norm=QKNorm(PLAIN, over="width"), qkv_bias=False, out_bias=False, backend=backend
        )
        self.attention = SelfAttention(settings, "q_kv")
        self.mlp = GatedMlp(width, hidden)
        self.pool = _mlp(width, width)
        self.init()

    def init(self) -> None:
        """The attention block starts as the identity."""
        for part in (*self.project, *self.pool):
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        init_attention(self.attention, 0.02)
        self.mlp.init(0.02)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.mlp.contract.weight)

    def forward(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, C) -> (B, S, D) and (B, D)."""
        x = self.project(captions)
        x = x + self.attention(self.attention_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x, self.pool(x.mean(1))


def _mlp(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.GELU("tanh"), NO_BIAS.build(width), nn.Linear(width, width))

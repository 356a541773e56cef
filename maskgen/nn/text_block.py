"""The block of text networks: MDLM, MD4, LLaDA, LLaDA2 and Dream are settings of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from maskgen.nn.block import Block, Residual
from maskgen.nn.initialisation import zero
from maskgen.nn.layers.mlp import Activation, GatedMlp, Mlp
from maskgen.nn.layers.norms import RMS_NORM, Norm
from maskgen.nn.layers.routed import ExpertSettings, RoutedExperts
from maskgen.nn.mixers.attention import AttentionBackend, AttentionSettings, QKNorm
from maskgen.nn.mixers.registry import ANYWHERE, Mixer, MixerPlace
from maskgen.nn.mixers.rotary import RotaryStyle
from maskgen.nn.mixers.self_attention import ATTENTION

TextMlp = Literal["gelu", "swiglu", "geglu", "glu"]
TextNorm = Literal["layer", "rms", "plain"]
GATES: dict[TextMlp, Activation] = {"swiglu": "silu", "geglu": "gelu_tanh", "glu": "sigmoid"}


@dataclass(frozen=True)
class TextBlockSettings:
    """Sizes and options of a block; see `TextSettings` for the arguments.

    Args:
        hidden: width of the feed-forward layer.
    """

    width: int
    heads: int
    hidden: int
    n_kv_heads: int = 0
    mlp: TextMlp = "gelu"
    norm: TextNorm = "layer"
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    rotary: RotaryStyle = "interleaved"
    dropout: float = 0.0
    attention_dropout: float | None = None
    backend: AttentionBackend = "auto"
    mixer: Mixer = ATTENTION
    qk_norm_eps: float | None = None
    experts: ExpertSettings | None = None

    def build_norm(self) -> Norm:
        """Settings of the norms."""
        if self.norm == "rms":
            return Norm("rms", self.norm_eps)
        return Norm("layer", self.norm_eps, has_weight=self.norm == "layer", has_bias=False)

    def attention(self) -> AttentionSettings:
        """Settings of self-attention."""
        return AttentionSettings(
            self.width,
            self.heads,
            n_kv_heads=self.n_kv_heads,
            dropout=self.dropout,
            qk_norm=QKNorm(replace(RMS_NORM, eps=self.qk_norm_eps)) if self.qk_norm else None,
            qkv_bias=self.qkv_bias,
            out_bias=False,
            rotary=self.rotary,
            backend=self.backend,
            weight_dropout=self.attention_dropout,
        )

    def build_mlp(self, layer: int) -> nn.Module:
        """The feed-forward layer of a block, counted from 0."""
        if self.experts is not None and layer >= self.experts.n_dense:
            return RoutedExperts(self.width, self.experts, self.dropout)
        if self.mlp == "gelu":
            return Mlp(self.width, self.hidden, self.dropout, "gelu_tanh")
        return GatedMlp(self.width, self.hidden, self.dropout, GATES[self.mlp])


def text_block(settings: TextBlockSettings, cond_width: int = 0, place: MixerPlace = ANYWHERE) -> Block:
    """MDLM's block at its defaults (arXiv 2406.07524); adaLN-zero with a `cond_width` above 0."""
    mixer = settings.mixer.build(settings.attention(), place)
    mlp = settings.build_mlp(place.layer)
    modulation = zero(nn.Linear(cond_width, 6 * settings.width)) if cond_width else None
    return Block(settings.width, mixer, mlp, Residual(settings.build_norm()), modulation)

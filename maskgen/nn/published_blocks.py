"""The blocks of published networks as settings of `Block`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from maskgen.nn.block import Block, Cross, Residual
from maskgen.nn.initialisation import zero
from maskgen.nn.layers.mlp import GatedMlp, Mlp, gated_width
from maskgen.nn.layers.moe import ExpertChoice
from maskgen.nn.layers.norms import Norm
from maskgen.nn.mixers.attention import AttentionBackend, AttentionSettings, QKNorm
from maskgen.nn.mixers.base import TokenMixer
from maskgen.nn.mixers.cross_attention import CrossAttention
from maskgen.nn.mixers.registry import ANYWHERE, Mixer, MixerPlace
from maskgen.nn.mixers.self_attention import ATTENTION, SelfAttention

PLAIN = Norm(has_weight=False, has_bias=False)
"""The LayerNorm whose weight and bias come from a condition."""
NO_BIAS = Norm(has_bias=False)


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of a block.

    Args:
        width: D.
        heads: of self-attention.
        mlp_ratio: width of the feed-forward layer over D.
        dropout: of attention output and feed-forward output, and of attention weights unless that is given.
        backend: of attention.
        qk_norm: RMS-normalised queries and keys of each head.
        attention_dropout: of attention weights; None for `dropout`.
        mixer: how tokens are mixed.
        place: of the block in the network.
        head_width: of a head; 0 is width / heads.
    """

    width: int
    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    backend: AttentionBackend = "auto"
    qk_norm: bool = False
    attention_dropout: float | None = None
    mixer: Mixer = ATTENTION
    place: MixerPlace = ANYWHERE
    head_width: int = 0

    def at(self, layer: int, depth: int, length: int = 0) -> BlockSizes:
        """Sizes of one block of a stack of `depth` over rows of `length` tokens (0 for any)."""
        return replace(self, place=MixerPlace(length, layer, depth))

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return int(self.width * self.mlp_ratio)

    def attention(self, has_bias: bool = True) -> AttentionSettings:
        """Settings of attention over the block's tokens."""
        return AttentionSettings(
            self.width,
            self.heads,
            head_width=self.head_width,
            dropout=self.dropout,
            qk_norm=QKNorm() if self.qk_norm else None,
            qkv_bias=has_bias,
            out_bias=has_bias,
            backend=self.backend,
            weight_dropout=self.attention_dropout,
        )

    def token_mixer(self, has_bias: bool = True) -> TokenMixer:
        """The mixer of the block, its projections with biases or without."""
        return self.mixer.build(self.attention(has_bias), self.place)


def bert_block(sizes: BlockSizes, eps: float = 1e-12) -> Block:
    """BERT's: LayerNorm after each branch, tanh GELU (MaskGIT, arXiv 2202.04200)."""
    mixer = sizes.token_mixer()
    mlp = Mlp(sizes.width, sizes.hidden, sizes.dropout, "gelu_tanh")
    return Block(sizes.width, mixer, mlp, Residual(Norm(eps=eps), "post"))


def vit_block(sizes: BlockSizes, is_modulated: bool = False, layer_scale: float = 0.0) -> Block:
    """ViT's: LayerNorm before each branch (arXiv 2010.11929); with `is_modulated` it has no weights of its own.

    The vectors of the modulation are then given to `Block.forward`. `layer_scale` as in `Residual`.
    """
    mixer = sizes.token_mixer()
    mlp = Mlp(sizes.width, sizes.hidden, sizes.dropout)
    return Block(sizes.width, mixer, mlp, Residual(PLAIN if is_modulated else Norm(), layer_scale=layer_scale))


def uvit_block(sizes: BlockSizes) -> Block:
    """U-ViT's (arXiv 2209.12152): ViT's without bias in queries, keys and values."""
    mixer = SelfAttention(replace(sizes.attention(), qkv_bias=False))
    return Block(sizes.width, mixer, Mlp(sizes.width, sizes.hidden, sizes.dropout), Residual(Norm(eps=1e-5)))


def dit_block(sizes: BlockSizes, cond_width: int) -> Block:
    """DiT's: adaLN-zero from a condition of width C, tanh GELU (arXiv 2212.09748). It starts as the identity."""
    mixer = sizes.token_mixer()
    mlp = Mlp(sizes.width, sizes.hidden, sizes.dropout, "gelu_tanh")
    modulation = nn.Linear(cond_width, 6 * sizes.width)
    return Block(sizes.width, mixer, mlp, Residual(PLAIN, is_fused=True), zero(modulation))


def llama_block(sizes: BlockSizes, eps: float = 1e-5) -> Block:
    """LLaMA's, for all tokens at once: RMSNorm, no biases, SwiGLU (MaskGIL); queries and keys are normalised over the
    width, without weights, if they are (Halton-MaskGIT, arXiv 2503.17076).

    The vectors of a modulation are given to `Block.forward`; the norms keep their weights.
    """
    qk_norm = QKNorm(Norm("rms", eps, has_weight=False), over="width") if sizes.qk_norm else None
    mixer = sizes.mixer.build(replace(sizes.attention(has_bias=False), qk_norm=qk_norm), sizes.place)
    mlp = GatedMlp(sizes.width, gated_width(sizes.hidden, 256), sizes.dropout)
    return Block(sizes.width, mixer, mlp, Residual(Norm("rms", eps)))


NormKind = Literal["pre", "post", "rms"]


def token_blocks(norm: NormKind, sizes: BlockSizes, depth: int, length: int, is_modulated: bool) -> nn.ModuleList:
    """MaskGIT's blocks by the place and kind of their norms, over rows of `length` tokens with the class token."""

    def block(one: BlockSizes) -> Block:
        if norm == "rms":
            return llama_block(one)
        return bert_block(one) if norm == "post" else vit_block(one, is_modulated)

    return nn.ModuleList(block(sizes.at(layer, depth, length)) for layer in range(depth))


def require_condition(norm: str, condition: str, qk_norm: bool, has_null_label: bool, has_time: bool) -> None:
    """Check that norm, class condition and time condition go together.

    Raises:
        ValueError: they do not.
    """
    if norm == "post" and (condition == "adaln" or qk_norm):
        raise ValueError("norm post goes with condition token and without qk_norm; use norm pre for the others")
    if condition == "adaln" and not has_null_label:
        raise ValueError("has_null_label false goes with condition token; adaln always has the row")
    if has_time and condition != "adaln":
        raise ValueError("has_time goes with condition adaln; use that, or has_time false")


def cross_block(sizes: BlockSizes, memory_width: int, has_self_attention: bool) -> Block:
    """Cross-attention to a memory, then self-attention (DiffMAE, arXiv 2304.03283) or none (CrossMAE, 2401.14391)."""
    cross = Cross(CrossAttention(sizes.attention(), memory_width))
    mixer = SelfAttention(sizes.attention()) if has_self_attention else None
    return Block(sizes.width, mixer, Mlp(sizes.width, sizes.hidden, sizes.dropout), cross=cross)


@dataclass(frozen=True)
class CaptionedSizes:
    """Sizes of MicroDiT's block (arXiv 2407.15811).

    Args:
        width: D.
        inner: width of queries, keys and values in self-attention.
        head_width: of a head; divides `inner` and `width`.
        hidden: width of the feed-forward layer, or of each expert.
        n_experts, capacity: of an `ExpertChoice`; 0 experts is a dense `GatedMlp`.
        cond_width: C, width of the condition.
        has_captions: whether the block attends to captions.
        init_std: standard deviation of the weights that write to the tokens.
        backend: of attention.
    """

    width: int
    inner: int
    head_width: int
    hidden: int
    n_experts: int
    capacity: float
    cond_width: int
    has_captions: bool
    init_std: float
    backend: AttentionBackend

    def attention(self, inner: int) -> AttentionSettings:
        """Settings of attention with queries of width `inner`; the norms go over all heads, so a head can be silent."""
        return AttentionSettings(
            self.width,
            inner // self.head_width,
            head_width=self.head_width,
            qk_norm=QKNorm(PLAIN, over="width"),
            qkv_bias=False,
            out_bias=False,
            backend=self.backend,
        )

    def mlp(self) -> GatedMlp | ExpertChoice:
        """The feed-forward layer."""
        if self.n_experts:
            return ExpertChoice(self.width, self.hidden, self.n_experts, self.capacity)
        return GatedMlp(self.width, self.hidden)


def captioned_block(sizes: CaptionedSizes) -> Block:
    """MicroDiT's: adaLN-zero as DiT's, SwiGLU or experts, and cross-attention to captions, not modulated, between.

    The modulation starts at zero: only captions then change the tokens.
    """
    mixer = SelfAttention(sizes.attention(sizes.inner), "q_kv")
    cross = CrossAttention(sizes.attention(sizes.width), sizes.width) if sizes.has_captions else None
    mlp = sizes.mlp()
    modulation = zero(nn.Linear(sizes.cond_width, 6 * sizes.width))
    init_attention(mixer, sizes.init_std)
    if cross is not None:
        init_attention(cross, sizes.init_std)
    mlp.init(sizes.init_std)
    order = ("attention_norm", "mlp_norm", "attention", "caption_norm", "caption_attention", "mlp")
    return Block(
        sizes.width,
        mixer,
        mlp,
        Residual(NO_BIAS, is_fused=True, order=order),
        modulation,
        None if cross is None else Cross(cross, "caption_attention", "caption_norm", is_first=False),
    )


def init_attention(layer: SelfAttention | CrossAttention, std: float) -> None:
    """MicroDiT's start: queries, keys and values normal with standard deviation 0.02, the output with `std`."""
    for part in (layer.q, layer.kv):
        assert part is not None, "the layout q_kv"
        nn.init.normal_(part.weight, std=0.02)
    nn.init.normal_(layer.out.weight, std=std)


@dataclass(frozen=True)
class ViTSizes:
    """Sizes of a stack of ViT blocks (arXiv 2010.11929); `layer_scale` as in `Residual`.

    Raises:
        ValueError: sizes that are not possible.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    backend: AttentionBackend = "auto"
    head_width: int = 0
    layer_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.layer_scale < 0:
            raise ValueError(f"layer_scale must be at least 0 (0 = none), got {self.layer_scale}")
        if min(self.width, self.depth, self.heads) < 1 or not self.mlp_ratio > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                "width, depth, heads and mlp_ratio must be positive and dropout in [0, 1), got "
                f"{self.width}, {self.depth}, {self.heads}, {self.mlp_ratio} and {self.dropout}"
            )
        if not self.head_width and self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width {self.width} and heads {self.heads}")

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> ViTSizes:
        """The sizes among a network's keys.

        Raises:
            ValueError: sizes that are not possible.
        """
        return cls(*(keys[name] for name in ("width", "depth", "heads", "mlp_ratio", "dropout")))

    @property
    def block(self) -> BlockSizes:
        """Sizes of one block."""
        sizes = (self.width, self.heads, self.mlp_ratio, self.dropout, self.backend)
        return BlockSizes(*sizes, head_width=self.head_width)

    def blocks(self) -> nn.ModuleList:
        """The stack."""
        return nn.ModuleList(vit_block(self.block, layer_scale=self.layer_scale) for _ in range(self.depth))

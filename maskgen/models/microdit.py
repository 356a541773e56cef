"""MicroDiT: a diffusion transformer for a small budget, with captions, experts and deferred masking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.check import CheckContext
from maskgen.core.predictions import Condition, Field, labels_of
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.trunks import DeferredMasking, NaiveMasking, NoMasking, Switch, check_masking
from maskgen.nn.caption_encoder import CaptionEncoder
from maskgen.nn.embeddings import LabelEmbedding, TimeEmbedding, sincos_2d, sincos_over
from maskgen.nn.heads import AdaHead
from maskgen.nn.initialisation import zero
from maskgen.nn.layers.mlp import gated_width
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.published_blocks import CaptionedSizes, captioned_block


@MODELS.register("microdit")
class MicroDiT(nn.Module):
    """Tokens (B, L, D) of a Gaussian process, with captions -> Field (MicroDiT, arXiv 2407.15811).

    Early blocks are narrower than late ones, every second feed-forward layer is a mixture of experts, and a patch mixer
    sees all tokens before some are dropped. The defaults are the published XL; Tiny is width 512, depth 16, a mixer of
    depth 4.

    Args:
        token_width: channels of a token.
        grid: (h, w) of the tokens, L = h w.
        n_classes: labels, used without captions; 0 for none.
        caption_width: of embedded captions; 0 for a network that takes none.
        width, depth, heads: of the backbone; heads of all its parts are width / heads wide.
        masking: `deferred`, its mixer with a width of its own; `naive` or `none` have no mixer.
        qkv_ratio: width of self-attention over `width`, of the first and the last block, linear between.
        mlp_ratio: the same of the feed-forward layers.
        mixer_ratio: of the mixer's feed-forward layers and the caption encoder's.
        n_experts: in every second block but the last; 0 for none.
        capacity: experts that select a token, on average.
        multiple_of: widths of feed-forward layers are rounded up to multiples of it.
        position_spacing: step between the positions of neighbouring tokens; published: 1 at 256 pixels, 0.5 at 512, so
            that both resolutions have positions 0 to 16.
        attention: `auto`, `sdpa` or `xformers`.
    """

    traits = NetworkTraits(
        objectives=("denoising",),
        tokens=("continuous",),
        streams=("image",),
        conditions=("class", "caption"),
        is_field=True,
        has_fixed_grid=False,
    )
    positions: Tensor

    def __init__(
        self,
        token_width: int,
        grid: tuple[int, int],
        n_classes: int = 0,
        caption_width: int = 0,
        width: int = 1024,
        depth: int = 28,
        heads: int = 16,
        masking: Switch = DeferredMasking(depth=6, width=768),
        qkv_ratio: tuple[float, float] = (0.5, 1.0),
        mlp_ratio: tuple[float, float] = (0.5, 4.0),
        mixer_ratio: float = 4.0,
        n_experts: int = 8,
        capacity: float = 2.0,
        multiple_of: int = 256,
        position_spacing: float = 1.0,
        attention: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        _require_sizes(width, depth, heads, multiple_of)
        if not isinstance(masking, NoMasking | NaiveMasking | DeferredMasking):
            raise ValueError("masking: microdit takes none, naive or deferred; maskdit and mdt are of model dit")
        _require_ratios((*qkv_ratio, *mlp_ratio, mixer_ratio, position_spacing), n_experts)
        self.masking, self.width, self.base_grid, self.depth = masking, width, grid, depth
        self.head_width, self.multiple_of, self.backend = width // heads, multiple_of, attention
        self.n_experts, self.capacity = n_experts, capacity
        self.caption_width, self.position_spacing = caption_width, position_spacing
        kinds = {"class": n_classes, "caption": caption_width}
        conditions = tuple(name for name in self.traits.conditions if kinds[name])
        self.traits = replace(self.traits_for({"masking": masking}), conditions=conditions)
        self.embedding = nn.Linear(token_width, width)
        self.time = TimeEmbedding(width, 512, scale=1.0, gelu=True)
        self.labels = LabelEmbedding(n_classes, width) if n_classes and not caption_width else None
        self._add_captions_and_mixer(heads, mixer_ratio)
        ratios = zip(spread(qkv_ratio, depth), spread(mlp_ratio, depth), strict=True)
        self.blocks = nn.ModuleList(captioned_block(self._block(at, *pair)) for at, pair in enumerate(ratios))
        self.head = AdaHead(width, token_width, has_scale=True)
        self.register_buffer("positions", sincos_2d(grid, width, (position_spacing,) * 2), persistent=False)
        self._init()

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        return replace(cls.traits, drops_tokens=keys["masking"].drops)

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check keys of a recipe against dropped tokens.

        Raises:
            ValueError: they do not go together.
        """
        check_masking(context)

    def _add_captions_and_mixer(self, heads: int, ratio: float) -> None:
        """The caption encoder, and the patch mixer of deferred masking, projected to where its width differs."""
        caption_sizes = (self.caption_width, self.width, heads, self._hidden(self.width, ratio), self.backend)
        self.captions = CaptionEncoder(*caption_sizes) if self.caption_width else None
        sizes = self.masking if isinstance(self.masking, DeferredMasking) else None
        width = (sizes.width if sizes else 0) or self.width
        head_width = width // sizes.heads if sizes and sizes.heads else self.head_width
        if width % head_width:
            raise ValueError(f"masking: the mixer's width must be a multiple of {head_width}, a head's, got {width}")
        std = 0.02 / (2 * self.depth) ** 0.5
        self.mixer_in, self.mixer_out = _bridge(self.width, width), _bridge(width, self.width)
        self.mixer_captions = _bridge(self.width, width) if self.caption_width else nn.Identity()
        self.mixer_blocks = nn.ModuleList(
            captioned_block(self._sizes(width, width, head_width, ratio, self._is_mixture(at), std))
            for at in range(sizes.depth if sizes else 0)
        )

    def _block(self, at: int, qkv_ratio: float, mlp_ratio: float) -> CaptionedSizes:
        """Sizes of a block of the backbone; attention is rounded up to multiples of two heads below the full width."""
        inner = self.width if qkv_ratio == 1 else round_up(self.width * qkv_ratio, 2 * self.head_width)
        is_mixture = self._is_mixture(at) and at < self.depth - 1
        return self._sizes(self.width, inner, self.head_width, mlp_ratio, is_mixture, 0.02 / (2 * (at + 1)) ** 0.5)

    def _sizes(
        self, width: int, inner: int, head_width: int, ratio: float, is_mixture: bool, std: float
    ) -> CaptionedSizes:
        hidden = round_up(width * ratio, self.multiple_of) if is_mixture else self._hidden(width, ratio)
        experts = self.n_experts if is_mixture else 0
        return CaptionedSizes(
            width, inner, head_width, hidden, experts, self.capacity, self.width, bool(self.caption_width), std,
            self.backend,
        )  # fmt: skip

    def _is_mixture(self, at: int) -> bool:
        return self.n_experts > 0 and at % 2 == 1

    def _hidden(self, width: int, ratio: float) -> int:
        return gated_width(int(width * ratio), self.multiple_of)

    def _init(self) -> None:
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.zeros_(self.embedding.bias)
        for part in self.time.mlp:
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.02)
        zero(self.head.modulation)
        zero(self.head.out)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Work on another grid of the same image: positions are scaled to cover it."""
        spacing = (self.position_spacing,) * 2
        self.positions = sincos_over(self.base_grid, grid, self.width, spacing).to(self.positions.device)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
    ) -> Field:
        """x_t (B, L, D) and t (B,) as the process scales them -> Field of all tokens, or of the kept ones.

        Raises:
            ValueError: a subset under `masking: none`, or a condition without captions for a network that takes them.
        """
        if subset is not None and not self.masking.drops:
            raise ValueError("masking none drops no tokens; take naive or deferred, or keep_ratio 1")
        hidden, captions = self._condition(t, cond)
        x = self.mixer_in(self.embedding(x_t) + self.positions)
        mixer_captions = None if captions is None else self.mixer_captions(captions)
        for block in self.mixer_blocks:
            x = block(x, hidden, memory=mixer_captions)
        if subset is not None:
            x = subset.gather(x)  # before the projection: it is then of the kept tokens only
        x = self.mixer_out(x)
        for block in self.blocks:
            x = block(x, hidden, memory=captions)
        return Field(self.head(x, hidden), subset=subset)

    def _condition(self, t: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor | None]:
        """(B, D) for the modulations, and captions (B, S, D) to attend to."""
        hidden = self.time(t)
        captions = None
        if self.captions is not None:
            captions, pooled = self.captions(self._embedded(t, cond))
            hidden = hidden + pooled
        elif self.labels is not None:
            hidden = hidden + self.labels(labels_of(cond, t))
        return F.gelu(hidden, approximate="tanh"), captions

    def _embedded(self, t: Tensor, cond: Condition | None) -> Tensor:
        """Captions (B, S, C); no condition is one token of zeros, equivalent to any number of them."""
        if cond is None:
            return self.embedding.weight.new_zeros(len(t), 1, self.caption_width)
        if cond.captions is None:
            raise ValueError("the network needs captions, the condition has none")
        return cond.captions


def _require_sizes(width: int, depth: int, heads: int, multiple_of: int) -> None:
    """Check the sizes of the backbone.

    Raises:
        ValueError: they are not possible.
    """
    if min(width, depth, heads, multiple_of) < 1 or width % heads:
        raise ValueError(
            "width, depth, heads and multiple_of must be positive and width a multiple of heads, got "
            f"{width}, {depth}, {heads} and {multiple_of}"
        )


def _require_ratios(ratios: tuple[float, ...], n_experts: int) -> None:
    """Check the ratios of widths and the number of experts.

    Raises:
        ValueError: they are not possible.
    """
    if min(ratios) <= 0 or n_experts < 0:
        raise ValueError(
            "position_spacing, qkv_ratio, mlp_ratio and mixer_ratio must be positive and n_experts at least 0"
        )


def spread(ends: tuple[float, float], n: int) -> Iterator[float]:
    """n numbers from the first end to the last, evenly; the last where n is 1."""
    first, last = ends
    return (last if at == n - 1 else first + at * ((last - first) / (n - 1)) for at in range(n))


def round_up(value: float, multiple: int) -> int:
    """The whole part of `value`, rounded up to a multiple."""
    return -(-int(value) // multiple) * multiple


def _bridge(width_in: int, width_out: int) -> nn.Module:
    """LayerNorm and Linear between two widths, identity between equal ones."""
    if width_in == width_out:
        return nn.Identity()
    linear = nn.Linear(width_in, width_out, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return nn.Sequential(nn.LayerNorm(width_in, eps=1e-6, bias=False), linear)

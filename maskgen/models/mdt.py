"""The masked diffusion transformer: a DiT that is trained on all tokens and, in a second pass, on some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.subset import TokenSubset
from maskgen.models.trunks import SWITCHES, Sizes, Switch, Trunk
from maskgen.nn.checkpointing import Recomputable
from maskgen.nn.embeddings import sincos_2d
from maskgen.nn.heads import AdaHead
from maskgen.nn.mixers.relative import RelativeBias, relative_index
from maskgen.nn.published_blocks import dit_block


class MDTBlock(Recomputable):
    """DiT's block with a relative position bias; with `has_skip` it first projects [x, skip] to the width."""

    def __init__(self, sizes: Sizes, has_skip: bool = False) -> None:
        super().__init__()
        self.has_skip = has_skip
        self.join = nn.Linear(2 * sizes.width, sizes.width) if has_skip else None
        self.bias = RelativeBias(sizes.grid, sizes.heads)
        self.block = dit_block(sizes.block(sizes.width, sizes.heads), sizes.width)

    def forward(self, x: Tensor, hidden: Tensor, index: Tensor, skip: Tensor | None = None) -> Tensor:
        """x, skip (B, n, D), hidden (B, D), index (B or 1, n, n) of the tokens' pairs -> (B, n, D)."""
        if self.join is not None and skip is not None:
            of_x, of_skip = self.join.weight.chunk(2, 1)  # without concatenating [x, skip]
            x = F.linear(x, of_x, self.join.bias) + F.linear(skip, of_skip)
        out: Tensor = self.block(x, hidden, mask=self.bias(index))
        return out


class MDTTrunk(Trunk):
    """An encoder over the kept tokens, a block that fills in the dropped ones (side-interpolater), a decoder over all.

    Without dropped tokens neither that block nor the mask token is used.
    """

    def __init__(self, sizes: Sizes, decoder_depth: int, has_skips: bool) -> None:
        super().__init__()
        depth = sizes.depth - decoder_depth
        if depth < 1 or (has_skips and depth % 2):
            raise ValueError(
                f"masking mdt: {sizes.depth} blocks less {decoder_depth} of the decoder leave {depth} for the encoder; "
                f"it needs {'an even number of them (version 2)' if has_skips else 'one or more'}"
            )
        self.grid = sizes.grid
        late = depth // 2 if has_skips else depth
        self.encoder_blocks = nn.ModuleList(MDTBlock(sizes, has_skip=i >= late) for i in range(depth))
        self.side_block = MDTBlock(sizes)
        self.mask_token = nn.Parameter(torch.zeros(sizes.width))
        self.decoder_positions = nn.Parameter(sincos_2d(sizes.grid, sizes.width))
        self.decoder_blocks = nn.ModuleList(MDTBlock(sizes, has_skips) for _ in range(decoder_depth))
        self.head = AdaHead(sizes.width, sizes.n_out)

    def set_grid(self, grid: tuple[int, int]) -> None:
        raise ValueError(f"masking mdt has positions of its grid {self.grid} and cannot change to {grid}")

    def forward(self, x: Tensor, hidden: Tensor, subset: TokenSubset | None) -> Tensor:
        everywhere, noisy = relative_index(self.grid, device=x.device), x
        if subset is None:
            x = self._encode(x, hidden, everywhere) + self.decoder_positions
            if torch.is_grad_enabled():
                idle = (p for p in (self.mask_token, *self.side_block.parameters()) if not hasattr(p, "placements"))
                x = _Held.apply(x, *idle)  # sharded parameters (FSDP) are not waited for
        else:
            x = self._encode(subset.gather(x), hidden, relative_index(self.grid, subset.keep, x.device))
            x = subset.scatter(x, self.mask_token.to(x.dtype)) + self.decoder_positions
            x = torch.where(subset.is_kept()[..., None], x, self.side_block(x, hidden, everywhere))
        for block in self.decoder_blocks:
            x = block(x, hidden, everywhere, noisy)
        outputs: Tensor = self.head(x, hidden)
        return outputs

    def _encode(self, x: Tensor, hidden: Tensor, index: Tensor) -> Tensor:
        """Outputs of the first half are skip connections into the second half, in reverse order (MDTv2's U-Net)."""
        skips: list[Tensor] = []
        for block in self.encoder_blocks:
            if not block.has_skip:
                x = block(x, hidden, index)
                skips.append(x)
            else:
                x = block(x, hidden, index, skips.pop())
        return x


class _Held(torch.autograd.Function):
    """Identity on x that gives unused parameters a zero gradient: data-parallel processes wait for every gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(p.new_zeros(()).expand_as(p) for p in ctx.parameters)


@SWITCHES.register("mdt")
@dataclass(frozen=True)
class MDTMasking(Switch):
    """A full pass and one with tokens dropped, which are filled in before the decoder (MDT, arXiv 2303.14389).

    A step's kept share is `train.keep_ratio` less up to `objective.keep_spread`: 0.7 and 0.2 in version 2.

    Args:
        version: 2 has skips: in the encoder from its first half to its second, and from the input to the decoder.
        depth: blocks of the decoder, out of the network's; published: 2 in version 1, 4 in version 2, 6 in its S and B.
    """

    version: Literal[1, 2] = 2
    depth: int = 4
    answers_all = True
    is_two_pass = True
    fixed_grid = True
    needs_attention = True

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"the decoder of masking mdt needs depth 1 or more, got {self.depth}")

    def trunk(self, sizes: Sizes) -> Trunk:
        return MDTTrunk(sizes, self.depth, has_skips=self.version == 2)

"""Heads of networks of masked tokens: diffusion of continuous tokens, or logits of discrete ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from maskgen.core.predictions import Categorical
from maskgen.core.registry import Registry
from maskgen.core.traits import TokenKind
from maskgen.nn.token_mlp import TokenMlp
from maskgen.processes import Gaussian
from maskgen.processes.diffusion_head import DiffusionHead
from maskgen.schedules import Betas


class Head(ABC):
    """The key `head` of a network; a final class is a frozen dataclass whose fields are recipe keys.

    Attributes:
        tokens: the kind it predicts.
    """

    tokens: ClassVar[TokenKind]

    @abstractmethod
    def build(self, z_width: int, vocab_size: int, token_width: int) -> TokenHead:
        """The layers, for tokens of `vocab_size` V or `token_width` D."""


class TokenHead(nn.Module, ABC):
    """Vectors z, (M, C) or (B, L, C) -> a prediction."""

    @abstractmethod
    def forward(self, z: Tensor, where: Tensor | None) -> Categorical | DiffusionHead:
        """z at the positions `where` (B, L), or at all."""


HEADS: Registry[Head] = Registry("head", Head, home="maskgen.models:HEADS")

COSINE_EPS = Gaussian(Betas("cosine"), target="eps", steps=1000)
"""The process of the published heads (arXiv 2406.11838, section 4.3)."""


@HEADS.register("diffusion")
@dataclass(frozen=True)
class Diffusion(Head):
    """A small diffusion of each token, with a learned variance (MAR, arXiv 2406.11838, section 3.2).

    Published widths and depths: 1024 and 6 (MAR-B), 1280 and 8 (L), 1536 and 12 (H), 1024 and 3 (eMIGM-XS and -S).

    Args:
        width, depth: of its network.
        process: the noising process of a token.
        has_variance: the reverse step's variance is learned.
    """

    tokens: ClassVar[TokenKind] = "continuous"

    width: int = 1024
    depth: int = 6
    process: Gaussian = COSINE_EPS
    has_variance: bool = True

    def __post_init__(self) -> None:
        if min(self.width, self.depth) < 1:
            raise ValueError(f"width and depth must be positive, got {self.width} and {self.depth}")
        if self.has_variance:
            self.process.require_reverse_steps()

    def build(self, z_width: int, vocab_size: int, token_width: int) -> TokenHead:  # noqa: ARG002 - one for all heads
        n_out = token_width * (1 + self.has_variance)
        return DiffusionLayers(self, TokenMlp(token_width, n_out, z_width, self.width, self.depth), token_width)


class DiffusionLayers(TokenHead):
    """z -> `DiffusionHead`, which runs the network in its loss and in sampling."""

    def __init__(self, settings: Diffusion, net: TokenMlp, token_width: int) -> None:
        super().__init__()
        self.net, self.process, self.token_width = net, settings.process, token_width
        self.has_variance = settings.has_variance

    def forward(self, z: Tensor, where: Tensor | None) -> DiffusionHead:
        return DiffusionHead(z, self.net, self.process, self.token_width, where, self.has_variance)


@HEADS.register("categorical")
@dataclass(frozen=True)
class Categories(Head):
    """Logits by one linear layer: the discrete end of eMIGM's design space (arXiv 2503.07197)."""

    tokens: ClassVar[TokenKind] = "discrete"

    def build(self, z_width: int, vocab_size: int, token_width: int) -> TokenHead:  # noqa: ARG002
        return CategoricalLayers(nn.Linear(z_width, vocab_size))


class CategoricalLayers(TokenHead):
    """z -> `Categorical`."""

    def __init__(self, net: nn.Linear) -> None:
        super().__init__()
        self.net = net
        nn.init.xavier_uniform_(net.weight)
        nn.init.zeros_(net.bias)

    def forward(self, z: Tensor, where: Tensor | None) -> Categorical:
        return Categorical(self.net(z), where)

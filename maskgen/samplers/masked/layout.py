"""Layout: which positions are decoded together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from maskgen.core.registry import Registry


class Layout(ABC):
    """Splits a sequence into spans that are decoded one after the other."""

    @abstractmethod
    def spans(self, length: int) -> list[tuple[int, int]]:
        """[start, end) of each span, in decoding order, covering 0..length."""


LAYOUTS: Registry[Layout] = Registry("layout", Layout, home="maskgen.samplers.masked:LAYOUTS")


@LAYOUTS.register("full")
@dataclass(frozen=True)
class Full(Layout):
    """All positions at once."""

    def spans(self, length: int) -> list[tuple[int, int]]:
        return [(0, length)]


@LAYOUTS.register("blocks")
@dataclass(frozen=True)
class Blocks(Layout):
    """Left to right in blocks of `block_length` (semi-autoregressive: LLaDA, section 2.4); steps are shared out.

    Each block has an equal share, also one whose tokens are known, and its own time from 1 to 0: a network that reads
    the time of the whole text is told something else.
    """

    block_length: int = 32

    def __post_init__(self) -> None:
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")

    def spans(self, length: int) -> list[tuple[int, int]]:
        return [(start, min(start + self.block_length, length)) for start in range(0, length, self.block_length)]

"""Rows of tokens <-> their entropy code under a model."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import Checkpoint, CheckpointError, load_system
from maskgen.codec.coder import Code, RangeDecoder, RangeEncoder
from maskgen.codec.slices import Sliced
from maskgen.core.errors import UserError
from maskgen.core.predictions import NULL, Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout
from maskgen.core.traits import NetworkTraits, traits_of
from maskgen.recipes.build import System
from maskgen.samplers import MaskedSampler
from maskgen.samplers.guidance import Guidance, training_time
from maskgen.samplers.masked.layout import Blocks, Groups
from maskgen.samplers.masked.order import Entropy, Halton, Order, Random
from maskgen.samplers.masked.source import Decoded, Forced, Sampled, TokenSource
from maskgen.samplers.masked.unmasking import One, Scheduled
from maskgen.schedules import Linear

ORDERS: dict[str, Order] = {"halton": Halton(), "random": Random(), "entropy": Entropy()}
"""Orders of the tokens of a row: of low discrepancy, drawn from the number of the row, or lowest entropy first."""

MOST_NUMBERS = 2**26
"""Largest number of probabilities, rows x tokens x vocabulary, in a piece."""
MOST_ROWS = 256


@dataclass(frozen=True)
class Coding:
    """How rows are coded; a file stores it.

    Args:
        piece: rows whose code is one piece; a piece is decoded as a whole.
        order: of the tokens; networks that generate in blocks have their own.
        steps: groups of tokens that are coded together, each given the groups before it; more take longer and need
            fewer bits.
    """

    piece: int
    order: str
    steps: int

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UserError(f"order {self.order}: choose from {', '.join(ORDERS)}")
        if not 1 <= self.piece <= MOST_ROWS or self.steps < 1:
            raise UserError(f"a piece has 1 to {MOST_ROWS} rows and at least one step, got {self.piece}, {self.steps}")


class RowCoder:
    """Codes rows of tokens with the probabilities of a checkpoint, in float64 on the CPU.

    The code of a row depends on the checkpoint and the `Coding` only, not on how many rows are computed together, nor
    on the number of threads (see `codec/coder.py`). Class-conditional networks are given no class.

    Args:
        checkpoint: of a generator of discrete tokens.
        batch_size: rows that are computed together.

    Raises:
        CheckpointError: another checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, batch_size: int = 64) -> None:
        if checkpoint.recipe.task != "generator":
            raise CheckpointError(f"{checkpoint.path} is a {checkpoint.recipe.task}; a generator is needed to code")
        system = load_system(checkpoint)
        assert system.layout is not None
        if not system.layout.has_discrete_tokens:
            raise CheckpointError(f"{checkpoint.path} has continuous tokens, which have no probabilities to code by")
        self.system: System = system
        self.layout: TokenLayout = system.layout
        self.traits: NetworkTraits = traits_of(system.network)
        if self.traits.takes_classes and not self.traits.has_null_label:
            raise CheckpointError(f"{checkpoint.path} needs a class for every row (has_null_label false): not coded")
        self._network = Sliced(system.network.double(), batch_size)

    def coding(self, order: str | None = None, steps: int | None = None) -> Coding:
        """The settings for given choices, None for the defaults.

        Raises:
            UserError: an order or number of steps that this network does not have.
        """
        is_fixed = self.traits.block_length is not None or self.traits.groups is not None
        if is_fixed and (order is not None or steps is not None):
            raise UserError("this checkpoint has an order and groups of its own; leave out --order and --steps")
        length = self.layout.length
        numbers = length * self.layout.vocab_size
        piece = min(max(MOST_NUMBERS // numbers, 1), MOST_ROWS)
        fallback = "halton" if len(self.layout.shape) == 2 else "random"
        return Coding(piece, order or fallback, min(length if steps is None else steps, length))

    def encode(self, rows: Tensor, coding: Coding) -> Iterator[tuple[Code, float]]:
        """Rows (N, L) int64 -> the code of each piece, and its -log2 p in bits."""
        for start in range(0, len(rows), coding.piece):
            x_0, encoder = rows[start : start + coding.piece], RangeEncoder()
            if self.traits.is_autoregressive or self.traits.groups is not None:
                bits = self._encode_at_once(x_0, encoder)
            else:
                forced = Forced(x_0, encoder)
                self._run(forced, start, x_0.shape, coding)
                bits = -float(forced.log_prob.sum()) / math.log(2)
            yield encoder.finish(), bits

    def decode(
        self, pieces: Sequence[Code], n_rows: int, length: int, coding: Coding, groups: int | None = None
    ) -> Iterator[Tensor]:
        """The rows of each piece, (n, L) int64.

        Args:
            pieces: of the code.
            n_rows: of all pieces.
            length: L.
            coding: of the encoder.
            groups: decode the first groups of tokens only and draw the others from the model; None decodes all.

        Raises:
            UserError: pieces that hold other rows.
        """
        if len(pieces) != -(-n_rows // coding.piece) or length > self.layout.length:
            raise UserError(f"the file has {len(pieces)} pieces for {n_rows} rows of {length}: damaged")
        for index, code in enumerate(pieces):
            start = index * coding.piece
            source = Progressive(RangeDecoder(code), groups)
            yield self._run(source, start, (min(coding.piece, n_rows - start), length), coding)

    def _run(self, source: TokenSource, first: int, shape: Sequence[int], coding: Coding) -> Tensor:
        """Decode rows of tokens, (n, L) int64, from a source; row i draws its order from the number `first` + i."""
        n_rows, length = shape
        sampler, mask_id = self._sampler(coding), self.layout.mask_id
        time = training_time(sampler.unmasking.schedule, self.system.masking_schedule)
        network = self._network.cached() if self.traits.has_cache else self._network
        denoise = Guidance().bind(network, self._condition(n_rows), mask_id=mask_id, network_time=time)
        x_1 = torch.full((n_rows, length), mask_id)
        seeds = Rng.per_sample(range(first, first + n_rows))
        grid = self.layout.shape if length == self.layout.length else (length,)
        return sampler(denoise, x_1, seeds, mask_id=mask_id, grid=grid, source=source)

    def _encode_at_once(self, x_0: Tensor, encoder: RangeEncoder) -> float:
        """What `_run` does for a network whose distributions of all tokens take one pass; -log2 p."""
        n_rows, length = x_0.shape
        logits = self._network(x_0, torch.zeros(n_rows), self._condition(n_rows)).logits.view(n_rows, length, -1)
        bits = 0.0
        for places in self._turns(length):
            where = torch.zeros_like(x_0, dtype=torch.bool).index_fill(1, places, True)
            probabilities = Sampled().probabilities(Categorical(logits[where], where))
            tokens = x_0[where]
            encoder.encode(probabilities, tokens, where.nonzero()[:, 0])
            bits -= float(probabilities.gather(1, tokens[:, None]).log2().sum())
        return bits

    def _turns(self, length: int) -> list[Tensor]:
        """The positions that are coded together, in turn."""
        if self.traits.groups is None:
            return list(torch.arange(length).split(1))
        index = self.traits.groups.index
        return [(index == group).nonzero()[:, 0] for group in range(self.traits.groups.n_groups)]

    def _sampler(self, coding: Coding) -> MaskedSampler:
        plan = self.traits.groups
        if plan is not None:
            return MaskedSampler(Random(), layout=Groups(plan), steps=plan.n_groups)
        if self.traits.block_length is not None:
            return MaskedSampler(Random(), One(), layout=Blocks(self.traits.block_length, "row"))
        return MaskedSampler(ORDERS[coding.order], Scheduled(Linear()), steps=coding.steps)

    def _condition(self, n_rows: int) -> Condition | None:
        return Condition(torch.full((n_rows,), NULL)) if self.traits.takes_classes else None


class Progressive(Decoded):
    """Tokens of the first `groups` steps from a code, the others drawn from the model; None decodes all."""

    def __init__(self, decoder: RangeDecoder, groups: int | None = None) -> None:
        super().__init__(decoder)
        self.groups, self._n_done = groups, 0

    def propose(self, prediction: Categorical, by: Sampled, rng: Rng) -> Tensor | None:
        if self.groups is None:
            return super().propose(prediction, by, rng)
        return by.propose(prediction, by, rng)

    def reveal(self, prediction: Categorical, tokens: Tensor | None, by: Sampled) -> Tensor:
        self._n_done += 1
        if self.groups is None or self._n_done <= self.groups:
            return super().reveal(prediction, tokens, by)
        assert tokens is not None
        return tokens


def identity(checkpoint: Checkpoint) -> str:
    """Hexadecimal digest of all that the probabilities and tokens of a checkpoint depend on."""
    files = {name: entry["sha256"] for name, entry in checkpoint.info["files"].items() if not name.endswith(".md")}
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]


def checksum(rows: Sequence[Tensor]) -> int:
    """CRC-32 of tokens, in order."""
    found = 0
    for part in rows:
        found = zlib.crc32(part.to(torch.int64).contiguous().numpy().tobytes(), found)
    return found

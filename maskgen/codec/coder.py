"""A range coder driven by a network's probabilities, which gives the same integers wherever they are computed.

Probabilities in floating point differ in their last bits between batch sizes, numbers of threads and processors, and a
range decoder needs exactly the integers of the encoder. So -log2 p is rounded to 1/256 of a bit, which costs less than
1e-6 bits a token, and a table of integers gives the frequencies. A value so close to the middle of two steps that
another machine might round it the other way is an exception, listed beside the code. This is safe as long as machines
agree on log2 p to 1e-10: networks are evaluated in float64 for that, where they differ by about 1e-13.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskgen.core.errors import UserError

STEPS = 256
"""Steps a bit to which -log2 p is rounded."""

BITS = 23
"""Binary logarithm of the frequency of probability 1. Probabilities below 2^-23 count as 2^-23."""

TOLERANCE = 1e-10
"""Distance of log2 p from the middle of two steps, in bits, up to which the encoder's rounding is written down."""


@dataclass(frozen=True)
class Code:
    """The code of a number of symbols.

    Attributes:
        words: of the range coder, 4 bytes each, little-endian.
        exceptions: how probabilities near the middle of two steps were rounded.
    """

    words: bytes
    exceptions: bytes = b""

    @property
    def n_bits(self) -> int:
        """Length of both."""
        return 8 * (len(self.words) + len(self.exceptions))


class RangeEncoder:
    """An `Encoder` (samplers/masked/source.py) that appends to one range code.

    Raises:
        UserError: package constriction is not installed.
    """

    def __init__(self) -> None:
        self._coder = _stream().queue.RangeEncoder()
        self._exceptions: list[tuple[int, int, int]] = []
        self._n_seen = 0

    def encode(self, probabilities: Tensor, tokens: Tensor, rows: Tensor) -> None:  # noqa: ARG002 - one code for all
        """Append tokens (M,) int64 with distributions (M, V) float64."""
        if not len(tokens):
            return
        steps, exceptions = _rounded(probabilities)
        self._exceptions += [(self._n_seen + row, token, step) for row, token, step in exceptions]
        self._n_seen += len(tokens)
        self._coder.encode(tokens.numpy().astype(np.int32), _model(), _frequencies(steps))

    def finish(self) -> Code:
        """The code of all tokens so far."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        values: list[int] = []
        last = 0
        for place, token, step in self._exceptions:
            values += [place - last, token, step]
            last = place
        return Code(words.astype("<u4").tobytes(), pack(values))


class RangeDecoder:
    """A `Decoder` (samplers/masked/source.py) of the code of a `RangeEncoder`.

    Raises:
        UserError: package constriction is not installed.
        ValueError: exceptions that are no list.
    """

    def __init__(self, code: Code) -> None:
        self._coder = _stream().queue.RangeDecoder(np.frombuffer(code.words, "<u4").astype(np.uint32))
        values = unpack(code.exceptions)
        if len(values) % 3:
            raise ValueError("the list of exceptions is not whole")
        self._exceptions: list[tuple[int, int, int]] = []
        place = 0
        for step, token, value in zip(values[::3], values[1::3], values[2::3], strict=True):
            place += step
            self._exceptions.append((place, token, value))
        self._n_seen = self._n_used = 0

    def decode(self, probabilities: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002 - one code for all
        """(M,) int64, the next tokens, given their distributions (M, V) float64.

        Raises:
            ValueError: exceptions of other tokens.
        """
        if not len(probabilities):
            return torch.zeros(0, dtype=torch.int64)
        steps, _ = _rounded(probabilities)
        end = self._n_seen + len(steps)
        while self._n_used < len(self._exceptions) and self._exceptions[self._n_used][0] < end:
            place, token, step = self._exceptions[self._n_used]
            if token >= steps.shape[1] or step > _LAST:
                raise ValueError("an exception is of no token of the vocabulary")
            steps[place - self._n_seen, token] = step
            self._n_used += 1
        self._n_seen = end
        found: NDArray[np.int32] = self._coder.decode(_model(), _frequencies(steps))
        return torch.from_numpy(found.astype(np.int64))


_LAST = STEPS * BITS


def _rounded(probabilities: Tensor) -> tuple[NDArray[np.int64], list[tuple[int, int, int]]]:
    """-log2 p in whole steps (M, V), and (row, token, step) of each that lies near the middle of two."""
    bits = (-probabilities.double().log2() * STEPS).clamp(0, _LAST).numpy()
    steps = np.rint(bits).astype(np.int64)
    is_near = np.abs(np.abs(bits - steps) - 0.5) < TOLERANCE * STEPS
    rows, tokens = is_near.nonzero()
    return steps, list(zip(rows.tolist(), tokens.tolist(), steps[rows, tokens].tolist(), strict=True))


def _frequencies(steps: NDArray[np.int64]) -> NDArray[np.float32]:
    """(M, V) whole numbers below 2^24, which float32 holds exactly."""
    return _table()[steps]


@cache
def _table() -> NDArray[np.float32]:
    """2^(BITS - k / STEPS) for each step k, rounded down to a whole number of at least 1, by decimal arithmetic."""
    with localcontext(prec=40):
        powers = [Decimal(2) ** (Decimal(_LAST - step) / STEPS) for step in range(_LAST + 1)]
    return np.array([max(int(power), 1) for power in powers], dtype=np.float32)


def _model() -> Any:
    """constriction's categorical model; it scales the frequencies to 24 bits by fixed arithmetic."""
    return _stream().model.Categorical(perfect=False)


@cache
def _stream() -> ModuleType:
    try:
        found: ModuleType = importlib.import_module("constriction").stream
    except ImportError:
        raise UserError("lossless coding needs the package constriction: pip install 'maskgen[codec]'") from None
    return found


def pack(values: list[int]) -> bytes:
    """Non-negative whole numbers, seven bits a byte, the lowest first; the eighth bit is set where more follow."""
    packed = bytearray()
    for value in values:
        while value > 127:
            packed.append(value & 127 | 128)
            value >>= 7
        packed.append(value)
    return bytes(packed)


def unpack(packed: bytes) -> list[int]:
    """The numbers of `pack`.

    Raises:
        ValueError: the last number is cut off.
    """
    values, at = [], 0
    while at < len(packed):
        value, at = number_at(packed, at)
        values.append(value)
    return values


def number_at(packed: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a place, and the place after it.

    Raises:
        ValueError: it is cut off.
    """
    value = shift = 0
    for place in range(at, len(packed)):
        value |= (packed[place] & 127) << shift
        if packed[place] < 128:
            return value, place + 1
        shift += 7
    raise ValueError("a packed number is cut off")

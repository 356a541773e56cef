"""The range coder and the file format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.codec import container
from maskgen.codec.coder import STEPS, Code, RangeDecoder, RangeEncoder, pack, unpack
from maskgen.codec.container import Header
from maskgen.core.errors import UserError

pytest.importorskip("constriction")

HEADER = Header("kjv-ar", "0123456789abcdef", "text", 3, 16, 2, 256, "random", 8, 7, ("a.png",))


def distributions(n: int, vocab_size: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Random distributions (n, V) float64 and a draw (n,) from each."""
    generator = torch.Generator().manual_seed(n)
    p = torch.softmax(scale * torch.randn(n, vocab_size, generator=generator, dtype=torch.float64), -1)
    return p, torch.multinomial(p, 1, generator=generator)[:, 0]


def coded(p: Tensor, tokens: Tensor, size: int) -> Code:
    encoder = RangeEncoder()
    for start in range(0, len(p), size):
        part = tokens[start : start + size]
        encoder.encode(p[start : start + size], part, torch.zeros_like(part))
    return encoder.finish()


def decoded(p: Tensor, code: Code, size: int) -> Tensor:
    decoder = RangeDecoder(code)
    return torch.cat([decoder.decode(part, torch.zeros(len(part), dtype=torch.int64)) for part in p.split(size)])


@pytest.mark.parametrize("vocab_size", [2, 63, 1024])
def test_tokens_come_back_in_pieces_of_any_size(vocab_size: int) -> None:
    p, tokens = distributions(3000, vocab_size)
    assert torch.equal(decoded(p, coded(p, tokens, 100), 77), tokens)


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_code_is_as_long_as_the_information(scale: float) -> None:
    p, tokens = distributions(20_000, 64, scale)
    bits = float(-p.gather(1, tokens[:, None]).log2().sum())
    assert abs(coded(p, tokens, 5000).n_bits - bits) < 64 + 1e-4 * bits


def test_rounding_errors_of_the_decoder_do_not_matter() -> None:
    p, tokens = distributions(5000, 64)
    noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(decoded(p * (1 + 1e-12 * noise), coded(p, tokens, 5000), 5000), tokens)


def test_a_probability_between_two_steps_is_written_down() -> None:
    half = 2.0 ** -((10.5 + 1e-13) / STEPS)
    p = torch.tensor([[half, 1 - half]], dtype=torch.float64).repeat(40, 1)
    tokens = torch.arange(40) % 2
    code = coded(p, tokens, 40)
    assert len(unpack(code.exceptions)) == 3 * 40
    moved = torch.tensor([[2.0 ** -((10.5 - 1e-13) / STEPS), 1 - half]], dtype=torch.float64).repeat(40, 1)
    assert torch.equal(decoded(moved, code, 40), tokens)


def test_impossible_tokens_can_be_coded() -> None:
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    tokens = torch.tensor([1, 0])
    assert torch.equal(decoded(p, coded(p, tokens, 2), 2), tokens)


def test_packing_is_inverted() -> None:
    values = [0, 1, 127, 128, 300, 2**35]
    assert unpack(pack(values)) == values
    with pytest.raises(ValueError, match="cut off"):
        unpack(pack([300])[:1])


def test_a_file_comes_back() -> None:
    pieces = [Code(b"abcd", b"\x01"), Code(b"efghijkl")]
    assert container.from_bytes(container.to_bytes(HEADER, pieces), "x") == (HEADER, pieces)


@pytest.mark.parametrize("at", range(0, 120, 7))
def test_an_altered_or_truncated_file_is_refused(at: int) -> None:
    content = bytearray(container.to_bytes(HEADER, [Code(bytes(100))]))
    with pytest.raises(UserError):
        container.from_bytes(bytes(content[:at]), "x")
    content[at] ^= 1
    with pytest.raises(UserError):
        container.from_bytes(bytes(content), "x")

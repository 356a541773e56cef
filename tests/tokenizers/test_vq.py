"""Laws of trained image tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskgen.core.predictions import Batch
from maskgen.core.rng import Rng
from maskgen.objectives import OBJECTIVES
from maskgen.tokenizers import TOKENIZERS, ImageTokenizer

SMALL: dict[str, Any] = {"width": 8, "fine_width": 4, "depth": 1}
QUANTISERS: list[dict[str, Any]] = [{"type": "vq", "codes": 6, "dim": 4}, {"type": "fsq", "levels": [3, 2]}]
each_quantiser = pytest.mark.parametrize("spec", QUANTISERS, ids=lambda spec: spec["type"])


def build(spec: dict[str, Any], shape: tuple[int, int, int] = (1, 16, 32), factor: int = 4) -> ImageTokenizer:
    torch.manual_seed(0)
    return TOKENIZERS.build(SMALL | spec | {"factor": factor}, image_shape=shape)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@each_quantiser
@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_a_grid_of_tokens_and_back(spec: dict[str, Any], factor: int, channels: int) -> None:
    tokenizer = build(spec, (channels, 16, 32), factor).eval().requires_grad_(False)
    x = images(2, channels, 16, 32)
    tokens = tokenizer.encode(x)
    assert tokenizer.grid == (16 // factor, 32 // factor)
    assert tokens.shape == (2, tokenizer.grid[0] * tokenizer.grid[1])
    assert tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < tokenizer.vocab_size == 6
    restored = tokenizer.decode(tokens)
    assert restored.shape == x.shape
    assert 0 <= float(restored.min()) <= float(restored.max()) <= 1


@each_quantiser
def test_the_training_pass_is_encode_then_decode(spec: dict[str, Any]) -> None:
    tokenizer, x = build(spec), images(2, 1, 16, 32)
    tokenizer(x)  # gives a learned codebook its start
    tokenizer.eval()
    answer = tokenizer(x)
    assert torch.equal(answer.tokens, tokenizer.encode(x))
    torch.testing.assert_close(answer.images.clamp(0, 1), tokenizer.decode(answer.tokens))


@each_quantiser
def test_a_few_steps_of_training_lower_the_loss(spec: dict[str, Any]) -> None:
    tokenizer, objective = build(spec), OBJECTIVES.build("reconstruction")
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-2)
    batch = Batch(images(8, 1, 1, 1).expand(8, 1, 16, 32))
    losses = []
    for step in range(30):
        loss = objective(tokenizer, batch, Rng.stream(step)).value
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@each_quantiser
def test_every_parameter_learns(spec: dict[str, Any]) -> None:
    tokenizer, x = build(spec), images(2, 1, 16, 32)
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    answer = tokenizer(x)
    ((answer.images - x).square().mean() + answer.penalty).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_quantiser
def test_sides_that_the_factor_does_not_divide_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="multiples of factor 8, got 12 x 16"):
        build(spec, (1, 12, 16), 8)


@each_quantiser
def test_the_fingerprint_changes_with_any_weight(spec: dict[str, Any]) -> None:
    tokenizer = build(spec)
    assert tokenizer.fingerprint() == build(spec).fingerprint()
    seen = {tokenizer.fingerprint()}
    for value in tokenizer.state_dict().values():
        value[(0,) * value.ndim] += 1
        seen.add(tokenizer.fingerprint())
    assert len(seen) == 1 + len(tokenizer.state_dict())


def test_the_fingerprint_tells_levels_apart_that_have_equal_weights() -> None:
    first, second = build({"type": "fsq", "levels": [2, 3]}), build({"type": "fsq", "levels": [3, 2]})
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert first.fingerprint() != second.fingerprint()


def test_pixels_have_nothing_to_train() -> None:
    tokenizer = TOKENIZERS.build("pixels", image_shape=(1, 4, 4))
    assert not tokenizer.has_parameters()
    with pytest.raises(NotImplementedError, match="PixelTokenizer has nothing to train"):
        tokenizer(images(1, 1, 4, 4))

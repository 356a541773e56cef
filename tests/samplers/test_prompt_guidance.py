"""Guidance of a text by its prompt: the unconditional pass sees the prompt masked (LLaDA, arXiv 2502.09992)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.samplers import SAMPLERS
from maskgen.samplers.guidance import Guidance

V, MASK = 5, 5


def network_of_tokens(
    x_t: Tensor, t: Tensor, cond: Condition | None = None, *, where: Tensor | None = None
) -> Categorical:
    """Logits that depend on all tokens of the row."""
    weights = Rng.stream("a network").normal((V + 1, V)).to(x_t.device)
    x = weights[x_t]
    logits = torch.tanh(x + 2 * x.mean(1, keepdim=True) + torch.arange(x_t.shape[1])[:, None] / 7) * 3
    return Categorical(logits if where is None else logits[where], where)


@pytest.mark.parametrize("w", [0.0, 0.5, 2.0])
def test_a_text_is_guided_by_its_prompt_as_llada_does_it(w: float) -> None:
    x = torch.tensor([[1, 4, 0, 5, 2, 5, 5], [3, 5, 5, 5, 5, 1, 5]])
    prompt = torch.zeros_like(x, dtype=torch.bool)
    prompt[0, :3] = prompt[1, 0] = True  # of what is visible, some is generated
    conditional, unconditional = (network_of_tokens(one, torch.ones(2)).logits for one in (x, x.masked_fill(prompt, 5)))
    expected = unconditional + (w + 1) * (conditional - unconditional)
    for where in (x == 5, (x == 5) & torch.tensor([[True], [False]])):
        found = Guidance(w + 1).bind(network_of_tokens, None, mask_id=5, prompt=prompt)(x, torch.ones(2), where=where)
        torch.testing.assert_close(found.logits, expected[where])
    plain = Guidance(1.0).bind(network_of_tokens, None, mask_id=5, prompt=prompt)(x, torch.ones(2))
    assert torch.equal(plain.logits, conditional)


def test_guided_decoding_takes_the_tokens_of_lladas_loop() -> None:
    """Blocks of two, the likeliest token of a step first: what arXiv 2502.09992, algorithm 5, gives with guidance."""
    w, length, n_prompt = 1.5, 8, 2
    x = torch.tensor([[3, 1, *[MASK] * (length - n_prompt)]])
    prompt = x != MASK
    denoise = Guidance(w + 1).bind(network_of_tokens, None, mask_id=MASK, prompt=prompt)
    sampler = SAMPLERS.build({"type": "llada", "steps": length - n_prompt, "block_length": 2})
    found = sampler(denoise, x, Rng.per_sample([0]), mask_id=MASK)
    for start in range(n_prompt, length, 2):
        for _ in range(2):
            one, other = (network_of_tokens(y, torch.ones(1)).logits[0] for y in (x, x.masked_fill(prompt, MASK)))
            p, tokens = torch.softmax(other + (w + 1) * (one - other), -1).max(-1)
            p[(x[0] != MASK) | (torch.arange(length) // 2 != start // 2)] = -1
            x[0, p.argmax()] = tokens[p.argmax()]
    assert torch.equal(found, x)

"""The samplers as a library: presets by name, and a network of one's own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen import samplers
from maskgen.core.predictions import Batch, Categorical
from maskgen.core.rng import Rng
from maskgen.objectives.masked import MaskedTokens
from maskgen.processes import Absorbing


class Network(nn.Module):
    """A network that knows nothing of this package: it returns logits of all positions."""

    def __init__(self, vocab_size: int, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size + 1, width)
        self.mix = nn.Linear(8 * width, 8 * width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None, **_: Any) -> Tensor:
        x = self.embedding(x_t)
        return self.head(self.mix(x.flatten(1)).relu().view_as(x))  # type: ignore[no-any-return]


def test_a_network_that_returns_logits_of_all_positions_trains_and_samples() -> None:
    torch.manual_seed(0)
    network, objective = Network(4), MaskedTokens(Absorbing(4))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    x_0 = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]).repeat(16, 1)
    losses = []
    for step in range(60):
        loss = objective(network, Batch(x_0), Rng(0, step)).value
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    x_1 = torch.full((2, 8), 4)
    sampler = samplers.maskgit(steps=4, temperature=0)
    found = sampler(network, x_1, Rng.per_sample([0, 1]), mask_id=4)
    assert torch.equal(found, x_0[:2])
    guided = samplers.Guidance().bind(network, None)
    assert torch.equal(sampler(guided, x_1, Rng.per_sample([0, 1]), mask_id=4), found)


def test_a_categorical_of_all_positions_samples_as_a_packed_one() -> None:
    logits = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    answers = (
        lambda x_t, t, *, where=None: Categorical(logits),
        lambda x_t, t, *, where=None: logits,
        lambda x_t, t, *, where=None: Categorical(logits[where], where),
    )
    for sampler in (samplers.maskgit(steps=3), samplers.ancestral(steps=3), samplers.genmd4(steps=3)):
        found = [sampler(answer, torch.full((2, 8), 4), Rng.per_sample([0, 1]), mask_id=4) for answer in answers]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


def test_logits_of_the_wrong_shape_are_named_in_training_and_sampling() -> None:
    wrong = Network(5)  # the objective has four tokens
    with pytest.raises(ValueError, match=r"logits of shape \(16, 8, 5\), but the process has vocab_size 4"):
        MaskedTokens(Absorbing(4))(wrong, Batch(torch.zeros(16, 8, dtype=torch.long)), Rng(0))
    with pytest.raises(ValueError, match=r"returned logits of shape \(2, 7, 4\) for tokens of shape \(2, 8\)"):
        samplers.maskgit()(lambda x_t, t, *, where=None: torch.zeros(2, 7, 4), torch.full((2, 8), 4), Rng(0), mask_id=4)


def test_every_published_sampler_is_a_function_of_the_package() -> None:
    for name in set(samplers.SAMPLERS.names()) - {"masked"}:
        assert getattr(samplers, name) is samplers.SAMPLERS.get(name)
        assert name in samplers.__all__
    for name in set(samplers.FIELD_SAMPLERS.names()) - {"euler"}:
        assert getattr(samplers, name) is samplers.FIELD_SAMPLERS.get(name)
    assert samplers.field_euler is samplers.FIELD_SAMPLERS.get("euler")
    assert samplers.maskgit(steps=12).steps == samplers.ddim(steps=12).steps == 12


@pytest.mark.slow
def test_importing_the_samplers_imports_no_library_of_solvers() -> None:
    code = "import maskgen.samplers, sys; print(sorted({'diffusers', 'scipy', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""The two-stream mixer predicts every token from all others and never from itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from maskgen.core.predictions import Batch
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES


@pytest.mark.parametrize("heads", [1, 2])
def test_each_prediction_depends_on_all_other_tokens_and_not_on_its_own(heads: int) -> None:
    torch.manual_seed(0)
    keys: dict[str, Any] = {"type": "leave_one_out", "width": 16, "depth": 2, "heads": heads}
    network = MODELS.build(keys, vocab_size=5, grid=(7,)).double()
    nn.init.normal_(network.head.weight)  # type: ignore[arg-type, union-attr]
    x = torch.randint(0, 5, (1, 7))
    before = network(x, torch.zeros(1)).logits
    for place in range(7):
        other = x.clone()
        other[:, place] = (x[:, place] + 1) % 5
        changed = (network(other, torch.zeros(1)).logits - before).abs().amax(-1)[0] > 1e-12
        assert changed.tolist() == [i != place for i in range(7)]
    where = x == x[0, 0]
    torch.testing.assert_close(network(x, torch.zeros(1), where=where).logits, before[where])


def test_it_learns_a_text_in_which_every_token_follows_from_its_neighbours() -> None:
    torch.manual_seed(0)
    network = MODELS.build({"type": "leave_one_out", "width": 16, "depth": 1}, vocab_size=4, grid=(6,))
    objective = OBJECTIVES.build({"type": "next_token"}, layout=4)
    x = (torch.arange(4)[:, None] + torch.arange(6)) % 4  # counts up from any start
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for step in range(80):
        loss = objective(network, Batch(x), Rng.stream(step)).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1

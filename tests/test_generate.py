"""Laws of generating: seeds, labels and given tokens in, images out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.generate import Generator
from maskgen.guidance import Guidance
from maskgen.models import MODELS
from maskgen.recipe import parse_recipe
from maskgen.samplers import SAMPLERS
from tests.tiny import SHAPE, tree

SEEDS = [5, 6, 7]
LABELS = torch.tensor([1, 2, 3])


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    tokenizer = parse_recipe(tree()).build_tokenizer(SHAPE)
    spec = {"type": "maskgit", "width": 8, "depth": 1, "heads": 2}
    network = MODELS.build(spec, vocab_size=5, grid=(8, 8), n_classes=10).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))  # far from uniform, so that a difference shows
    sampler = SAMPLERS.build({"type": "maskgit", "steps": 4})
    return Generator(network, tokenizer, sampler, Guidance(2.0), torch.device("cpu"))


def test_images_have_the_shape_of_the_data(generator: Generator) -> None:
    images = generator.images(SEEDS, LABELS)
    assert images.shape == (3, *SHAPE)
    assert images.dtype == torch.uint8
    assert set(images.unique().tolist()) <= {0, 64, 128, 191, 255}


def test_a_row_depends_on_its_own_seed_and_label_only(generator: Generator) -> None:
    together = generator.tokens(SEEDS, LABELS)
    for row, (seed, label) in enumerate(zip(SEEDS, LABELS, strict=True)):
        assert torch.equal(generator.tokens([seed], label[None])[0], together[row])


def test_seeds_and_labels_matter(generator: Generator) -> None:
    tokens = generator.tokens([0, 0, 1], torch.tensor([1, 2, 1]))
    assert not torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])


def test_given_tokens_are_kept_and_nothing_stays_masked(generator: Generator) -> None:
    known = torch.full((3, 64), -1)
    known[0, :10], known[1] = 3, 2
    tokens = generator.tokens(SEEDS, LABELS, known)
    assert torch.equal(tokens[known >= 0], known[known >= 0])
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < 5


def test_no_labels_are_null_labels(generator: Generator) -> None:
    assert torch.equal(generator.tokens(SEEDS), generator.tokens(SEEDS, torch.full((3,), -1)))


def test_the_watcher_sees_every_step(generator: Generator) -> None:
    seen: list[Tensor] = []
    tokens = generator.tokens(SEEDS, LABELS, on_step=lambda *facts: seen.append(facts))  # type: ignore[arg-type]
    assert len(seen) == 4
    assert tokens.shape == (3, 64)

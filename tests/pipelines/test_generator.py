"""Laws of generating: seeds, labels and given tokens in, images out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.pipelines.generator import Generator
from maskgen.recipes.load import parse_recipe
from maskgen.samplers import SAMPLERS
from maskgen.samplers.guidance import Guidance
from maskgen.tokenizers import TOKENIZERS
from tests.tiny import SHAPE, tree

SEEDS = [5, 6, 7]
LABELS = torch.tensor([1, 2, 3])
LETTERS = "abcdef"


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


def writer(model: dict[str, Any], sampler: Any = "first_hitting", length: int = 10) -> Generator:
    """A generator of texts of six letters, far from uniform."""
    torch.manual_seed(0)
    tokenizer = TOKENIZERS.build("characters", corpus=lambda: iter([LETTERS]))
    network = MODELS.build({"width": 8, "depth": 1, "heads": 2} | model, vocab_size=len(LETTERS)).eval()
    rng = Rng.stream("writer")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.7 * rng.normal(parameter.shape))
    return Generator(network, tokenizer, SAMPLERS.build(sampler), Guidance(), torch.device("cpu"), length)  # type: ignore[arg-type]


def test_a_text_has_its_length_and_no_mask_left() -> None:
    generator = writer({"type": "mdlm"})
    tokens = generator.tokens(SEEDS)
    assert tokens.shape == (3, 10)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 6
    assert generator.texts(tokens) == ["".join(LETTERS[token] for token in row) for row in tokens.tolist()]


def test_what_is_still_masked_is_shown_as_a_gap() -> None:
    assert writer({"type": "mdlm"}).texts(torch.tensor([[0, 6, 2], [6, 6, 6]])) == ["a_c", "___"]


@pytest.mark.parametrize("model", [{"type": "bd3", "block_length": 4}, {"type": "ar"}], ids=["bd3", "ar"])
def test_blocks_are_written_one_after_the_other_whatever_the_sampler(model: dict[str, Any]) -> None:
    seen: list[Tensor] = []
    generator = writer(model, {"type": "halton", "steps": 7})
    generator.tokens(SEEDS, on_step=lambda done, total, x_t: seen.append(x_t.clone()))
    size = model.get("block_length", 1)
    for x_t in seen:
        for row in x_t == 6:
            blocks = [bool(part.any()) for part in row.split(size)]
            assert blocks == sorted(blocks), "no block is begun before the last is done"


def test_learned_rates_reach_the_sampler() -> None:
    generator = writer({"type": "mdlm", "has_exponents": True}, {"type": "genmd4", "steps": 8}, length=40)
    before = generator.tokens(SEEDS)
    seen: list[tuple[int, int]] = []
    with torch.no_grad():
        generator.denoiser.raw_exponents.copy_(torch.tensor([9.0, -4, -4, -4, -4, -4]))  # an `a` appears first
    tokens = generator.tokens(
        SEEDS, on_step=lambda done, total, x_t: seen.append((int((x_t == 0).sum()), int((x_t == 6).sum())))
    )
    assert not torch.equal(tokens, before)
    first, last = seen[0], seen[-1]
    assert first[0] == 120 - first[1] > 0, "nothing else in the first step"
    assert last[0] < 120
    assert last[1] == 0


@pytest.mark.parametrize(
    ("row", "is_refused"),
    [
        ("abcdefabcd", False),
        ("abc_______", False),
        ("a_cd______", False),
        ("__________", False),
        ("_bcde_____", True),
        ("abcd_____d", True),
    ],
)
def test_known_text_after_the_block_of_a_gap_is_refused(row: str, is_refused: bool) -> None:
    known = torch.tensor([[-1] * 10, [-1 if c == "_" else LETTERS.index(c) for c in row]])
    for model in ({"type": "bd3", "block_length": 4}, {"type": "mdlm"}):
        generator = writer(model)
        if is_refused and model["type"] == "bd3":
            with pytest.raises(UserError, match="cannot see text after a gap"):
                generator.tokens([0, 1], known=known)
        else:
            tokens = generator.tokens([0, 1], known=known)
            assert torch.equal(tokens[known >= 0], known[known >= 0])

"""Laws of the text metrics."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.data.text.oracle import OracleTree
from maskgen.evaluation.metrics.text_quality import (
    Aggregation,
    CausalLMScorer,
    CheckpointScorer,
    Scorer,
    ScorerError,
    distinct_n,
    generative_perplexity,
    token_entropy,
)
from maskgen.models.blockwise import Autoregressive
from tests.toys import constant

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())


class Letters:
    """a, b, c ... are 0, 1, 2 ..."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> Tensor:
        return torch.tensor([ord(letter) - ord("a") for letter in text], dtype=torch.long)


def network() -> torch.nn.Module:
    made = Autoregressive(4, width=16, depth=1, heads=2).eval()
    rng = Rng.stream("network")
    for parameter in made.parameters():
        parameter.data = 0.5 * rng.normal(parameter.shape)
    return made


@pytest.mark.parametrize("scale", [1, 10])
def test_the_ways_to_average_give_what_is_published(scale: int) -> None:
    golden = GOLDEN["gen_ppl"]
    counts = torch.tensor([7, 7]) * scale
    nats = torch.tensor(golden["nll"]) * counts
    assert generative_perplexity(nats, counts, "mean_of_exp") == pytest.approx(golden["mean_exp"])
    assert generative_perplexity(nats, counts, "exp_of_mean") == pytest.approx(golden["exp_mean"])
    assert generative_perplexity(nats, counts) == pytest.approx(golden["exp_mean"])


def test_a_corpus_weighs_texts_by_their_tokens() -> None:
    nats, counts = torch.tensor([3.0, 90.0]), torch.tensor([3, 30])
    assert generative_perplexity(nats, counts) == pytest.approx(math.exp(93 / 33))
    assert generative_perplexity(nats, counts, "exp_of_mean") == pytest.approx(math.exp(2))
    split, parts = torch.tensor([3.0, 50.0, 40.0]), torch.tensor([3, 10, 20])
    assert generative_perplexity(split, parts) == generative_perplexity(nats, counts)


@pytest.mark.parametrize("aggregation", ["mean_of_exp", "exp_of_mean"])
def test_a_text_without_tokens_has_no_perplexity_of_its_own(aggregation: Aggregation) -> None:
    nats, counts = torch.tensor([0.0, 4.0]), torch.tensor([0, 2])
    assert generative_perplexity(nats, counts) == pytest.approx(math.exp(2))
    with pytest.raises(ValueError, match="1 of 2 texts have no scored tokens"):
        generative_perplexity(nats, counts, aggregation)
    with pytest.raises(ValueError, match="not all 0"):
        generative_perplexity(nats, torch.zeros(2), aggregation)
    with pytest.raises(ValueError, match="as many counts"):
        generative_perplexity(nats, torch.ones(3), aggregation)


def test_the_entropy_of_symbols_in_even_use_is_the_log_of_their_number() -> None:
    even = torch.arange(64).repeat(2, 4)
    assert token_entropy(even).tolist() == pytest.approx([4.158883, 4.158883], abs=1e-6)
    assert token_entropy(torch.full((1, 9), 5)).tolist() == [0]
    assert token_entropy(torch.tensor([[7, 7, 7, 1]])).tolist() == pytest.approx(
        [0.75 * math.log(4 / 3) + math.log(4) / 4]
    )


def test_the_entropy_does_not_see_names_or_places_of_tokens() -> None:
    tokens = (Rng.stream("tokens").uniform((5, 30)) * 6).long()
    torch.testing.assert_close(token_entropy(9 - tokens.flip(1)), token_entropy(tokens))
    assert (token_entropy(tokens.repeat(1, 3)) - token_entropy(tokens)).abs().max() < 1e-12


def test_distinct_counts_each_gram_once_and_within_samples_only() -> None:
    tokens = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1]])
    assert distinct_n(tokens, 1) == 2 / 8
    assert distinct_n(tokens, 2) == 3 / 6  # 01, 10, 00; 11 would be across the samples
    assert distinct_n(tokens, 3) == 4 / 4
    assert distinct_n(torch.zeros(3, 5), 4) == 1 / 6
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"got n = {n}"):
            distinct_n(tokens, n)
    with pytest.raises(ValueError, match="there must be samples"):
        distinct_n(tokens[:0], 1)


def test_a_checkpoint_scores_each_text_by_itself() -> None:
    scorer: Scorer = CheckpointScorer(network(), Letters(4), Rng.stream(0), "ar")
    texts = ["abba", "d", "", "caddac", "bbbb"]
    nats, counts = scorer(texts)
    assert counts.tolist() == [4, 1, 0, 6, 4]
    assert nats[2] == 0
    assert not scorer.is_bound
    assert not scorer([""])[0].any()
    for index, text in enumerate(texts):
        assert float(scorer([text])[0][0]) == pytest.approx(float(nats[index]), rel=1e-5)
    with torch.no_grad():
        log_probs = network()(torch.zeros(1, 1).long(), torch.zeros(1)).log_probs()[0, 0]
    assert float(nats[1]) == pytest.approx(-float(log_probs[3]), rel=1e-5)


def test_a_masked_checkpoint_gives_a_bound_and_says_so() -> None:
    tree = OracleTree(depth=2, symbols=3)
    scorer: Scorer = CheckpointScorer(tree, Letters(3), Rng.stream(0), strata=2, batch_size=500)
    nats, counts = scorer(["abca"] * 2000)
    assert scorer.is_bound
    assert (counts == 4).all()
    expected = -float(tree.log_prob(Letters(3).encode("abca")[None]))
    assert abs(float(nats.mean()) - expected) < 3 * float(nats.std()) / math.sqrt(2000)
    assert torch.equal(scorer(["abca"] * 2000)[0], nats)


def test_the_perplexity_of_a_uniform_scorer_is_its_vocabulary() -> None:
    scorer = CheckpointScorer(constant(5), Letters(5), Rng.stream(0), strata=2)
    aggregations: tuple[Aggregation, ...] = ("corpus", "mean_of_exp", "exp_of_mean")
    for aggregation in aggregations:
        assert generative_perplexity(*scorer(["abc", "ed"]), aggregation) == pytest.approx(5)


def test_a_scorer_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ScorerError, match=r"pip install 'maskgen\[scorers\]'"):
        CausalLMScorer("openai-community/gpt2")


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A random GPT-2 of one layer with a context of 8 characters."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=5, n_positions=8, n_embd=8, n_layer=1, n_head=2, initializer_range=1.0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel({letter: i for i, letter in enumerate("abcde")}, "e"))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_causal_language_model_scores_all_but_the_first_token(gpt2: Path, caplog: pytest.LogCaptureFixture) -> None:
    import transformers

    scorer: Scorer = CausalLMScorer(str(gpt2), batch_size=2)
    texts = ["abcd", "e", "", "ba", "abcdeabcde", "abcdeabc"]
    with caplog.at_level(logging.WARNING, "maskgen.evaluation.metrics.text_quality"):
        nats, counts = scorer(texts)
    assert counts.tolist() == [3, 0, 0, 1, 7, 7]
    assert scorer.n_cut == 1
    assert not CausalLMScorer(str(gpt2))(["", "e"])[1].any()
    assert "1 of 6 texts were cut at the 8 tokens" in caplog.text
    assert nats[4] == pytest.approx(float(nats[5]))
    model = transformers.GPT2LMHeadModel.from_pretrained(gpt2).eval()
    for index, text in enumerate(texts):
        if counts[index]:
            ids = Letters(5).encode(text[:8])[None]
            with torch.no_grad():
                own = float(model(ids, labels=ids).loss) * int(counts[index])
            assert float(nats[index]) == pytest.approx(own, rel=1e-5)


@pytest.mark.slow
def test_a_folder_without_a_model_and_a_name_that_is_none_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for source in (str(tmp_path), "gpt2-of-nobody", "nobody/none"):
        with pytest.raises(ScorerError, match="cannot load the scorer") as caught:
            CausalLMScorer(source)
        assert len(str(caught.value).splitlines()) == 1

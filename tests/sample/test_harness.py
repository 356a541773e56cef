"""Tasks of lm-evaluation-harness on a text checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.choices import answer_nll
from maskgen.sample import harness

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from maskgen.sample.harness_model import HarnessModel

DOCUMENTS = [
    {"question": "line 1 of a ", "choices": ["poem", "mope"], "answer": 0, "short": "poem"},
    {"question": "naïve and ", "choices": ["trohs", "short"], "answer": 1, "short": "short"},
]
TASKS = {
    "tiny_choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_answers": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: short
target_delimiter: ""
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
""",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Local tasks over a local file: nothing is downloaded."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    for name, text in TASKS.items():
        data = {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")}
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps(data)}\ntest_split: test\n"
        (tmp_path / f"{name}.yaml").write_text(head + text.lstrip())
    return tmp_path


def requests(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


@pytest.mark.parametrize("kind", ["mdlm", "ar"])
def test_log_likelihoods_are_those_of_the_answer_given_the_context(text_kinds: dict[str, Path], kind: str) -> None:
    model = HarnessModel(str(text_kinds[kind]), draws=7, device="cpu")
    found = model.loglikelihood(requests("loglikelihood", ("line ", "1 o"), ("", "a p")))
    encode, mask_id = model.tokenizer.encode, model.tokenizer.vocab_size
    for index, (pair, (value, _)) in enumerate(zip((("line ", "1 o"), ("", "a p")), found, strict=True)):
        rng = Rng.stream(0, "request", index)
        expected = answer_nll(model.pipeline.model, *map(encode, pair), rng, 7, model.schedule, mask_id=mask_id)
        assert value == -expected.nats


def test_a_continuation_is_greedy_if_it_is_what_the_sampler_generates(text_kinds: dict[str, Path]) -> None:
    model = HarnessModel(str(text_kinds["mdlm"]), draws=1, device="cpu")
    (text,) = model.generate_until(requests("generate_until", ("line ", {"max_gen_toks": 3, "until": []})))
    other = "p" if text[0] != "p" else "o"
    found = model.loglikelihood(requests("loglikelihood", ("line ", text), ("line ", other + text[1:])))
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_a_long_text_is_scored_in_parts_that_follow_one_another(text_kinds: dict[str, Path]) -> None:
    model = HarnessModel(str(text_kinds["ar"]), device="cpu")
    text = "line 3 of a poem, naïve and short\n"
    (value,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    tokens, size, total = model.tokenizer.encode(text), model.generator.length // 2, 0.0
    for first in range(0, len(tokens), size):
        before, part = tokens[max(first - size, 0) : first], tokens[first : first + size]
        found = answer_nll(model.pipeline.model, before, part, Rng.stream(0), 1, mask_id=model.tokenizer.vocab_size)
        total -= found.nats
    assert value == pytest.approx(total)
    assert math.isfinite(value)


def test_an_answer_ends_before_the_first_of_the_given_texts(text_kinds: dict[str, Path]) -> None:
    model = HarnessModel(str(text_kinds["mdlm"]), device="cpu")
    (whole,) = model.generate_until(requests("generate_until", ("line ", {"max_gen_toks": 4})))
    (part,) = model.generate_until(requests("generate_until", ("line ", {"max_gen_toks": 4, "until": [whole[2]]})))
    assert part == whole[: whole.index(whole[2])]
    assert torch.equal(model.tokenizer.encode(whole), model.tokenizer.encode(whole))


def test_the_harness_runs_local_tasks(text_kinds: dict[str, Path], folder: Path) -> None:
    report = folder / "report.json"
    table = harness.run(
        str(text_kinds["mdlm"]), tasks=",".join(TASKS), include_path=str(folder), draws=3, output=str(report)
    )
    entries = {(one["of"], one["name"]): one for one in json.loads(report.read_text())["others"]}
    assert "acc" in table
    assert entries["tiny_answers", "exact_match"]["value"] in (0.0, 0.5, 1.0)
    assert entries["tiny_text", "byte_perplexity"]["value"] > 1


def test_what_cannot_be_run_is_named(text_kinds: dict[str, Path], folder: Path) -> None:
    with pytest.raises(UserError, match="needs tasks=NAME"):
        harness.run(str(text_kinds["mdlm"]))
    with pytest.raises(UserError, match="no_such_task"):
        harness.run(str(text_kinds["mdlm"]), tasks="no_such_task", include_path=str(folder))

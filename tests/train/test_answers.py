"""Instruction tuning from end to end: answers that end, from scratch, from a checkpoint, with a chat template."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import maskgen
from maskgen.checkpoints.checkpoint import load_text_model, read_checkpoint
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.data.text.conversations import Conversations
from maskgen.evaluation.metrics.choices import answer_nll
from maskgen.pipelines.text import TextPipeline
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.tree import RecipeError
from maskgen.sample import answers, likelihood
from tests.chatting import write_tokenizer
from tests.tiny import text_checkpoint

Command = Callable[..., tuple[int, str, str]]
ANSWERS = {"a": "x", "b": "xyzzy", "c": "", "d": "zzz"}
MODEL: dict[str, Any] = {"type": "mdlm", "width": 32, "depth": 1, "heads": 2}


def tree(folder: Path, steps: int, **changes: Any) -> dict[str, Any]:
    file = folder / "task.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"{p}=", "response": r}) for p, r in ANSWERS.items()))
    none = {"validation_fraction": 0, "test_fraction": 0}
    return {
        "data": {"type": "conversations", "path": str(file), "length": 24, **none},
        "tokenizer": {"type": "characters", "eos": True},
        "process": {"type": "absorbing", "schedule": "linear", "count": "bernoulli"},
        "model": MODEL,
        "objective": {"type": "masked_tokens", "weight": "elbo", "label_dropout": 0.0},
        "sampler": {"type": "llada", "block_length": 4},
        "train": {
            "steps": steps, "batch_size": 16, "warmup": 0, "lr": 0.005, "ema": 0.9, "checkpoint_every": steps,
            "preview_every": 0, "validation_rows": 0, "tensorboard": False,
        },
    } | changes  # fmt: skip


def written(folder: Path, steps: int, **changes: Any) -> str:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree(folder, steps, **changes)))
    return str(file)


def scores(checkpoint: Path, **options: Any) -> dict[str, float]:
    file = checkpoint.parent / "report.json"
    answers.run(str(checkpoint), split="train", output=str(file), device="cpu", **options)
    report = json.loads(file.read_text())
    return {entry["name"]: entry["value"] for entry in (report["score"], *report["others"])}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    return maskgen.train(written(folder, 200), output=folder / "run", device="cpu")


def test_answers_of_any_length_are_learned_and_end(tuned: Path) -> None:
    assert scores(tuned, new_tokens=8) == {"exact_match": 1.0, "ended": 1.0}


def test_the_likelihood_is_that_of_the_answers_given_their_prompts(tuned: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    likelihood.run(str(tuned), split="train", strata=8, output=str(file), device="cpu")
    report = json.loads(file.read_text())
    found = {entry["name"]: entry for entry in (report["score"], *report["others"])}
    checkpoint = read_checkpoint(tuned)
    network, tokenizer = load_text_model(checkpoint)
    data = checkpoint.recipe.build_text()
    assert isinstance(data, Conversations)
    answers = [(one.prompt, one.answer) for one in data.exchanges("train")]
    assert found["bits_per_token[bound]"]["n_samples"] == sum(len(answer) + 1 for _, answer in answers)
    nats = 0.0
    for index, (prompt, answer) in enumerate(answers):  # 8 draws are all masks of at most three tokens
        end = torch.tensor([tokenizer.eos])
        tokens = torch.cat([tokenizer.encode(f"{prompt}{data.separator}"), tokenizer.encode(answer), end])
        n = len(tokens) - len(answer) - 1
        rng = Rng.stream(0).fork("answer", index)
        nats += answer_nll(network, tokens[:n], tokens[n:], rng, 8, mask_id=tokenizer.vocab_size).nats
    n_characters = sum(len(answer) for _, answer in answers)
    assert found["bits_per_char[bound]"]["value"] == pytest.approx(nats / math.log(2) / n_characters, rel=1e-5)


def test_an_answer_depends_on_its_prompt_and_seed_alone(tuned: Path) -> None:
    pipeline = maskgen.load_text(tuned, device="cpu")
    assert [pipeline(1, prompt=f"{p}=", new_tokens=8).texts[0] for p in ANSWERS] == [
        f"{p}={r}" for p, r in ANSWERS.items()
    ]


def test_a_file_is_scored_as_the_training_data_are(tuned: Path, command: Command) -> None:
    file = tuned.parent / "other.jsonl"
    file.write_text('{"prompt": "a=", "response": "x"}\n{"prompt": "d=", "response": "y"}')
    code, out, _ = command("evaluate", tuned, "--metric", "exact-match", "--file", file, "new_tokens=8")
    assert code == 0
    assert "0.5" in out


def test_a_checkpoint_without_conversations_needs_a_file(text_kinds: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"needs --file"):
        answers.run(str(text_kinds["mdlm"]))


def test_data_may_be_named_on_the_command_line(tmp_path: Path, command: Command) -> None:
    recipe = written(tmp_path, 1, data={"type": "conversations", "path": "none", "length": 24, "test_fraction": 0})
    code, _, error = command("train", recipe, "--data", tmp_path / "task.jsonl", "--output", tmp_path / "run")
    assert code == 0, error


def test_tuning_goes_on_from_a_checkpoint_of_another_text(tmp_path: Path) -> None:
    text_checkpoint(tmp_path / "start", model=MODEL)
    path = maskgen.train(written(tmp_path, 1), output=tmp_path / "run", device="cpu", start=tmp_path / "start")
    assert read_checkpoint(path).text_tokenizer().eos is not None


def test_a_pretrained_network_is_tuned_with_its_chat_template_and_low_rank_changes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    size = write_tokenizer(source).get_vocab_size()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model("llama", vocab_size=size, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
    recipe = written(
        tmp_path, 2,
        tokenizer={"type": "huggingface", "source": str(source), "eos": "<|end|>", "specials": True},
        model={"type": "huggingface", "source": str(source), "mask": "<|mask|>", "lora": {"rank": 2}},
    )  # fmt: skip
    parts = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-parts")
    whole = maskgen.train(recipe, ["train.checkpoint_every=1"], output=tmp_path / "run", device="cpu")
    shutil.copytree(tmp_path / "run", parts / "run")
    shutil.rmtree(parts / "run" / "checkpoint-2")
    again = maskgen.train(recipe, ["train.checkpoint_every=1"], output=parts / "run", resume=True, device="cpu")
    assert read_checkpoint(whole).info["files"] == read_checkpoint(again).info["files"]
    pipeline = maskgen.load_text(whole, device="cpu")
    assert isinstance(pipeline, TextPipeline)
    answer = pipeline(1, messages=[{"role": "user", "content": "a="}], new_tokens=4, steps=2).texts[0]
    assert "[assistant]" not in answer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"objective": "next_token", "model": MODEL | {"type": "ar"}, "process": "absorbing"},
            "would learn the prompts",
        ),
        ({"process": {"type": "absorbing", "schedule": "linear"}, "objective": "masked_tokens"}, r"process\.count"),
        ({"model": MODEL | {"mixer": "token"}}, r"data\.padding"),
        ({"train": {"document_attention": True}}, r"train\.document_attention"),
        ({"objective": {"type": "masked_tokens", "weight": "elbo", "random_length": 0.1}}, r"objective\.random_length"),
    ],
)
def test_what_does_not_go_with_answers_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_recipe(tree(tmp_path, 1, **changes))

"""Published language models, from a folder of tiny random weights to text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

import maskgen
from maskgen.checkpoints.checkpoint import load_text_model, read_checkpoint
from maskgen.checkpoints.convert.conversion import run
from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.convert.published import Published
from maskgen.cli.commands import cli
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.sample.program import evaluate
from tests.chatting import write_tokenizer

ROWS, WIDTH, HIDDEN = 320, 16, 24


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    rng = Rng.stream("language model")
    return {name: (rng.uniform(shape) - 0.5).float() for name, shape in shapes.items()}


def llada(mask: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights of a LLaDA of one layer."""
    base, block = "model.transformer.", "model.transformer.blocks.0."
    shapes: dict[str, tuple[int, ...]] = {base + name: (ROWS, WIDTH) for name in ("wte.weight", "ff_out.weight")}
    shapes |= {base + "ln_f.weight": (WIDTH,), block + "ff_out.weight": (WIDTH, HIDDEN)}
    shapes |= {block + f"{name}_norm.weight": (WIDTH,) for name in ("attn", "ff")}
    shapes |= {block + f"{name}.weight": (WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
    shapes |= {block + f"{name}.weight": (HIDDEN, WIDTH) for name in ("ff_proj", "up_proj")}
    config = {
        "model_type": "llada", "d_model": WIDTH, "n_heads": 2, "n_layers": 1, "vocab_size": ROWS,
        "mask_token_id": mask, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "max_sequence_length": 48,
    }  # fmt: skip
    return config, tensors(shapes)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    tokenizer = write_tokenizer(folder)
    config, state = llada(int(tokenizer.token_to_id("<|mask|>") or 0))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(str(published), str(tmp_path_factory.mktemp("converted") / "llada"))


def test_a_folder_becomes_a_checkpoint_with_its_tokenizer(converted: Path, published: Path) -> None:
    checkpoint = read_checkpoint(converted)
    network, tokenizer = load_text_model(checkpoint)
    names = Tokenizer.from_file(str(published / "tokenizer.json"))
    assert checkpoint.recipe.kind == "text"
    assert tokenizer.vocab_size == ROWS
    assert checkpoint.recipe.model is not None
    assert dict(checkpoint.recipe.model)["mask_row"] == names.token_to_id("<|mask|>")
    logits = network(torch.full((1, 6), ROWS), torch.zeros(1)).logits
    assert logits.shape == (1, 6, ROWS)


def test_a_prompt_is_continued_after_the_prefix(converted: Path) -> None:
    pipeline = maskgen.load_text(converted, device="cpu")
    prefix = pipeline.tokenizer.specials.prefix
    output = pipeline(2, prompt="the quick", new_tokens=8, sampler="llada", steps=8)
    n = len(pipeline.tokenizer.encode("the quick"))
    assert tuple(output.tokens[0, : len(prefix)].tolist()) == prefix
    assert output.tokens.shape == (2, len(prefix) + n + 8)
    assert all(text.startswith("the quick") for text in output.texts)
    never = set(pipeline.tokenizer.specials.forbidden) - set(prefix)
    assert not never & set(output.tokens.flatten().tolist())


def test_a_conversation_is_answered_up_to_its_end(converted: Path) -> None:
    pipeline = maskgen.load_text(converted, device="cpu")
    messages = [{"role": "user", "content": "hello"}]
    output = pipeline(1, messages=messages, new_tokens=12, sampler="fast_dllm", block_length=4)
    start = pipeline.tokenizer.encode_chat(messages)
    assert torch.equal(output.tokens[0, : len(start)], start)
    answer = output.tokens[0, len(start) :].tolist()
    ends = [index for index, token in enumerate(answer) if token in pipeline.tokenizer.specials.stop]
    shown = answer[: ends[0]] if ends else answer
    assert output.texts[0] == pipeline.tokenizer.decode(torch.tensor(shown, dtype=torch.int64))


def test_a_copy_keeps_roles_and_chat_template(converted: Path, tmp_path: Path) -> None:
    pipeline = maskgen.load_text(converted, device="cpu")
    pipeline.save_pretrained(tmp_path / "copy")
    again = maskgen.load_text(tmp_path / "copy", device="cpu")
    assert again.tokenizer.specials == pipeline.tokenizer.specials


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alibi": True}, "alibi True is not that of LLaDA"),
        ({"n_heads": "two"}, "n_heads must be a number, got 'two'"),
        ({"mask_token_id": ROWS}, "mask_row must be below the vocabulary's 320, got 320"),
    ],
)
def test_another_network_is_refused(change: dict[str, Any], message: str, published: Path, tmp_path: Path) -> None:
    for file in published.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((published / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        run(str(tmp_path), str(tmp_path / "out"))


def test_weights_without_their_folder_need_a_tokenizer(published: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"config\.json beside the weights"):
        run(str(tmp_path / "model.safetensors"), str(tmp_path / "out"))
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    with pytest.raises(UserError, match="needs its tokenizer"):
        run(str(tmp_path), str(tmp_path / "out"))
    assert run(str(tmp_path), str(tmp_path / "out"), tokenizer=str(published)).is_dir()


def test_choices_are_scored_from_the_command_line(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"prompt": "the quick", "choices": [" brown fox", " dog"], "answer": 0},
        {"prompt": "hello", "choices": ["a", "b", "c"], "answer": "b"},
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for chat in ((), ("--chat",)):
        args = ["evaluate", str(converted), "--metric", "choices", "--file", str(tmp_path / "tasks.jsonl"), *chat]
        cli.main(
            [*args, "--draws", "8", "--output", str(tmp_path / "report.json")],
            prog_name="maskgen",
            standalone_mode=False,
        )
        assert "accuracy[bound]" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report
    with pytest.raises(UserError, match="needs --file"):
        evaluate(str(converted), metrics=["choices"])


EXPERTS: dict[str, Any] = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8,
    "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "num_shared_experts": 1, "moe_intermediate_size": 12,
    "first_k_dense_replace": 1, "mask_token_id": 37,
}  # fmt: skip
FACTS = Path(__file__).parents[1] / "golden" / "parity" / "llada2.json"


def test_experts_of_llada2_are_read_one_by_one_and_merged() -> None:
    state = tensors({name: tuple(shape) for name, shape in json.loads(FACTS.read_text())["tensors"].items()})
    found, converter = Published(state, EXPERTS), CONVERTERS.build("llada2")
    assert [name for name in CONVERTERS.names() if CONVERTERS.build(name).recognises(found)] == ["llada2"]
    merged = {name: value for name, value in state.items() if ".experts." not in name}
    for part in ("gate_proj", "up_proj", "down_proj"):
        prefix = "layers.1.mlp.experts."
        merged[prefix + part] = torch.stack([state[f"{prefix}{n}.{part}.weight"] for n in range(8)])
    separate, together = (converter.tensors(Published(one, EXPERTS)) for one in (state, merged))
    assert separate.keys() == together.keys()
    assert all(torch.equal(separate[name], together[name]) for name in separate)
    del state["layers.1.mlp.experts.3.up_proj.weight"]
    with pytest.raises(UserError, match=r"experts\.\d\.up_proj\.weight is missing"):
        converter.tensors(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_function": "softmax"}, "score_function 'softmax' is not that of LLaDA2"),
        ({"head_dim": 16}, "head_dim must be hidden_size / num_attention_heads, 32 / 4"),
        ({"num_experts": None}, "num_experts must be a number, got None"),
    ],
)
def test_another_mixture_is_refused(change: dict[str, Any], message: str) -> None:
    shapes = json.loads(FACTS.read_text())["tensors"]
    found = Published({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, EXPERTS | change)
    with pytest.raises(UserError, match=message):
        CONVERTERS.build("llada2").target(found)

"""Networks of transformers as denoisers: what they see and predict, adaptation, checkpoints without the source."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from torch import Tensor, nn

import maskgen
from maskgen.checkpoints import export
from maskgen.checkpoints.adapters import digest_of
from maskgen.checkpoints.checkpoint import load_system, read_checkpoint
from maskgen.core.errors import UserError
from maskgen.core.registry import SpecError
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.likelihood import row_nll
from maskgen.evaluation.metrics.pseudo_likelihood import pseudo_nll
from maskgen.models import MODELS
from maskgen.models.huggingface import HuggingFaceDenoiser
from maskgen.nn.checkpointing import recompute
from maskgen.nn.lora import LoraSettings, add_lora
from maskgen.tokenizers.text.learned import characters
from maskgen.tokenizers.text.tokenizer import TextTokenizer
from tests.tiny import LENGTH, POEM

V = 11
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": V}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SIZES | ENDS | {"num_key_value_heads": 1},
    "qwen2": SIZES | ENDS | {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt2": ENDS | {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": V, "n_positions": 64},
    "bert": SIZES | {"max_position_embeddings": 64},
    "deberta-v2": SIZES | {"max_position_embeddings": 64, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
}
CAUSAL = ("llama", "qwen2", "gpt2")
every_kind = pytest.mark.parametrize("kind", CONFIGS)
T = torch.zeros(2)


def spec(kind: str, **keys: Any) -> dict[str, Any]:
    config = {"model_type": kind, **CONFIGS[kind]}
    return {"type": "huggingface", "config": config, "kind": "causal" if kind in CAUSAL else "mlm", **keys}


def built(kind: str, **keys: Any) -> HuggingFaceDenoiser:
    torch.manual_seed(0)
    network = MODELS.build(spec(kind, **keys), vocab_size=V)
    assert isinstance(network, HuggingFaceDenoiser)
    return network.eval()


def tokens(length: int = 8) -> Tensor:
    return (Rng.stream("tokens").uniform((2, length)) * (V + 1)).long()


@every_kind
@torch.no_grad()
def test_every_output_depends_on_tokens_of_both_sides(kind: str) -> None:
    network, x = built(kind), tokens()
    logits = network(x, T).logits
    assert logits.shape == (2, 8, V)
    for place in (0, 7):
        other = x.clone()
        other[:, place] = (other[:, place] + 1) % V
        change = (network(other, T).logits - logits).abs().amax((0, 2))
        assert (change[3:5] > 0).all()


@every_kind
@torch.no_grad()
def test_chosen_positions_have_the_logits_of_all_positions(kind: str) -> None:
    network, x = built(kind), tokens()
    where = x == V
    assert torch.allclose(network(x, T, where=where).logits, network(x, T).logits[where], atol=1e-6)


@pytest.mark.parametrize("kind", CAUSAL)
@torch.no_grad()
def test_before_annealing_a_shifted_network_is_the_causal_model_itself(kind: str) -> None:
    network, x = built(kind, anneal=0.5).train(), tokens().clamp(max=V - 1)
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    network.follow(0.0)
    first = torch.full((2, 1), 1)
    expected = network.network(input_ids=torch.cat([first, x], 1)).logits[:, :-1, :V]
    assert torch.allclose(network(x, T).logits, expected, atol=1e-5)
    network.follow(0.5)
    assert not torch.allclose(network(x, T).logits, expected, atol=1e-3)


def test_annealing_only_ever_adds_to_what_a_token_attends_to() -> None:
    place = torch.arange(40)
    for keys in ({"anneal": 0.4}, {"anneal": 0.4, "blocks": [1, 4, 32]}):
        network, before = built("llama", **keys).train(), torch.zeros(40, 40, dtype=torch.bool)
        for progress in torch.linspace(0, 1, 41).tolist():
            network.follow(progress)
            allowed = network._pattern(place[:, None], place[None], 40)
            assert (allowed >= before).all()
            before = allowed
        assert before.all()
        network.eval().follow(0.0)
        assert network._pattern(place[:, None], place[None], 40).all()


@torch.no_grad()
def test_documents_and_padding_are_not_seen() -> None:
    network, x = built("llama"), tokens()
    documents = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).expand(2, -1)
    other = x.clone()
    other[:, 5] = (other[:, 5] + 1) % V
    one, two = (network(ids, T, documents=documents).logits for ids in (x, other))
    assert torch.equal(one[:, :4], two[:, :4])
    assert not torch.equal(one[:, 4:], two[:, 4:])
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[:, 5] = False
    one, two = (network(ids, T, valid=valid).logits for ids in (x, other))
    assert torch.equal(one[:, :5], two[:, :5])


@torch.no_grad()
def test_a_token_inside_the_vocabulary_may_become_mask_and_is_never_predicted() -> None:
    network, x = built("gpt2", mask=5), tokens()
    assert network.network.get_input_embeddings().num_embeddings == V
    assert (network(x, T).logits[..., 5] < -1e4).all()
    same = torch.where(x == V, 5, x)
    assert torch.equal(network(same, T).logits, network(x, T).logits)


@every_kind
def test_low_rank_changes_merge_to_the_same_outputs(kind: str) -> None:
    network, x = built(kind), tokens()
    changed = add_lora(network, LoraSettings(rank=2))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        before = network(x, T).logits
        changed.merge_and_unload()
        assert (network(x, T).logits - before).abs().max() < 1e-5


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for is_recomputed in (False, True):
        network = built("llama").train()
        if is_recomputed:
            recompute(network)
        network(tokens(), T).logits.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


def write_source(folder: Path, kind: str) -> Path:
    """A folder as the hub has it: a tiny network and its tokenizer of characters."""
    tokenizer = characters(lambda: iter([POEM]), eos=True)
    (folder / "source").mkdir()
    tokenizer.save(folder / "source" / "tokenizer.json")
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind] | {"vocab_size": tokenizer.vocab_size + 1})
    torch.manual_seed(0)
    entry = transformers.AutoModelForCausalLM if kind in CAUSAL else transformers.AutoModelForMaskedLM
    entry.from_config(config).save_pretrained(folder / "source")
    (folder / "poem.txt").write_text(POEM)
    return folder / "source"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path, "llama")


def recipe_of(source: Path, **model: Any) -> str:
    tree = {
        "data": {"type": "text_file", "path": str(source.parent / "poem.txt"), "length": LENGTH},
        "tokenizer": {"type": "huggingface", "source": str(source)},
        "process": {"type": "absorbing", "count": "bernoulli"},
        "model": {"type": "huggingface", "source": str(source), **model},
        "objective": {"type": "masked_tokens", "weight": "elbo", "label_dropout": 0.0},
        "sampler": {"type": "ancestral", "steps": 4},
        "train": {
            "steps": 20, "batch_size": 4, "warmup": 0, "ema": 0.9, "checkpoint_every": 10, "log_every": 5, "lr": 0.01,
            "preview_every": 0, "validation_rows": 4, "tensorboard": False,
        },
    }  # fmt: skip
    file = source.parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


ADAPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"anneal": 0.5}),
    "llama-lora": ("llama", {"anneal": 0.5, "lora": {"rank": 2}}),
    "qwen2": ("qwen2", {"anneal": 0.5, "blocks": [1, 4]}),
    "gpt2": ("gpt2", {}),
    "bert": ("bert", {"kind": "mlm", "first": 0, "last": 1}),
    "deberta-v2": ("deberta-v2", {"kind": "mlm", "lora": {"rank": 2}}),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_a_network_is_adapted_sampled_scored_and_resumed_without_its_source(tmp_path: Path, name: str) -> None:
    kind, model = ADAPTED[name]
    source = write_source(tmp_path, kind)
    recipe = recipe_of(source, **model)
    whole = maskgen.train(recipe, output=tmp_path / "whole", device="cpu")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoint-20")
    shutil.rmtree(source)
    again = maskgen.train(recipe, output=tmp_path / "parts", resume=True, device="cpu")
    one, two = (read_checkpoint(path) for path in (whole, again))
    assert one.info["files"] == two.info["files"]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert losses[-1] < losses[0]
    pipeline = maskgen.load_text(whole, device="cpu")
    assert len(pipeline(2).texts) == 2
    assert pipeline(1, infill="line __ of", sampler="masked_lm", masks=2).texts[0].startswith("line ")
    x, mask_id = pipeline.tokenizer.encode(POEM)[None, :LENGTH], pipeline.tokenizer.vocab_size
    assert torch.isfinite(row_nll(pipeline.model, x, Rng.stream(0), 4, mask_id=mask_id).nats).all()
    nats = [pseudo_nll(pipeline.model, x[0, :4], x[0, 4:], window, mask_id=mask_id) for window in (1, 3, None)]
    assert all(math.isfinite(one) and one > 0 for one in nats)


def test_an_adapter_alone_takes_the_weights_below_from_the_source(source: Path, tmp_path: Path) -> None:
    path = maskgen.train(recipe_of(source, anneal=0.5, lora={"rank": 2}), output=tmp_path / "run", device="cpu")
    expected = digest_of(load_system(read_checkpoint(path)).network.state_dict())
    shutil.move(path, tmp_path / "alone")
    shutil.rmtree(tmp_path / "run")
    assert digest_of(load_system(read_checkpoint(tmp_path / "alone")).network.state_dict()) == expected
    assert (tmp_path / "alone" / "model.safetensors").stat().st_size < 20_000


def test_an_adapter_is_exported_without_the_weights_below_it(source: Path, tmp_path: Path) -> None:
    path = maskgen.train(recipe_of(source, lora={"rank": 2}), output=tmp_path / "run", device="cpu")
    out = tmp_path / "adapter"
    export.run(str(path), str(out), format="adapter")
    assert all(".lora_" in name for name in read_checkpoint(out).tensors())
    assert "* low-rank changes, added to the weights of " in (out / "README.md").read_text()
    a, b = (maskgen.load_text(one, device="cpu")(1, length=8, steps=2).tokens for one in (path, out))
    assert torch.equal(a, b)
    shutil.rmtree(source)
    with pytest.raises(UserError, match="source"):
        maskgen.load_text(out, device="cpu")


def test_a_checkpoint_without_low_rank_changes_has_no_adapter(source: Path, tmp_path: Path) -> None:
    path = maskgen.train(recipe_of(source), output=tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="holds no low-rank changes; use --format maskgen"):
        export.run(str(path), str(tmp_path / "adapter"), format="adapter")


def test_tied_weights_are_stored_once() -> None:
    network = built("qwen2")
    assert not any(name.endswith("lm_head.weight") for name in network.state_dict())
    other = MODELS.build(spec("qwen2"), vocab_size=V, architecture=network.architecture())
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.eval()(tokens(), T).logits, network(tokens(), T).logits)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"source": "nowhere"}, "give source, a pretrained network, or config"),
        ({"config": {"hidden_size": 8}}, "config needs model_type"),
        ({"config": {"model_type": "no-such"}}, "config: "),
        ({"mask": "[MASK]"}, "needs a source with a tokenizer"),
        ({"mask": 99}, "the network has 11 tokens"),
        ({"blocks": [4, 1]}, "rising sizes"),
        ({"kind": "mlm", "anneal": 0.5}, "are for kind causal"),
    ],
)
def test_what_cannot_be_built_is_named(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        MODELS.build(spec("llama") | keys, vocab_size=V)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    for source in (str(tmp_path / "none"), str(tmp_path / "none.gguf"), "package:no_such_package"):
        with pytest.raises(UserError, match=r"no_such_package|none"):
            MODELS.build({"type": "huggingface", "source": source}, vocab_size=V)


def test_a_folder_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(UserError, match="code of its own, which is never run"):
        MODELS.build({"type": "huggingface", "source": str(tmp_path)}, vocab_size=V)


def test_the_mask_of_a_masked_language_model_is_found_by_its_name(tmp_path: Path) -> None:
    names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]
    from tokenizers import Tokenizer, models

    TextTokenizer(Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[]))).save(
        tmp_path / "tokenizer.json"
    )
    config = transformers.AutoConfig.for_model("bert", **CONFIGS["bert"])
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    network = MODELS.build({"type": "huggingface", "source": str(tmp_path), "kind": "mlm"}, vocab_size=V)
    assert isinstance(network, HuggingFaceDenoiser)
    assert network.mask_row == 3

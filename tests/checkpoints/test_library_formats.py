"""Exports for diffusers and transformers: loaded by them with the same outputs, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from diffusers import AutoencoderKL

from maskgen.checkpoints.checkpoint import MODEL, load_system, read_checkpoint, write_checkpoint
from maskgen.checkpoints.export import run
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.models.huggingface import HuggingFaceDenoiser
from maskgen.recipes.build import DataFacts, build_system
from maskgen.recipes.load import parse_recipe
from maskgen.tokenizers.text.learned import characters
from maskgen.tokenizers.text.tokenizer import TextTokenizer
from tests import tiny

SMALL = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}


@pytest.fixture(params=["causal", "mlm"])
def adapted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of a tiny network of transformers with random weights."""
    tokenizer = characters(lambda: iter([tiny.POEM]), eos=True)
    tokenizer.save(tmp_path / "tokenizer.json")
    kind = "llama" if request.param == "causal" else "bert"
    model = {"type": "huggingface", "config": {"model_type": kind, **SMALL, "vocab_size": 40}, "kind": request.param}
    tree = tiny.text_tree(tmp_path / "poem.txt", model=model, tokenizer={"type": "characters", "eos": True})
    recipe = parse_recipe(tree)
    network = build_system(recipe, DataFacts(length=12), tokenizer).network
    assert isinstance(network, HuggingFaceDenoiser)
    info = {"step": 1, "classes": [], "length": 12, "architecture": network.architecture()}
    write_checkpoint(tmp_path / "c", recipe, {MODEL: network.state_dict()}, info, tmp_path)
    return tmp_path / "c"


@torch.no_grad()
def test_transformers_loads_an_adapted_language_model_with_the_same_outputs(adapted: Path, tmp_path: Path) -> None:
    run(str(adapted), str(tmp_path / "out"), "huggingface")
    ours = load_system(read_checkpoint(adapted)).network
    assert isinstance(ours, HuggingFaceDenoiser)
    entry = transformers.AutoModelForCausalLM if ours.kind == "causal" else transformers.AutoModelForMaskedLM
    theirs = entry.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.mask_token_id == ours.mask_row
    x = (Rng.stream("tokens").uniform((2, 9)) * (ours.vocab_size + 1)).long()
    ids = torch.where(x == ours.vocab_size, theirs.config.mask_token_id, x)
    if theirs.config.maskgen["shift"]:
        ids = torch.cat([torch.full((2, 1), theirs.config.maskgen["first"]), ids[:, :-1]], 1)
        full = torch.cat([ids, x[:, -1:].clamp(max=ours.vocab_size - 1)], 1)
        full[:, 1:] = torch.where(x == ours.vocab_size, theirs.config.mask_token_id, x)
        logits = theirs(input_ids=full, attention_mask=torch.zeros(2, 1, 10, 10)).logits[:, :-1]
    else:
        logits = theirs(input_ids=ids).logits
    expected = ours(x, torch.zeros(2)).logits
    assert (logits[..., : ours.vocab_size] - expected).abs().max() < 1e-5
    text = transformers.AutoTokenizer.from_pretrained(tmp_path / "out").decode(
        TextTokenizer.load(tmp_path / "out" / "tokenizer.json").encode("a poem").tolist()
    )
    assert text == "a poem"


@torch.no_grad()
def test_diffusers_loads_the_autoencoder_of_a_generator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    net = AutoencoderKL(1, 1, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    net.save_pretrained(tmp_path / "source")
    tokenizer = {"type": "autoencoder_kl", "source": str(tmp_path / "source"), "subfolder": ""}
    recipe = parse_recipe(tiny.FIELD | {"tokenizer": tokenizer})
    made = recipe.build_tokenizer((1, 8, 8))
    network = build_system(recipe, DataFacts(10, (1, 8, 8), (1, 8, 8)), made).network
    write_checkpoint(tmp_path / "c", recipe, {MODEL: network.state_dict()}, tiny.INFO)
    run(str(tmp_path / "c"), str(tmp_path / "out"), "diffusers")
    images = Rng.stream("images").uniform((2, 1, 8, 8)).float()
    theirs = AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")
    assert torch.equal(theirs.encode(images).latent_dist.mean, net.eval().encode(images).latent_dist.mean)


def test_what_has_no_counterpart_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no counterpart of MaskGIT"):
        run("fashion-maskgit", str(tmp_path / "a"), "diffusers")
    with pytest.raises(UserError, match="no counterpart of MDLM"):
        run("kjv-md4", str(tmp_path / "b"), "huggingface")
    recipe = parse_recipe(tiny.FIELD)
    made = recipe.build_tokenizer((1, 8, 8))
    network = build_system(recipe, DataFacts(10, (1, 8, 8), (1, 8, 8)), made).network
    write_checkpoint(tmp_path / "c", recipe, {MODEL: network.state_dict()}, tiny.INFO)
    with pytest.raises(UserError, match="embeds times at other frequencies"):
        run(str(tmp_path / "c"), str(tmp_path / "d"), "diffusers")
    assert not (tmp_path / "d").exists()

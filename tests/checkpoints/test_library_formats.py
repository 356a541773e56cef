"""Exports for diffusers and transformers: loaded by them with the same outputs, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from diffusers import AutoencoderDC, AutoencoderKL, UVit2DModel, VQModel

import maskgen
from maskgen.checkpoints.checkpoint import MODEL, load_system, read_checkpoint, write_checkpoint
from maskgen.checkpoints.convert.conversion import run as convert
from maskgen.checkpoints.export import run
from maskgen.core.errors import UserError
from maskgen.core.predictions import Condition
from maskgen.core.rng import Rng
from maskgen.models.huggingface import HuggingFaceDenoiser
from maskgen.recipes.build import DataFacts, build_system
from maskgen.recipes.load import parse_recipe
from maskgen.tokenizers.text.learned import characters
from maskgen.tokenizers.text.tokenizer import TextTokenizer
from tests import tiny
from tests.cases import each
from tests.checkpoints.test_discrete_layouts import pipeline_folder

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


LLAMA = {"width": 16, "depth": 2, "heads": 4, "norm": "rms", "mlp": "swiglu", "rotary": "half", "head_bias": False}
OURS: dict[str, dict[str, Any]] = {
    "LLaDA's": {"type": "mdlm", "mask_row": 3, "rotary_base": 500.0, "mlp_width": 24, "norm_eps": 1e-3},
    "Dream's": {"type": "mdlm", "mask_row": 3, "is_shifted": True, "n_kv_heads": 2, "qkv_bias": True},
    "[MASK] after the vocabulary": {"type": "mdlm"},
    "a row of the head for [MASK]": {"type": "mdlm", "has_mask_row": True},
    "tied": {"type": "mdlm", "is_tied": True},
    "blocks": {"type": "bd3", "block_length": 4},
    "from left to right": {"type": "ar"},
}


@pytest.mark.parametrize("keys", OURS.values(), ids=OURS)
@torch.no_grad()
def test_transformers_loads_our_llamas_and_the_readme_computes_our_outputs(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.text_checkpoint(tmp_path / "c", keys["type"], model=LLAMA | keys)
    run(str(tmp_path / "c"), str(tmp_path / "out"), "huggingface")
    ours = load_system(read_checkpoint(tmp_path / "c")).network
    readme = (tmp_path / "out" / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    x, mask = torch.tensor([[1, 5, 0, 40, 2, 40, 40, 7]]), keys.get("mask_row", int(ours.vocab_size))
    is_open = x == 40
    known = f"torch.tensor({x.masked_fill(is_open, mask).tolist()})"
    found: dict[str, Any] = {}
    exec(code.replace(f"torch.full((1, 8), {mask})", known), found)
    expected = ours(x.masked_fill(is_open, ours.vocab_size), torch.zeros(1)).logits
    logits = found["logits"][..., : ours.vocab_size]
    is_token = torch.arange(ours.vocab_size) != mask
    assert (logits - expected)[..., is_token].abs().max() < 1e-5 * expected[..., is_token].abs().max()
    assert found["logits"][..., mask].isneginf().all()
    assert found["network"].config.mask_token_id == mask
    assert ("bidirectional" in readme) == (keys["type"] == "mdlm")


@torch.no_grad()
def test_generate_of_transformers_writes_what_our_autoregressive_network_does(tmp_path: Path) -> None:
    tiny.text_checkpoint(tmp_path / "c", "ar", model=LLAMA | {"type": "ar"})
    run(str(tmp_path / "c"), str(tmp_path / "out"), "huggingface")
    pipeline = maskgen.load_text(tmp_path / "c", device="cpu")
    expected = pipeline(1, prompt="line", temperature=0.0).tokens
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    given = torch.cat([torch.tensor([[theirs.config.bos_token_id]]), expected[:, :4]], 1)
    made = theirs.generate(given, max_new_tokens=tiny.LENGTH - 4, do_sample=False, pad_token_id=0)
    assert torch.equal(made[:, 1:], expected)


def kl() -> Any:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(1, 1, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)


def dc() -> Any:
    sides = ("encoder", "decoder")
    sizes: dict[str, Any] = {f"{side}_block_out_channels": (8, 8) for side in sides}
    sizes |= {f"{side}_layers_per_block": (1, 1) for side in sides}
    sizes |= {f"{side}_qkv_multiscales": ((), ()) for side in sides}
    return AutoencoderDC(in_channels=1, latent_channels=4, scaling_factor=0.5, **sizes)


@each("name, make", [("autoencoder_kl", kl), ("autoencoder_dc", dc)])
@torch.no_grad()
def test_diffusers_loads_the_autoencoder_of_a_generator(name: str, make: Callable[[], Any], tmp_path: Path) -> None:
    tmp_path = tmp_path / name
    torch.manual_seed(0)
    net = make().eval()
    net.save_pretrained(tmp_path / "source")
    tokenizer = {"type": name, "source": str(tmp_path / "source"), "subfolder": ""}
    recipe = parse_recipe(tiny.FIELD | {"tokenizer": tokenizer})
    made = recipe.build_tokenizer((1, 8, 8))
    network = build_system(recipe, DataFacts(10, (1, 8, 8), (1, 8, 8)), made).network
    write_checkpoint(tmp_path / "c", recipe, {MODEL: network.state_dict()}, tiny.INFO)
    run(str(tmp_path / "c"), str(tmp_path / "out"), "diffusers")
    theirs = type(net).from_pretrained(tmp_path / "out" / "vae")
    assert theirs.config.scaling_factor == net.config.scaling_factor
    assert type(theirs) is type(net)
    images = Rng.stream("images").uniform((2, 1, 8, 8)).float()
    assert torch.equal(theirs(images).sample, net(images).sample)


@torch.no_grad()
def test_diffusers_loads_amuseds_network_and_tokenizer(tmp_path: Path) -> None:
    home = pipeline_folder(tmp_path / "amused")
    convert(str(home), str(tmp_path / "c"))
    run(str(tmp_path / "c"), str(tmp_path / "out"), "diffusers")
    for name, kind in (("transformer", UVit2DModel), ("vqvae", VQModel)):
        first, again = (kind.from_pretrained(where / name) for where in (home, tmp_path / "out"))
        state = first.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
        assert {**first.config, "_name_or_path": ""} == {**again.config, "_name_or_path": ""}
    pipeline = maskgen.load_image(tmp_path / "c", device="cpu")
    cond = Condition(torch.zeros(1).long(), Rng.stream("captions").normal((1, 7, 8)))
    assert cond.captions is not None
    transformer = UVit2DModel.from_pretrained(tmp_path / "out" / "transformer").eval()
    micro = torch.tensor([[16.0, 16, 0, 0, 6]])
    logits = transformer(torch.full((1, 8, 8), 23), cond.captions[:, 1:], cond.captions[:, 0], micro).flatten(2).mT
    assert torch.equal(pipeline.model(torch.full((1, 64), 20), torch.ones(1), cond).logits, logits)
    tokens = torch.arange(64)[None] % 20
    vqvae = VQModel.from_pretrained(tmp_path / "out" / "vqvae").eval()
    entries = vqvae.quantize.get_codebook_entry(tokens.flatten(), (1, 8, 8, 4))
    images = vqvae.decode(entries, force_not_quantize=True).sample
    assert torch.equal(pipeline.tokenizer.decode(tokens), images.clamp(0, 1))


def test_what_has_no_counterpart_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no counterpart of MaskGIT"):
        run("fashion-maskgit", str(tmp_path / "a"), "diffusers")
    with pytest.raises(UserError, match=r"no counterpart of MDLM with model\.norm layer \(not rms\)"):
        run("kjv-md4", str(tmp_path / "b"), "huggingface")
    recipe = parse_recipe(tiny.FIELD)
    made = recipe.build_tokenizer((1, 8, 8))
    network = build_system(recipe, DataFacts(10, (1, 8, 8), (1, 8, 8)), made).network
    write_checkpoint(tmp_path / "c", recipe, {MODEL: network.state_dict()}, tiny.INFO)
    with pytest.raises(UserError, match="embeds times at other frequencies"):
        run(str(tmp_path / "c"), str(tmp_path / "d"), "diffusers")
    assert not (tmp_path / "d").exists()

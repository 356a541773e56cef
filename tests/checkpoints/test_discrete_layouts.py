"""Published generators of discrete image tokens: recognised, converted and sampled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from torch import Tensor

import maskgen
from maskgen.checkpoints.checkpoint import MODEL, read_checkpoint, write_checkpoint
from maskgen.checkpoints.convert.conversion import run
from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.convert.published import Published
from maskgen.core.errors import UserError
from maskgen.core.predictions import Condition
from maskgen.recipes.build import build_network
from maskgen.recipes.load import parse_recipe
from tests.captioned import tiny_encoder

Command = Callable[..., tuple[int, str, str]]
GOLDEN = Path(__file__).parents[1] / "golden" / "parity"
LAYOUTS = {
    "halton": "halton", "interpolants": "interpolants", "interpolants-dit": "interpolants_dit", "mage": "mage",
    "maskgil": "maskgil", "maskgit": "maskgit_jax",
}  # fmt: skip
"""Layout -> facts with the names and shapes of a small published file."""


def published(layout: str) -> dict[str, Tensor]:
    shapes = json.loads((GOLDEN / f"{LAYOUTS[layout]}.json").read_text())["tensors"]
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_by_its_converter_alone_and_fills_its_network(layout: str) -> None:
    found = Published(published(layout))
    assert [name for name in CONVERTERS.names() if CONVERTERS.build(name).recognises(found)] == [layout]
    converter = CONVERTERS.build(layout)
    target = converter.target(found)
    with torch.device("meta"):
        network = build_network(parse_recipe(target.recipe), target.facts, target.layout)
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in converter.tensors(found).items()} == wanted


def test_a_tensor_of_another_network_and_a_width_that_was_never_published_are_refused() -> None:
    for layout in LAYOUTS:
        with pytest.raises(UserError, match=r"strange\.weight is no tensor of a"):
            CONVERTERS.build(layout).tensors(Published(published(layout) | {"strange.weight": torch.empty(1)}))
    tables = {
        "halton": "pos_emb.weight", "maskgil": "tok_emb.weight", "interpolants": "x_embed.weight",
        "mage": "decoder_pos_embed_learned",
    }  # fmt: skip
    for layout, table in tables.items():
        state = published(layout)
        state[table] = torch.empty(*state[table].shape[:-1], 100, device="meta")
        with pytest.raises(UserError, match="a width of 100 was never published"):
            CONVERTERS.build(layout).target(Published(state))


def test_a_captioned_u_vit_is_guided_only_with_its_text_encoder_beside_it(tmp_path: Path) -> None:
    state = published("interpolants")
    del state["label_emb.embedding_table.weight"]
    state |= {"context_embed.proj.weight": torch.empty(512, 8), "context_embed.proj.bias": torch.empty(512)}
    state["pos_embed"] = torch.empty(1, 77 + 1 + 16, 512)
    state = {name: torch.zeros(value.shape) for name, value in state.items()}
    converter = CONVERTERS.build("interpolants")
    alone = Published(state)
    clip = tiny_encoder(tmp_path / "text_encoder", "clip", length=77)
    tiny_encoder(tmp_path / "tokenizer", "clip")
    beside = Published(state, folder=clip.parent)
    for found, scale in ((alone, 1.0), (beside, 2.0)):
        target = converter.target(found)
        recipe = parse_recipe(target.recipe)
        network: Any = build_network(recipe, target.facts, target.layout)
        network.load_state_dict(converter.tensors(found))
        assert recipe.guidance.scale == scale
        assert bool(network.null_caption.value.any()) == (found is beside)
        assert network.null_caption.value.shape == target.facts.caption_shape == (77, 8)


def packed(tree: Any) -> Any:
    """A tree of tensors as flax serialises it: an array is extension 1, (shape, type, bytes) packed again."""
    if isinstance(tree, dict):
        return {key: packed(value) for key, value in tree.items()}
    array = np.asarray(tree, np.float32)
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def flax_file(path: Path) -> Path:
    """A MaskGIT of random weights, 4 x 4 tokens of 32 codes, as its authors' programs store it."""
    tree: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    for name, value in published("maskgit").items():
        *homes, last = name.split("/")
        node = tree
        for home in homes:
            node = node.setdefault(home, {})
        node[last] = 0.3 * torch.randn(value.shape, generator=generator)
    path.write_bytes(msgpack.packb(packed({"params": tree})))
    return path


def test_a_flax_file_of_maskgit_becomes_a_checkpoint_that_draws_images_of_a_class(
    tmp_path: Path, command: Command
) -> None:
    tokens = {"type": "vq", "codes": 32, "dim": 4, "factor": 16, "width": 8, "fine_width": 4, "depth": 1}
    recipe = parse_recipe(
        {"data": {"type": "folder", "path": "anywhere", "size": 64}, "tokenizer": tokens, "objective": "reconstruction"}
    )
    info = {"step": 1, "classes": [], "image_shape": [3, 64, 64]}
    write_checkpoint(tmp_path / "vq", recipe, {MODEL: recipe.build_tokenizer((3, 64, 64)).state_dict()}, info)
    file = flax_file(tmp_path / "maskgit_imagenet256_checkpoint")
    given = [str(file), "--output", str(tmp_path / "converted"), "--tokenizer", str(tmp_path / "vq")]
    code, _, error = command("convert", *given)
    assert code == 0, error
    checkpoint = read_checkpoint(tmp_path / "converted")
    assert checkpoint.info["source"]["layout"] == "maskgit"
    assert (len(checkpoint.classes), checkpoint.image_shape) == (1000, (3, 64, 64))
    pipeline = maskgen.load_image(str(tmp_path / "converted"))
    one, other = (pipeline(num=2, classes=[name], seed=3).tokens for name in ("7", "8"))
    assert one.shape == (2, 16)
    assert int(one.max()) < 32
    assert not torch.equal(one, other)
    code, _, error = command("sample", str(tmp_path / "converted"), "--num", "1", "--output", str(tmp_path / "out.png"))
    assert code == 0, error


def pipeline_folder(home: Path) -> Path:
    """A pipeline of aMUSEd as diffusers stores it, of random weights: 8 x 8 tokens of 20 codes, images of 16 x 16."""
    import diffusers
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = transformers.AutoTokenizer.from_pretrained(tiny_encoder(home.parent / "clip", "clip"))
        words.model_max_length = 6
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.CLIPTextConfig(
            vocab_size=12, max_position_embeddings=6, bos_token_id=2, eos_token_id=3, projection_dim=8, **sizes
        )
        transformer = diffusers.UVit2DModel(
            hidden_size=16, cond_embed_dim=8, encoder_hidden_size=8, vocab_size=24, codebook_size=20, in_channels=16,
            block_out_channels=16, num_res_blocks=1, block_num_heads=2, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, sample_size=8,
        )  # fmt: skip
        for parameter in transformer.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        pair = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
        vqvae = diffusers.VQModel(
            down_block_types=pair[0], up_block_types=pair[1], block_out_channels=(4, 4), layers_per_block=1,
            latent_channels=4, num_vq_embeddings=20, vq_embed_dim=4, norm_num_groups=2,
        )  # fmt: skip
        diffusers.AmusedPipeline(
            vqvae=vqvae, tokenizer=words, text_encoder=transformers.CLIPTextModelWithProjection(config),
            transformer=transformer, scheduler=diffusers.AmusedScheduler(mask_token_id=23),
        ).save_pretrained(home)  # fmt: skip
    return home


def test_a_pipeline_of_amused_becomes_a_checkpoint_that_draws_images_of_a_prompt(
    tmp_path: Path, command: Command
) -> None:
    import diffusers

    home = pipeline_folder(tmp_path / "amused")
    code, _, error = command("convert", str(home), "--output", str(tmp_path / "converted"))
    assert code == 0, error
    pipeline = maskgen.load_image(str(tmp_path / "converted"))
    red, blue = (pipeline(num=2, prompts=[text], seed=1, steps=3).tokens for text in ("a red boat", "the blue car"))
    assert red.shape == (2, 64)
    assert not torch.equal(red, blue)
    official = diffusers.AmusedPipeline.from_pretrained(home)
    ids = official.tokenizer(["a red boat", ""], padding="max_length", max_length=6, return_tensors="pt").input_ids
    with torch.no_grad():
        states = official.text_encoder(ids, output_hidden_states=True)
        x_t = torch.full((2, 64), 20)
        micro = torch.tensor([[16.0, 16, 0, 0, 6]]).expand(2, -1)
        theirs = official.transformer(
            torch.full((2, 8, 8), 23), states.hidden_states[-2], states.text_embeds, micro
        ).flatten(2).mT  # fmt: skip
        _, captions = pipeline.embed(["a red boat", ""])
        assert captions is not None
        cond = Condition(torch.full((2,), -1), captions.rows(torch.arange(2)))
        ours = pipeline.model(x_t, torch.ones(2), cond).logits
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)  # prompts are stored in float16
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-4, rtol=1e-4)  # the empty text in float32
    code, _, error = command(
        "sample", str(tmp_path / "converted"), "--prompt", "a red boat", "--num", "1", "--steps", "2",
        "--output", str(tmp_path / "out.png"),
    )  # fmt: skip
    assert code == 0, error


def test_amused_without_the_rest_of_its_pipeline_says_what_is_missing(tmp_path: Path) -> None:
    home = pipeline_folder(tmp_path / "amused")
    with pytest.raises(UserError, match="converted from the folder of its pipeline, where text_encoder"):
        run(str(home / "transformer"), str(tmp_path / "converted"))

"""Public image tokenizers, and the ways a generator comes to its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from maskgen.checkpoints.checkpoint import MODEL, CheckpointError, load_system, read_checkpoint, write_checkpoint
from maskgen.checkpoints.convert.autoencoder_kl import WHOLE, kl_config
from maskgen.checkpoints.convert.conversion import run
from maskgen.checkpoints.convert.converter import shipped
from maskgen.checkpoints.convert.vqgan import flax_names, vqgan_spec, vqgan_tensors
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.recipes.load import parse_recipe
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.image.latent import KLTokenizer
from tests.checkpoints.test_files import saved, small_dit
from tests.checkpoints.test_mar import small

KINDS = {"down": "DownEncoder", "up": "UpDecoder"}
FACTS = Path(__file__).parents[1] / "golden" / "parity"


def public(name: str) -> dict[str, Tensor]:
    """A small public state dict of the parity facts, with numbers of its own."""
    shapes = json.loads((FACTS / f"{name}.json").read_text())["tensors"]
    return {key: Rng.stream("weights", key).normal(shape).float() * 0.1 for key, shape in shapes.items()}


def flax_tree(state: dict[str, Tensor]) -> dict[str, Any]:
    """The tree that MaskGIT's flax code has for a state of two levels with names of its port to torch."""
    blocks = {"encoder": ["down.0.block.0", "down.0.block.1", "down.1.block.0", "down.1.block.1", "down.2.block.0"]}
    blocks["encoder"] += ["down.2.block.1", "mid.block_1", "mid.block_2"]
    blocks["decoder"] = ["mid.block_1", "mid.block_2", "up.2.block.0", "up.2.block.1", "up.1.block.0", "up.1.block.1"]
    blocks["decoder"] += ["up.0.block.0", "up.0.block.1"]
    convolutions = {
        "encoder": ["conv_in", "conv_out"],
        "decoder": ["conv_in", "up.2.upsample.conv", "up.1.upsample.conv", "conv_out"],
    }
    tree: dict[str, Any] = {"quantizer": {"codebook": state["quantize.embedding.weight"]}}
    for side in ("encoder", "decoder"):
        parts = {f"Conv_{n}": conv(state, f"{side}.{name}") for n, name in enumerate(convolutions[side])}
        for n, name in enumerate(blocks[side]):
            layers = {"Conv_0": "conv1", "Conv_1": "conv2", "Conv_2": "nin_shortcut"}
            block = {key: conv(state, f"{side}.{name}.{layer}") for key, layer in layers.items()}
            block |= {f"GroupNorm_{m}": norm(state, f"{side}.{name}.norm{m + 1}") for m in (0, 1)}
            parts[f"ResBlock_{n}"] = {key: value for key, value in block.items() if value}
        tree[side] = parts | {"GroupNorm_0": norm(state, f"{side}.norm_out")}
    return tree


def conv(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    found = {"kernel": state[f"{name}.weight"].permute(2, 3, 1, 0)} if f"{name}.weight" in state else {}
    return found | ({"bias": state[f"{name}.bias"]} if f"{name}.bias" in state else {})


def norm(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def packed(tree: Any) -> Any:
    """A tree as flax packs it: an array is extension 1 of shape, type and bytes."""
    if isinstance(tree, dict):
        return {key: packed(value) for key, value in tree.items()}
    array = tree.contiguous().numpy()
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_flax_file_gives_the_network_of_its_port_to_torch(tmp_path: Path) -> None:
    state = public("maskgit_vqgan")
    flax = tmp_path / "tokenizer_imagenet256_checkpoint"
    flax.write_bytes(msgpack.packb({"params": packed(flax_tree(state)), "step": 3}))
    from_flax = read_checkpoint(run(str(flax), str(tmp_path / "flax"), image_size=16))
    from_torch = read_checkpoint(run(str(saved(tmp_path / "a.pt", state)), str(tmp_path / "torch"), image_size=16))
    assert equal(from_flax.tensors(), from_torch.tensors())
    assert from_flax.recipe.tokenizer == from_torch.recipe.tokenizer
    assert from_flax.info["source"]["layout"] == "maskgit-vqgan"


def test_names_of_flax_are_taming_names_whatever_the_depth() -> None:
    state = public("maskgit_vqgan")
    flat = {"quantizer/codebook": state["quantize.embedding.weight"]}
    for side in ("encoder", "decoder"):
        for part, inner in flax_tree(state)[side].items():
            for key, value in inner.items():
                nested = value.items() if isinstance(value, dict) else [("", value)]
                flat |= {f"{side}/{part}/{key}{'/' * bool(name)}{name}": tensor for name, tensor in nested}
    assert equal(flax_names(flat), state)
    with pytest.raises(UserError, match="encoder/Dense_0/kernel is no tensor of MaskGIT's tokenizer"):
        flax_names(flat | {"encoder/Dense_0/kernel": torch.ones(1)})


def test_the_spellings_of_one_network_become_one(tmp_path: Path) -> None:
    state, expected = public("maskgit_vqgan"), None
    for spelling in (
        {},
        {".mid.block_1.": ".mid.0.", ".mid.block_2.": ".mid.1.", ".upsample.conv.": ".upsample_conv."},
    ):
        named = {}
        for key, value in state.items():
            for old, new in spelling.items():
                key = key.replace(old, new)
            named[key] = value
        file = saved(tmp_path / "a.pt", {"model": named})
        tensors = read_checkpoint(run(str(file), str(tmp_path / str(len(spelling))), image_size=16)).tensors()
        expected = expected or tensors
        assert equal(tensors, expected)


@pytest.mark.parametrize("name", ["taming_vqgan", "llamagen", "maskgit_vqgan"])
def test_all_that_a_tokenizer_needs_is_taken_and_what_training_alone_needs_is_left(name: str, tmp_path: Path) -> None:
    state = public(name)
    training = {"loss.discriminator.main.0.weight": torch.ones(2), "quantize.codebook_used": torch.ones(2)}
    file = saved(tmp_path / "a.pt", {"state_dict": {**state, **training}})
    checkpoint = read_checkpoint(run(str(file), str(tmp_path / "out"), image_size=16))
    assert sum(value.numel() for value in checkpoint.tensors().values()) == sum(v.numel() for v in state.values())
    tokenizer = load_system(checkpoint).network
    images = Rng.stream(0).uniform((2, 3, 16, 16)).float()
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, 16)
    assert tokenizer.decode(tokens).shape == images.shape


def test_attention_at_other_levels_than_the_lowest_is_refused() -> None:
    state = public("taming_vqgan") | {"encoder.down.0.attn.0.norm.weight": torch.ones(32)}
    with pytest.raises(UserError, match=r"attention at levels \[0, 2\] of 3 is not supported"):
        vqgan_spec(state)
    with pytest.raises(UserError, match=r"encoder\.stem\.weight is no tensor of a VQGAN"):
        vqgan_tensors({"encoder.stem.weight": torch.ones(1)}, False)


def test_a_published_vqgan_can_be_trained_on() -> None:
    spec = {"type": "vqgan", "codes": 8, "dim": 4, "width": 32, "multipliers": [1, 1], "blocks": 1, "latent_width": 8}
    tokenizer: Any = TOKENIZERS.build(spec, image_shape=(3, 8, 8))
    made = tokenizer(torch.rand(2, 3, 8, 8))
    (made.images.square().mean() + made.penalty).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in tokenizer.parameters())


def kl_folder(tmp_path: Path, prefix: str = "") -> Path:
    state = {f"{prefix}{key}": value for key, value in public("kl").items()}
    return run(str(saved(tmp_path / "kl16.ckpt", {"state_dict": state})), str(tmp_path / "kl"))


def test_an_autoencoder_in_original_names_becomes_a_folder_of_diffusers(tmp_path: Path) -> None:
    folder = kl_folder(tmp_path, WHOLE)
    tokenizer = KLTokenizer((3, 16, 16), str(folder))
    assert (tokenizer.grid, tokenizer.token_width, tokenizer.scale) == ((4, 4), 16, 0.2325)
    assert json.loads((folder / "source.json").read_text())["layout"] == "kl"
    with pytest.raises(UserError, match="not an empty directory"):
        kl_folder(tmp_path)
    with pytest.raises(UserError, match="latents of 5 channels is not known"):
        kl_config(public("kl") | {"post_quant_conv.weight": torch.ones(5, 5, 1, 1)})


def test_an_autoencoder_of_other_tokens_is_refused(tmp_path: Path) -> None:
    generator = saved(tmp_path / "dit.pt", small_dit())
    with pytest.raises(UserError, match=r"is a file, this tokenizer is a folder of diffusers; `maskgen convert"):
        run(str(generator), str(tmp_path / "a"), tokenizer=str(generator))
    folder = kl_folder(tmp_path)
    with pytest.raises(UserError, match=r"tokens of 16 numbers in a grid \(4, 4\), but the tokenizer .* has 64"):
        run(str(generator), str(tmp_path / "a"), tokenizer=str(folder))


def test_another_autoencoder_than_at_conversion_is_refused(tmp_path: Path) -> None:
    blocks: dict[str, Any] = {f"{kind}_block_types": [f"{name}Block2D"] * 5 for kind, name in KINDS.items()}
    AutoencoderKL(latent_channels=16, block_out_channels=(32,) * 5, **blocks).save_pretrained(tmp_path / "kl")
    file = saved(tmp_path / "mar.pth", small())
    checkpoint = read_checkpoint(run(str(file), str(tmp_path / "mar"), tokenizer=str(tmp_path / "kl")))
    load_system(checkpoint)
    save_file({"a": torch.ones(1)}, tmp_path / "kl" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"its autoencoder .* is missing or another one"):
        load_system(checkpoint)


def vqgan(codes: int, size: int, folder: Path) -> str:
    """A tokenizer's checkpoint, 16 pixels to a token."""
    sizes = {"codes": codes, "dim": 4, "width": 32, "multipliers": [1] * 5, "blocks": 1, "latent_width": 8}
    spec = {"type": "vqgan", **sizes, "attention": "none"}
    recipe = parse_recipe(
        shipped("tokenizer/imagenet-vq", tokenizer=spec, data={"type": "folder", "path": ".", "size": size})
    )
    network = recipe.build_tokenizer((3, size, size))
    info = {"step": 0, "classes": [], "image_shape": [3, size, size]}
    write_checkpoint(folder, recipe, {MODEL: network.state_dict()}, info)
    return str(folder)


def test_a_generator_holds_a_copy_of_its_tokenizer_which_must_fit(tmp_path: Path) -> None:
    state = public("halton")
    codes, side = len(state["tok_emb.weight"]) - 1, round(len(state["pos_emb.weight"]) ** 0.5)
    generator = str(saved(tmp_path / "halton.pth", {"model_state_dict": state}))
    with pytest.raises(UserError, match="needs its tokenizer; give it by --tokenizer"):
        run(generator, str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"trained on .* tokens in a grid .*, but the tokenizer has 7 in"):
        run(generator, str(tmp_path / "out"), tokenizer=vqgan(7, 16 * side, tmp_path / "other"))
    with pytest.raises(UserError, match="is a generator in the layout halton, not a tokenizer"):
        run(generator, str(tmp_path / "out"), tokenizer=generator)
    tokenizer = vqgan(codes, 16 * side, tmp_path / "own")
    checkpoint = read_checkpoint(run(generator, str(tmp_path / "out"), tokenizer=tokenizer))
    (tmp_path / "own").rename(tmp_path / "elsewhere")
    system = load_system(checkpoint)
    assert system.tokenizer is not None
    assert system.layout is not None
    assert (system.layout.vocab_size, system.layout.shape) == (codes, (side, side))


def test_the_scale_of_dc_ae_is_that_of_its_published_name(tmp_path: Path) -> None:
    state = public("dc_ae")
    state |= {n.replace("running_mean", "num_batches_tracked"): torch.tensor(1) for n in state if "running_mean" in n}
    folder = tmp_path / "models--mit-han-lab--dc-ae-f32c32-mix-1.0"
    folder.mkdir()
    config = json.loads(
        (run(str(saved(folder / "model.pt", state)), str(tmp_path / "mix")) / "config.json").read_text()
    )
    assert config["scaling_factor"] == 0.4552
    with pytest.raises(UserError, match="keep the published name of the file or its folder"):
        run(str(saved(tmp_path / "model.pt", state)), str(tmp_path / "out"))

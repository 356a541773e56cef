"""Public VQ tokenizers -> `maskgen.tokenizers.image.vqgan.VQGAN`: taming and LDM, LlamaGen, MaskGIT (torch and flax).

All are brought to the names of taming transformers first. Their parts stand in the order in which they run, as in our
`nn.Sequential`, so the index of a part here is its place in the list of parts that a file has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count
from maskgen.core.errors import UserError
from maskgen.recipes.build import DataFacts

CODEBOOK = "quantize.embedding.weight"
UNUSED = ("loss.", "quantize.codebook_used", "model_ema.", "colorize")
"""What training alone needs: discriminators, statistics, averages."""

_BLOCK = {"norm1": "norm_1", "conv1": "conv_1", "norm2": "norm_2", "conv2": "conv_2", "nin_shortcut": "around"}
_LAYERS = {"norm": "norm", "proj_out": "out", "conv": "conv", **_BLOCK}
_LLAMAGEN = [
    (r"^encoder\.conv_blocks\.(\d+)\.", r"encoder.down.\1."),
    (r"^decoder\.conv_blocks\.(\d+)\.", r"decoder.up_in_order.\1."),
    (r"\.res\.(\d+)\.", r".block.\1."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
]
_MASKGIT = [
    (r"\.res_blocks\.(\d+)\.", r".block.\1."),
    (r"\.mid\.(?:block\.)?0\.", ".mid.block_1."),
    (r"\.mid\.(?:block\.)?1\.", ".mid.block_2."),
    (r"\.upsample_conv\.", ".upsample.conv."),
]


def taming_names(state: Mapping[str, Tensor], patterns: list[tuple[str, str]]) -> dict[str, Tensor]:
    """A state under the names of taming transformers, without what only training needs."""
    found = {}
    for key, value in state.items():
        name = key
        for pattern, new in patterns:
            name = re.sub(pattern, new, name)
        if not name.startswith(UNUSED):
            found[name] = value
    levels = count(found, "decoder.up_in_order")
    turned = re.compile(r"^decoder\.up_in_order\.(\d+)")
    return {turned.sub(lambda match: f"decoder.up.{levels - 1 - int(match[1])}", name): v for name, v in found.items()}


def flax_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MaskGIT's flax tree under the names of taming transformers: blocks are numbered in the order they run.

    Kernels (h, w, in, out) become (out, in, h, w).

    Raises:
        UserError: a name that the tree does not have.
    """
    n_blocks = len({key.split("/")[1] for key in state if key.startswith("encoder/ResBlock_")})
    n_levels = sum(bool(re.fullmatch(r"decoder/Conv_\d+/kernel", key)) for key in state) - 1
    n = n_blocks // (n_levels + 1)  # as many in the middle as in a level
    parts = {"encoder/Conv_0": "encoder.conv_in", "encoder/Conv_1": "encoder.conv_out"}
    parts |= {"decoder/Conv_0": "decoder.conv_in", f"decoder/Conv_{n_levels}": "decoder.conv_out"}
    parts |= {f"{side}/GroupNorm_0": f"{side}.norm_out" for side in ("encoder", "decoder")}
    for level in range(n_levels):
        for block in range(n):
            parts[f"encoder/ResBlock_{n * level + block}"] = f"encoder.down.{level}.block.{block}"
            parts[f"decoder/ResBlock_{n * (level + 1) + block}"] = f"decoder.up.{n_levels - 1 - level}.block.{block}"
        if level:
            parts[f"decoder/Conv_{level}"] = f"decoder.up.{n_levels - level}.upsample.conv"
    for block in range(n):
        parts[f"encoder/ResBlock_{n * n_levels + block}"] = f"encoder.mid.block_{block + 1}"
        parts[f"decoder/ResBlock_{block}"] = f"decoder.mid.block_{block + 1}"
    layers = {"Conv_0": "conv1", "Conv_1": "conv2", "Conv_2": "nin_shortcut", "GroupNorm_0": "norm1"}
    layers |= {"GroupNorm_1": "norm2"}
    found = {CODEBOOK: state["quantizer/codebook"]}
    for key, value in state.items():
        *place, kind = key.split("/")
        part = parts.get("/".join(place[:2]))
        if key != "quantizer/codebook":
            if part is None or kind not in ("kernel", "bias", "scale"):
                raise UserError(f"{key} is no tensor of MaskGIT's tokenizer; is the file of another network?")
            name = ".".join([part, *(layers[layer] for layer in place[2:])])
            is_kernel = kind == "kernel"
            found[f"{name}.{'bias' if kind == 'bias' else 'weight'}"] = (
                value.permute(3, 2, 0, 1) if is_kernel else value
            )
    return found


def vqgan_tensors(state: Mapping[str, Tensor], is_plain: bool) -> dict[str, Tensor]:
    """A state with taming's names under ours.

    Raises:
        UserError: a tensor that is no part of a VQGAN.
    """
    places = {
        part: f"{side}.{index}"
        for side in ("encoder", "decoder")
        for index, part in enumerate(_parts(side, state, is_plain))
    }
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        part = next((one for one in places if key.startswith(f"{one}.")), None)
        if key == CODEBOOK:
            ours["codebook"] = value
        elif key.startswith(("quant_conv.", "post_quant_conv.")):
            ours[re.sub(r"^.*conv\.", "from_codes." if key.startswith("post") else "to_codes.", key)] = value
        elif part is None:
            raise UserError(f"{key} is no tensor of a VQGAN; is the file of another network?")
        else:
            *layer, kind = key.removeprefix(f"{part}.").split(".")
            if layer == ["q"]:
                joined = [state[f"{part}.{name}.{kind}"] for name in "qkv"]
                ours[f"{places[part]}.qkv.{kind}"] = torch.cat(joined)
            elif layer not in (["k"], ["v"]):
                ours[".".join([places[part], *(_LAYERS.get(name, name) for name in layer), kind])] = value
    return ours


def _parts(side: str, state: Mapping[str, Tensor], is_plain: bool) -> Iterator[str]:
    """The parts of an encoder or decoder that a state has, in the order they run; one without weights is empty."""
    levels = count(state, f"{side}.{'down' if side == 'encoder' else 'up'}")
    middle = [f"{side}.mid.{name}" for name in ("block_1", "attn_1", *(f"block_{n}" for n in range(2, 9)))]

    def has(part: str) -> bool:
        return any(key.startswith(f"{part}.") for key in state)

    def level(prefix: str, resample: str, is_last: bool) -> Iterator[str]:
        index = 0
        while has(f"{prefix}.block.{index}"):
            yield from filter(has, (f"{prefix}.block.{index}", f"{prefix}.attn.{index}"))
            index += 1
        if not is_last:
            yield "" if is_plain and side == "encoder" else f"{prefix}.{resample}"

    yield f"{side}.conv_in"
    if side == "encoder":
        for n in range(levels):
            yield from level(f"encoder.down.{n}", "downsample", n == levels - 1)
        yield from filter(has, middle)
    else:
        yield from filter(has, middle)
        for n in reversed(range(levels)):
            yield from level(f"decoder.up.{n}", "upsample", n == 0)
    yield from (f"{side}.norm_out", "", f"{side}.conv_out")  # an activation between


def vqgan_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Sizes of the tokenizer that a state with taming's names fits.

    Raises:
        UserError: a tensor that determines them is missing, or attention at other levels than the lowest.
    """
    needed = ("encoder.conv_in.weight", "encoder.conv_out.weight", "encoder.down.0.block.0.conv1.weight", CODEBOOK)
    if missing := [key for key in needed if key not in state]:
        raise UserError(f"{missing[0]} is missing; is the file of another network?")
    levels = count(state, "encoder.down")
    width = len(state["encoder.conv_in.weight"])
    attending = {int(key.split(".")[2]) for key in state if re.match(r"encoder\.down\.\d+\.attn\.", key)}
    if attending - {levels - 1}:
        raise UserError(f"attention at levels {sorted(attending)} of {levels} is not supported, only at the lowest")
    has_middle = any(".mid.attn_1." in key for key in state)
    codes, dim = state[CODEBOOK].shape
    return {
        "codes": codes, "dim": dim, "width": width,
        "multipliers": [len(state[f"encoder.down.{n}.block.0.conv1.weight"]) // width for n in range(levels)],
        "blocks": count(state, "encoder.down.0.block"),
        "latent_width": len(state["encoder.conv_out.weight"]) if "quant_conv.weight" in state else 0,
        "attention": "lowest" if attending else "middle" if has_middle else "none",
    }  # fmt: skip


class VQGANConverter(Converter):
    """What the layouts share: names of taming transformers, and the settings that no tensor determines."""

    def state(self, found: Published) -> dict[str, Tensor]:
        """The state with the names of taming transformers."""
        return taming_names(found.state, [])

    def settings(self) -> dict[str, object]:
        """Keys of the recipe's `tokenizer` that are the same for all sizes."""
        return {}

    def target(self, found: Published) -> Target:
        spec = {"type": "vqgan", **vqgan_spec(self.state(found)), **self.settings()}
        size = found.image_size or 256
        data = {"type": "folder", "path": "data/imagenet", "size": size}
        return Target(shipped("tokenizer/imagenet-vq", tokenizer=spec, data=data), DataFacts(0, (3, size, size)))

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return vqgan_tensors(self.state(found), self.settings().get("form") == "maskgit")


@CONVERTERS.register("taming")
class TamingVQGAN(VQGANConverter):
    """VQGAN (CompVis/taming-transformers) and LDM's VQ autoencoders: an image tokenizer."""

    parameters = "55 M (LDM vq-f4) to 76 M (taming f16, 16,384 codes)"
    licence = "MIT"
    page = "arxiv.org/abs/2012.09841"

    def recognises(self, found: Published) -> bool:
        needed = {"encoder.down.0.block.0.norm1.weight", "quant_conv.weight", "decoder.up.0.block.0.norm1.weight"}
        return needed | {CODEBOOK} <= found.state.keys()


@CONVERTERS.register("llamagen")
class LlamaGenVQ(VQGANConverter):
    """VQ-8 and VQ-16 of LlamaGen (FoundationVision), Halton-MaskGIT's tokenizer: an image tokenizer."""

    parameters = "70 M (VQ-8), 72 M (VQ-16)"
    licence = "MIT"
    page = "arxiv.org/abs/2406.06525"

    def recognises(self, found: Published) -> bool:
        return {"encoder.conv_blocks.0.res.0.norm1.weight", CODEBOOK} <= found.state.keys()

    def state(self, found: Published) -> dict[str, Tensor]:
        return taming_names(found.state, _LLAMAGEN)

    def settings(self) -> dict[str, object]:
        return {"is_normalised": True}


@CONVERTERS.register("maskgit-vqgan")
class MaskGITVQGAN(VQGANConverter):
    """MaskGIT's VQGAN in flax, and as MAGE, open-muse, TiTok and MaskBit store it in torch: an image tokenizer."""

    parameters = "54.5 M"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2202.04200"

    def recognises(self, found: Published) -> bool:
        state = found.state
        if {"encoder/ResBlock_0/Conv_0/kernel", "quantizer/codebook"} <= state.keys():
            return True
        starts = {f"encoder.down.0.{name}.0.conv1.weight" for name in ("block", "res_blocks")}
        return bool(starts & state.keys()) and CODEBOOK in state and "quant_conv.weight" not in state

    def state(self, found: Published) -> dict[str, Tensor]:
        is_flax = "quantizer/codebook" in found.state
        return flax_names(found.state) if is_flax else taming_names(found.state, _MASKGIT)

    def settings(self) -> dict[str, object]:
        return {"form": "maskgit", "pixel_range": "zero_one"}

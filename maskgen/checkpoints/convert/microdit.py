"""The public layout of MicroDiT's weights (micro_diffusion) -> `maskgen.models.microdit.MicroDiT`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of
from maskgen.core.errors import UserError
from maskgen.nn.embeddings import sincos_2d

COMPUTED = ("pos_embed", "mask_token")
"""Buffers that the network makes itself: positions by formula, and zeros that only filled a layout."""

_MLP = {"fc1": "0", "norm": "2", "fc2": "3"}
_PLACES = {
    "x_embedder.proj.": "embedding.",
    "t_embedder.mlp.": "time.mlp.",
    "y_embedder.y_proj.": "captions.project.",
    "pooled_y_emb_process.": "captions.pool.",
    "y_emb_preprocess.": "captions.",
    "patch_mixer_map_xin.": "mixer_in.",
    "patch_mixer_map_xout.": "mixer_out.",
    "patch_mixer_map_y.": "mixer_captions.",
    "patch_mixer.": "mixer_blocks.",
    "blocks.": "blocks.",
    "final_layer.linear.": "head.out.",
    "final_layer.norm_final.": "head.norm.",
    "final_layer.": "head.",
}
_PARTS: list[tuple[str, str]] = [
    (r"adaLN_modulation\.1\.", "modulation."),
    (r"cross_attn\.q_linear\.", "caption_attention.q."),
    (r"cross_attn\.kv_linear\.", "caption_attention.kv."),
    (r"cross_attn\.proj\.", "caption_attention.out."),
    (r"attn\.proj\.", "attention.out."),
    (r"\bnorm1\.", "attention_norm."),
    (r"\bnorm3\.", "mlp_norm."),
    (r"\bmlp\.w1$", "mlp.expand"),
    (r"\bmlp\.w2$", "mlp.contract"),
    (r"\bmlp\.w3\.", "mlp.contract."),
]


def microdit(state: Mapping[str, Tensor], patch: int = 2) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `MicroDiT`.

    Args:
        state: as published: 478 tensors for the XL.
        patch: side of a token's patch of latents; the public head writes a patch pixel by pixel, ours channel by
            channel as both embed it.

    Raises:
        UserError: a key that no MicroDiT has.
    """
    named = ((name, value) for name, value in state.items() if name not in COMPUTED)
    return dict(pair for name, value in named for pair in _converted(name, value, state, patch))


def _converted(name: str, value: Tensor, state: Mapping[str, Tensor], patch: int) -> list[tuple[str, Tensor]]:
    """Names and tensors here of one tensor there; none for what another one takes along."""
    key = _renamed(name)
    if name == "x_embedder.proj.weight":
        return [(key, value.flatten(1))]
    if name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        return [(key, value.unflatten(0, (patch**2, -1)).transpose(0, 1).flatten(0, 1))]
    if key.endswith("attn.qkv.weight"):
        q, kv = value.tensor_split([len(value) // 3])
        home = key.removesuffix("attn.qkv.weight") + "attention."
        return [(f"{home}q.weight", q), (f"{home}kv.weight", kv)]
    if key.endswith("mlp.w1.weight"):  # the two halves of a gated layer are one here
        other = state[name.replace(".w1.", ".w2.")]
        return [(key.replace(".w1.", ".expand."), torch.cat([value, other]))]
    return [] if key.endswith("mlp.w2.weight") else [(key, value)]


def _renamed(name: str) -> str:
    """The name here, except of what is also split or joined."""
    place, rest = next(
        ((ours, name.removeprefix(theirs)) for theirs, ours in _PLACES.items() if name.startswith(theirs)), ("", "")
    )
    if not rest:
        raise UserError(f"{name} is no tensor of a MicroDiT; give its network's state alone, without prefixes")
    if place in ("captions.project.", "captions.pool."):
        head, _, tail = rest.partition(".")
        return f"{place}{_MLP[head]}.{tail}"
    for pattern, part in _PARTS:
        rest = re.sub(pattern, part, rest)
    # The caption encoder's block has no captions to look at, so its second norm is that of its feed-forward layer.
    return place + rest.replace("norm2.", "mlp_norm." if place == "captions." else "caption_norm.")


SIZES, HEADS = {1024: "micro-dit-xl", 512: "micro-dit-tiny"}, {1024: 16, 512: 16}
"""Published widths -> recipe, and heads, which the weights do not determine."""
CAPTION_LENGTH, SIDE_512 = 77, 32


def microdit_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of the recipe's `model` that a public state dict fits; ratios of widths are the published ones.

    Raises:
        UserError: a width that was never published.
    """
    width = len(state["x_embedder.proj.bias"])
    mixer = {
        "type": "deferred",
        "depth": count(state, "patch_mixer"),
        "width": len(state["patch_mixer.0.norm1.weight"]),
    }
    gate = state.get("patch_mixer.1.mlp.gate.weight")
    return {
        "type": "microdit", "width": width, "depth": count(state, "blocks"), "heads": heads_of(width, HEADS),
        "masking": mixer, "n_experts": 0 if gate is None else len(gate), "position_spacing": spacing(state),
    }  # fmt: skip


def spacing(state: Mapping[str, Tensor]) -> float:
    """Step between positions: 0.5 for the grid of 512 pixels."""
    return 0.5 if _side(state) == SIDE_512 else 1.0


def check_spacing(state: Mapping[str, Tensor]) -> None:
    """Hold stored positions (1, L, D) against the ones we compute.

    Raises:
        UserError: they are others.
    """
    value, step = state["pos_embed"][0], spacing(state)
    if not value.is_meta and not torch.allclose(
        value.float(), sincos_2d((_side(state),) * 2, value.shape[1], (step, step)), atol=1e-4
    ):
        raise UserError(f"pos_embed holds other positions than those {step} apart, which its number of tokens says")


def _side(state: Mapping[str, Tensor]) -> int:
    return math.isqrt(state["pos_embed"].shape[-2])


@CONVERTERS.register("microdit")
class MicroDiTWeights(Converter):
    """MicroDiT (SonyResearch/micro_diffusion), text to image at 256 or 512 pixels; captions from DFN5B-CLIP-ViT-H."""

    parameters = "201 M (Tiny) to 1,165 M (XL)"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2407.15811"
    needs = "autoencoder of SDXL, text encoder DFN5B-CLIP-ViT-H-14-378"

    def recognises(self, found: Published) -> bool:
        needed = {"y_embedder.y_proj.fc1.weight", "patch_mixer.0.attn.qkv.weight", "pos_embed"}
        return needed <= found.state.keys()

    def target(self, found: Published) -> Target:
        state, side = found.state, _side(found.state)
        spec, patches = microdit_spec(state), state["x_embedder.proj.weight"]
        name = "micro-dit-xl-512" if side == SIDE_512 else SIZES[len(patches)]
        captions = (CAPTION_LENGTH, state["y_embedder.y_proj.fc1.weight"].shape[1])
        return image_target(
            shipped(f"image/{name}", model=spec), (side, side), pixels=16, n_classes=0,
            token_width=patches[0].numel(), caption_shape=captions,
        )  # fmt: skip

    def tensors(self, found: Published) -> dict[str, Tensor]:
        check_spacing(found.state)
        return microdit(found.state)

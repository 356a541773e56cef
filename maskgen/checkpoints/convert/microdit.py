"""The public layout of MicroDiT's weights (micro_diffusion) -> `maskgen.models.microdit.MicroDiT`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.core.errors import UserError

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

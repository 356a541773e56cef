"""The public layout of DiT's weights (facebookresearch/DiT) -> `maskgen.models.dit.DiT`; others build on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import block_names, count, heads_of, renamed
from maskgen.core.errors import UserError
from maskgen.nn.embeddings import sincos_2d

EMBEDDERS = {
    r"x_embedder\.proj\.(weight|bias)": r"embedding.\1",
    r"t_embedder\.mlp\.([02])\.(weight|bias)": r"time.mlp.\1.\2",
    r"y_embedder\.embedding_table\.weight": r"labels.weight",
}
HEAD = {
    r"final_layer\.linear\.(weight|bias)": r"trunk.head.out.\1",
    r"final_layer\.adaLN_modulation\.1\.(weight|bias)": r"trunk.head.modulation.\1",
}
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Heads of the published widths, which a DiT's weights do not determine."""


def dit_blocks(theirs: str, ours: str) -> dict[str, str]:
    """Patterns of all tensors of a list of blocks with adaLN."""
    return block_names(theirs, ours, {"adaLN_modulation.1": "modulation"})


_NAMES = EMBEDDERS | HEAD | dit_blocks("blocks", "trunk.blocks")


def dit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `DiT`.

    Raises:
        UserError: a key that no DiT has, or positions that are not the fixed ones.
    """
    check_positions("pos_embed", state)
    return dit_tensors(state, _NAMES, ("pos_embed",), "DiT")


def dit_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of the recipe's `model` that a public state dict fits."""
    return {"type": "dit", **sizes(state), "depth": count(state, "blocks"), "has_variance": has_variance(state)}


@CONVERTERS.register("dit")
class DiTWeights(Converter):
    """DiT (facebookresearch/DiT), class-conditional ImageNet."""

    parameters = "33 M (S/2) to 675 M (XL/2)"
    licence = "CC BY-NC 4.0"
    page = "arxiv.org/abs/2212.09748"
    needs = "autoencoder sd-vae-ft-ema"

    def recognises(self, found: Published) -> bool:
        is_dit = {"y_embedder.embedding_table.weight", "blocks.0.attn.qkv.weight"} <= found.state.keys()
        return is_dit and not {"mask_token", "x_pre_embed.weight"} & found.state.keys()

    def target(self, found: Published) -> Target:
        return latent_target("image/imagenet-dit-xl", dit_spec(found.state), found.state)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return dit(found.state)


def latent_target(recipe: str, spec: Mapping[str, object], state: Mapping[str, Tensor], n_null: int = 1) -> Target:
    """The target of a network on latents of Stable Diffusion's autoencoder in patches of 2 x 2.

    Args:
        recipe: a shipped one.
        spec: its `model`.
        state: with `pos_embed` (1, L, D), patches as a convolution and the table of labels, the last `n_null` rows of
            which stand for no class.
        n_null: see `state`.

    Raises:
        UserError: a tensor that determines the sizes is missing.
    """
    for key in ("pos_embed", "x_embedder.proj.weight", "y_embedder.embedding_table.weight"):
        if key not in state:
            raise UserError(f"{key} is missing; is the file of another network?")
    side = math.isqrt(state["pos_embed"].shape[-2])
    width = state["x_embedder.proj.weight"][0].numel()
    n_classes = max(len(state["y_embedder.embedding_table.weight"]) - n_null, 0)
    return image_target(shipped(recipe, model=spec), (side, side), pixels=16, n_classes=n_classes, token_width=width)


def dit_tensors(
    state: Mapping[str, Tensor], names: Mapping[str, str], computed: tuple[str, ...], kind: str
) -> dict[str, Tensor]:
    """`renamed`, and patches in our order.

    Raises:
        UserError: a key that is in neither `names` nor `computed`.
    """
    ours = renamed(state, names, computed, kind)
    return ours | {key: change(ours[key]) for key, change in _CHANGED.items() if key in ours}


def _channels_first(value: Tensor) -> Tensor:
    """Rows of the head: published ones are ordered by pixel, then channel; ours by channel, then pixel.

    Patches have 4. The channels of a predicted variance follow those of the mean, so they become the second half.
    """
    rows: Tensor = value.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
    return rows


_CHANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "embedding.weight": lambda value: value.flatten(1),
    "trunk.head.out.weight": _channels_first,
    "trunk.head.out.bias": _channels_first,
}


def check_positions(key: str, state: Mapping[str, Tensor]) -> None:
    """Hold stored positions (1, L, D) against the ones our networks compute.

    Raises:
        UserError: they are missing or others.
    """
    if key not in state:
        raise UserError(f"{key} is missing; is the file of another network?")
    value, side = state[key][0], round(state[key].shape[1] ** 0.5)
    if not value.is_meta and not torch.allclose(value.float(), sincos_2d((side, side), value.shape[1]), atol=1e-4):
        raise UserError(f"{key} holds other positions than the sines and cosines of a grid {side} x {side}")


def has_variance(state: Mapping[str, Tensor]) -> bool:
    """Whether the head predicts a variance beside the mean: twice as many numbers as a patch holds."""
    return state["final_layer.linear.bias"].numel() == 2 * state["x_embedder.proj.weight"][0].numel()


def sizes(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Width and heads.

    Raises:
        UserError: a width that was never published.
    """
    if "x_embedder.proj.weight" not in state:
        raise UserError("x_embedder.proj.weight is missing; is the file of another network?")
    width = len(state["x_embedder.proj.weight"])
    return {"width": width, "heads": heads_of(width, HEADS)}

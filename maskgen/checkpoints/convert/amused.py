"""aMUSEd's pipelines (diffusers) -> `maskgen.models.amused.Amused`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.core.errors import UserError
from maskgen.core.files import read_json
from maskgen.tokenizers.text.encoder import TextEncoder

_KEYS = {
    "width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads", "hidden": "intermediate_size",
    "channels": "block_out_channels", "channel_heads": "block_num_heads", "n_residual": "num_res_blocks",
    "is_halved": "downsample", "table_rows": "vocab_size",
}  # fmt: skip
"""Keys of our network: those of diffusers."""


@CONVERTERS.register("amused")
class AmusedWeights(Converter):
    """aMUSEd (a pipeline folder of diffusers), text to image."""

    parameters = "604 M (256), 608 M (512)"
    licence = "CreativeML Open RAIL++-M"
    page = "arxiv.org/abs/2401.01808"
    needs = "the pipeline's folders text_encoder, tokenizer and vqvae"

    def recognises(self, found: Published) -> bool:
        return {"embed.embeddings.weight", "cond_embed.linear_1.weight", "mlm_layer.conv2.weight"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        home, config = _home(found), dict[str, Any](found.config)
        length = _caption_length(home)
        _require_published(config)
        model = {"type": "amused", **{ours: config[theirs] for ours, theirs in _KEYS.items()}}
        recipe = shipped(
            f"image/captions-amused-{512 if config['downsample'] else 256}",
            model=model | {"caption_length": length},
            tokenizer={"type": "diffusers_vq", "source": str(home), "subfolder": "vqvae"},
            captions={
                "encoder": str(home), "subfolder": "text_encoder", "length": length, "padding": "keep",
                "states": "projected",
            },
        )  # fmt: skip
        pixels = _pixels(home)
        side = found.image_size // pixels if found.image_size else int(config["sample_size"])
        codes, shape = int(config["codebook_size"]), (1 + length, int(config["encoder_hidden_size"]))
        return image_target(recipe, (side, side), pixels=pixels, n_classes=0, vocab_size=codes, caption_shape=shape)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        home = _home(found)
        ours = {f"network.{name}": value for name, value in found.state.items()}
        if next(iter(ours.values())).is_meta:
            width = dict[str, Any](found.config)["encoder_hidden_size"]
            return ours | {"null_caption.value": torch.empty(1 + _caption_length(home), width, device="meta")}
        encoder = TextEncoder(str(home), _caption_length(home), "keep", "text_encoder", states="projected")
        return ours | {"null_caption.value": encoder.empty()}


def _home(found: Published) -> Path:
    """The folder of the pipeline.

    Raises:
        UserError: only the network is there, or a part is missing.
    """
    home = found.folder
    parts = ("text_encoder/config.json", "tokenizer", "vqvae/config.json")
    missing = [part for part in parts if home is None or not (home / part).exists()]
    if home is None or missing:
        raise UserError(f"aMUSEd is converted from the folder of its pipeline, where {', '.join(missing)} must be")
    return home


def _require_published(config: dict[str, Any]) -> None:
    """Check the sizes that the published networks share.

    Raises:
        UserError: biases, or parts of other widths.
    """
    pairs = (
        ("cond_embed_dim", "encoder_hidden_size"), ("in_channels", "block_out_channels"), ("downsample", "upsample"),
    )  # fmt: skip
    different = [f"{one} and {other}" for one, other in pairs if config[one] != config[other]]
    if config["use_bias"] or different:
        what = ", ".join(different) or "use_bias"
        raise UserError(f"this UVit2DModel differs from aMUSEd's in {what}; only aMUSEd's can be converted")


def _caption_length(home: Path) -> int:
    length: int = read_json(home / "text_encoder" / "config.json")["max_position_embeddings"]
    return length


def _pixels(home: Path) -> int:
    """Side of a token in pixels."""
    return int(2 ** (len(read_json(home / "vqvae" / "config.json")["block_out_channels"]) - 1))

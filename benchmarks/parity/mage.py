"""MAGE: the official network, loss and sampler beside ours.

    python benchmarks/parity/mage.py --public DIR    # a copy of LTH14/mage

Logits at half-masked tokens, the training loss at equal masks with dropped tokens, and the tokens of the official
sampler in 3 steps with the mode of every token and without noise. Its VQGAN, OpenCV and OmegaConf take no part and are
replaced.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy
import torch
from decoded import greedily, greedy, loss_of_masks
from harness import Input, Parity, Tensors, converted, imported, run
from noised import drawn
from torch import Tensor, nn

from maskgen.samplers.masked.presets import mage

SIDE, CODES, WIDTH, STEPS = 16, 1024, 768, 3
RATE = 0.7  # of masked tokens


class NoTokenizer(nn.Module):
    """In the place of the VQGAN: gives the tokens of an image that it is told, and keeps those that it is to decode."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.kept: Tensor | None = None
        self.quantize = SimpleNamespace(get_codebook_entry=self._keep)

    def _keep(self, tokens: Tensor, shape: object) -> Tensor:  # noqa: ARG002
        self.kept = tokens
        return tokens

    def encode(self, tokens: Tensor) -> tuple[Tensor, None, tuple[None, None, Tensor]]:
        return tokens, None, (None, None, tokens.clone())

    def decode(self, tokens: Tensor) -> Tensor:
        return tokens


def build(public: Path) -> nn.Module:
    params = SimpleNamespace(ddconfig={}, n_embed=CODES, embed_dim=256)
    settings = SimpleNamespace(load=lambda _: SimpleNamespace(model=SimpleNamespace(params=params)))
    for name, parts in {
        "omegaconf": {"OmegaConf": settings}, "taming": {}, "taming.models": {},
        "taming.models.vqgan": {"VQModel": NoTokenizer}, "cv2": {},
    }.items():  # fmt: skip
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(parts)
    vars(numpy)["float"] = float  # its name in the public code's time
    network: nn.Module = imported(public, "models_mage").MaskedGenerativeEncoderViT(
        embed_dim=WIDTH, depth=1, num_heads=12, decoder_embed_dim=WIDTH, decoder_depth=1, decoder_num_heads=16,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    x, x_0, noise = inputs["tokens"], inputs["x_0"], inputs["noise"]
    first = torch.full_like(x[:, :1], network.fake_class_label)
    x = torch.cat([first, torch.where(x == CODES, network.mask_token_label, x)], 1)
    encoded = network.token_emb(x)
    for block in network.blocks:
        encoded = block(encoded)
    is_masked = x == network.mask_token_label
    logits = network.forward_decoder(network.norm(encoded), torch.zeros_like(x), is_masked)[:, 1:, :CODES]
    ratio = SimpleNamespace(rvs=lambda _: [RATE])
    with greedily(), drawn(rand=[noise]), mock.patch.object(network, "mask_ratio_generator", ratio):
        loss = network(x_0)[0]
    return {"logits": logits, "loss": loss, "tokens": _sampled(network)}


def _sampled(network: Any) -> Tensor:
    generation = _functions(Path(sys.modules["models_mage"].__file__ or "").parent / "gen_img_uncond.py")
    with greedily():
        generation["gen_image"](network, 1, 0, num_iter=STEPS, choice_temperature=0.0)
    kept: Tensor = network.vqgan.kept
    return kept


def _functions(path: Path) -> dict[str, Any]:
    """The functions of a public program, without running it."""
    head, _, _ = path.read_text().partition("parser = ")
    names: dict[str, Any] = {}
    exec(compile(head, str(path), "exec"), names)
    return names


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network, x_0, noise = converted("mage", state), inputs["x_0"], inputs["noise"]
    n_masked = -int(-RATE * x_0.shape[1] // 1)
    x_t = torch.where(noise.argsort(1).argsort(1) < n_masked, CODES, x_0)
    t = torch.zeros(1)
    start = torch.full((1, SIDE * SIDE), CODES)
    sampler = mage(STEPS, choice_temperature=0.0)
    return {
        "logits": network(inputs["tokens"], t).logits,
        "loss": loss_of_masks("image/imagenet-mage-b", network, x_0, x_t, noise, None),
        "tokens": greedy(sampler, lambda x: network(x, t).logits, start, (SIDE, SIDE)),
    }


TOKENS = (2, SIDE * SIDE)
PARITY = Parity(
    "mage",
    {"tokens": Input(TOKENS, below=CODES + 1), "x_0": Input(TOKENS, below=CODES), "noise": Input(TOKENS)},
    build,
    theirs,
    ours,
    skipped=("cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias",
             "decoder_pred.weight", "decoder_pred.bias"),
)  # fmt: skip

if __name__ == "__main__":
    run(PARITY, __doc__)

"""aMUSEd: the network and the scheduler of diffusers beside ours.

    python benchmarks/parity/amused.py --public DIR    # any folder: the public code is the package diffusers

Logits with captions, and the tokens of the scheduler in 4, 8 and 12 steps with the mode of every token and without
noise, some tokens known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from decoded import greedy
from harness import Input, Parity, Tensors, run
from torch import Tensor, nn

from maskgen.core.predictions import Condition
from maskgen.models import MODELS
from maskgen.samplers.masked.presets import amused

SIDE, CODES, ROWS, WIDTH, LENGTH = 8, 32, 40, 16, 3
STEPS = (4, 8, 12)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
"""Of the public network."""


def build(public: Path) -> nn.Module:  # noqa: ARG001
    from diffusers import UVit2DModel

    return UVit2DModel(  # type: ignore[no-any-return]
        **SIZES, cond_embed_dim=WIDTH, encoder_hidden_size=WIDTH, vocab_size=ROWS, codebook_size=CODES, in_channels=32,
        block_out_channels=32, block_num_heads=2, num_res_blocks=1, downsample=True, upsample=True,
    )  # fmt: skip


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    from diffusers import AmusedScheduler

    captions, micro = inputs["captions"], torch.tensor([[128.0, 128, 0, 0, 6]]).expand(len(inputs["captions"]), -1)

    def logits_of(x: Tensor) -> Tensor:
        ids = torch.where(x == CODES, ROWS - 1, x).view(-1, SIDE, SIDE)
        logits: Tensor = network(ids, captions[:, 1:], captions[:, 0], micro)
        return logits

    tokens = []
    for n in STEPS:
        scheduler = AmusedScheduler(mask_token_id=CODES)
        scheduler.set_timesteps(n, (0, 0))
        x = start_of(inputs["tokens"])
        share = float((x == CODES).float().mean())  # of masked tokens, as in the pipeline that completes pictures
        for timestep in scheduler.timesteps:
            with mock.patch("torch.multinomial", lambda p, *_, **__: p.argmax(-1, keepdim=True)):
                x = scheduler.step(logits_of(x).flatten(2).mT, timestep, x, share).prev_sample
        tokens.append(x)
    return {"logits": logits_of(inputs["tokens"]).flatten(2).mT, "tokens": torch.stack(tokens)}


def start_of(tokens: Tensor) -> Tensor:
    """Every fourth token is known and the last: 47 are masked, and no count is a whole cosine, which float32 misses."""
    place = torch.arange(tokens.shape[1])
    return torch.where((place % 4 == 0) | (place == tokens.shape[1] - 1), tokens % CODES, CODES)


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    keys = {"width": 32, "depth": 2, "heads": 2, "hidden": 64, "channels": 32, "channel_heads": 2, "n_residual": 1}
    spec = {"type": "amused", **keys, "is_halved": True, "table_rows": ROWS, "caption_length": LENGTH}
    network: Any = MODELS.build(
        spec, vocab_size=CODES, grid=(SIDE, SIDE), image_shape=(3, 128, 128), caption_width=WIDTH
    )
    network.network.load_state_dict(state)
    x, cond = inputs["tokens"], Condition(torch.zeros(len(inputs["tokens"])).long(), inputs["captions"])
    t, start = torch.zeros(len(x)), start_of(x)

    def logits_of(x_t: Tensor) -> Tensor:
        logits: Tensor = network.eval()(x_t, t, cond).logits
        return logits

    tokens = [greedy(amused(n, choice_temperature=0.0), logits_of, start, (SIDE, SIDE)) for n in STEPS]
    return {"logits": logits_of(x), "tokens": torch.stack(tokens)}


PARITY = Parity(
    "amused",
    {"tokens": Input((2, SIDE * SIDE), below=CODES + 1), "captions": Input((2, 1 + LENGTH, WIDTH))},
    build,
    theirs,
    ours,
)

if __name__ == "__main__":
    run(PARITY, __doc__)

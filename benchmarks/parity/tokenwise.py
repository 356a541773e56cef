"""What the scripts of MAR and eMIGM share: masks, the loss of the diffusion head, and samples with given noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from harness import Input, Tensors
from noised import drawn
from torch import Tensor, nn

from maskgen.core.predictions import Condition
from maskgen.recipes.load import load_recipe
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.loop import MaskedSampler
from maskgen.samplers.masked.order import Order, Proposal

SIDE, WIDTH, CLASSES, ROWS, MASKED, REPEATS = 4, 16, 7, 2, 9, 4
LENGTH = SIDE**2
STEPS, HEAD_STEPS = 4, 3
INPUTS = {
    "latents": Input((ROWS, WIDTH, SIDE, SIDE)),
    "labels": Input((ROWS,), below=CLASSES),
    "order": Input((ROWS, LENGTH)),
    "noise": Input((REPEATS, ROWS, LENGTH, WIDTH)),
    "t": Input((REPEATS, ROWS, LENGTH), below=1000),
    "vectors": Input((STEPS, HEAD_STEPS + 1, ROWS, LENGTH, WIDTH)),
}


def sizes(buffers: int = 3) -> dict[str, Any]:
    """Of the public network: the width of eMIGM-XS, one block each, a head of two."""
    return {
        "img_size": 16 * SIDE, "encoder_embed_dim": 448, "encoder_depth": 1, "encoder_num_heads": 8,
        "decoder_embed_dim": 448, "decoder_depth": 1, "decoder_num_heads": 8, "class_num": CLASSES,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6), "buffer_size": buffers, "diffloss_w": 64,
        "diffloss_d": 2, "num_sampling_steps": str(HEAD_STEPS), "diffusion_batch_mul": REPEATS,
    }  # fmt: skip


def is_masked(inputs: Tensors) -> Tensor:
    """(B, L) bool, `MASKED` of each row."""
    rank = inputs["order"].argsort(1)
    return torch.zeros(rank.shape, dtype=torch.bool).scatter(1, rank[:, :MASKED], True)


def their_z(network: Any, inputs: Tensors) -> Tensor:
    """(B, L, W), the public decoder's output."""
    mask, x = is_masked(inputs).float(), network.patchify(inputs["latents"])
    encoded = network.forward_mae_encoder(x, mask, network.class_emb(inputs["labels"]))
    z: Tensor = network.forward_mae_decoder(encoded, mask)
    return z


def their_loss(network: Any, inputs: Tensors) -> Tensor:
    """The public loss of the head, on masked tokens."""
    flat = inputs["noise"].reshape(-1, WIDTH)
    with drawn(randint=[inputs["t"].reshape(-1)], randn_like=[flat]):
        loss: Tensor = network.forward_loss(
            their_z(network, inputs), network.patchify(inputs["latents"]), is_masked(inputs).float()
        )
    return loss


def our_inputs(inputs: Tensors) -> tuple[Tensor, Tensor, Condition]:
    """x_0 (B, L, D), x_t with NaN where masked, and the condition."""
    x_0 = inputs["latents"].flatten(2).mT
    return x_0, x_0.masked_fill(is_masked(inputs)[..., None], torch.nan), Condition(inputs["labels"])


def our_loss(recipe: str, network: Any, inputs: Tensors) -> Tensor:
    """The loss of a shipped recipe's objective with the same noise."""
    x_0, x_t, cond = our_inputs(inputs)
    head = network(x_t, torch.ones(len(x_t)), cond, where=is_masked(inputs))
    objective: Any = load_recipe(recipe).build_objective()
    draws = mock.Mock()
    draws.normal.return_value = inputs["noise"].transpose(0, 1)
    draws.uniform.return_value = 1 - (inputs["t"].transpose(0, 1)[..., None].double() + 0.5) / 1000
    loss: Tensor = objective._head_loss(head, x_0, draws)[0].mean()
    return loss


@contextmanager
def sampling_of(network: Any, inputs: Tensors) -> Iterator[None]:
    """The public sampler takes the order and the noise of the inputs, and stays on the CPU."""
    order, draws = inputs["order"].argsort(1), []  # the last are revealed first
    left = LENGTH
    for step, noises in enumerate(inputs["vectors"]):
        stays = max(1, min(left - 1, math.floor(LENGTH * math.cos(math.pi / 2 * (step + 1) / STEPS))))
        chosen = order[:, (0 if step == STEPS - 1 else stays) : left]
        where = torch.zeros(ROWS, LENGTH, dtype=torch.bool).scatter(1, chosen, True)
        draws.append([noise[where] for noise in noises])
        left = stays
    starts, steps = [one[0] for one in draws], [noise.repeat(2, 1) for one in draws for noise in one[1:]]
    with (
        mock.patch.object(network, "sample_orders", return_value=order),
        mock.patch.object(torch.Tensor, "cuda", lambda self: self),
        drawn(randn=starts, randn_like=steps),
    ):
        yield


@dataclass(frozen=True)
class Given(Order):
    """Scores (B, L) as given."""

    scores: Tensor

    def score(self, proposal: Proposal, rng: Any) -> Tensor:  # noqa: ARG002 - one signature for all orders
        return self.scores.double().masked_fill(~proposal.where, -torch.inf)


class Replayed:
    """The noise of each decoding step, in the order it is drawn."""

    def __init__(self, vectors: Tensor, step: int | None = None) -> None:
        self.vectors, self.step, self.done = vectors, step, 0

    def fork(self, *keys: int | str) -> Replayed:
        return Replayed(self.vectors, int(keys[-1]) if keys[0] == "vectors" else self.step)

    @property
    def generators(self) -> Replayed:
        return self

    def normal(self, shape: Any, *, device: Any = "cpu") -> Tensor:  # noqa: ARG002
        assert self.step is not None
        self.done += 1
        noise = self.vectors[self.step, self.done - 1]
        assert noise.shape == tuple(shape)
        return noise


def our_sample(network: Any, inputs: Tensors, sampler: MaskedSampler, guidance: Guidance) -> Tensor:
    """(B, D, h, w) with the same order and noise."""
    draws: Any = Replayed(inputs["vectors"])
    denoise = guidance.bind(network, Condition(inputs["labels"]))
    x_1 = torch.full((ROWS, LENGTH, WIDTH), torch.nan)
    given = replace(sampler, order=Given(inputs["order"]))
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", _channels_first):
        x_0 = given(denoise, x_1, draws, mask_id=0, grid=(SIDE, SIDE))
    return x_0.mT.unflatten(2, (SIDE, SIDE))


def _channels_first(shape: Any, *, generator: Replayed, **_: Any) -> Tensor:
    """The next noise (B, D, L), as diffusers draws it."""
    return generator.normal((shape[0], shape[2], shape[1])).mT

"""The public weights of MicroDiT, by their names and shapes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.checkpoints.convert.microdit import COMPUTED, microdit
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.models.microdit import MicroDiT
from maskgen.tokenizers.image.patches import patchify, unpatchify

LAYOUT = Path(__file__).parents[1] / "golden" / "microdit_xl2.txt"


def published() -> dict[str, Tensor]:
    """All 478 tensors of the XL, without their numbers."""
    lines = (line.split("\t") for line in LAYOUT.read_text().splitlines())
    return {name: torch.empty(ast.literal_eval(shape), device="meta") for name, shape in lines}


def test_every_public_tensor_is_taken_and_every_parameter_filled() -> None:
    state = published()
    assert len(state) == 478
    with torch.device("meta"):
        network = MicroDiT(16, (16, 16), caption_width=1024)
    ours = microdit(state)
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    assert sum(value.numel() for value in ours.values()) == sum(
        value.numel() for name, value in state.items() if name not in COMPUTED
    )


def test_the_patch_embedding_is_the_published_convolution() -> None:
    rng, latents = Rng.stream(0), Rng.stream(1).normal((2, 4, 6, 6))
    weight = rng.normal((5, 4, 2, 2))
    ours = microdit({"x_embedder.proj.weight": weight})["embedding.weight"]
    by_convolution = F.conv2d(latents, weight, stride=2).flatten(2).mT
    torch.testing.assert_close(F.linear(patchify(latents, 2), ours), by_convolution, atol=1e-5, rtol=1e-5)


def test_the_head_puts_every_number_where_the_published_one_does() -> None:
    x, weight, bias = (Rng.stream(seed).normal(shape) for seed, shape in enumerate([(2, 9, 5), (16, 5), (16,)]))
    theirs = F.linear(x, weight, bias).view(2, 3, 3, 2, 2, 4)  # rows, columns, rows and columns of a patch, channels
    image = theirs.permute(0, 5, 1, 3, 2, 4).reshape(2, 4, 6, 6)
    ours = microdit({"final_layer.linear.weight": weight, "final_layer.linear.bias": bias})
    answer = F.linear(x, ours["head.out.weight"], ours["head.out.bias"])
    torch.testing.assert_close(unpatchify(answer, (3, 3), 2), image)


def test_what_is_joined_there_is_split_here_and_the_other_way_round() -> None:
    qkv, w_1, w_2 = Rng.stream(0).normal((12, 8)), torch.zeros(6, 8), torch.ones(6, 8)
    names = {"attn.qkv.weight": qkv, "mlp.w1.weight": w_1, "mlp.w2.weight": w_2}
    ours = microdit({f"blocks.0.{name}": value for name, value in names.items()})
    assert torch.equal(torch.cat([ours["blocks.0.attention.q.weight"], ours["blocks.0.attention.kv.weight"]]), qkv)
    assert torch.equal(ours["blocks.0.attention.q.weight"], qkv[:4])
    assert torch.equal(ours["blocks.0.mlp.expand.weight"], torch.cat([w_1, w_2]))


def test_a_tensor_of_another_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"module\.blocks\.0\.norm1\.weight is no tensor of a MicroDiT"):
        microdit({"module.blocks.0.norm1.weight": torch.zeros(1)})

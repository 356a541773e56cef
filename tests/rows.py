"""A small transformer on rows of several streams, noisy numerals as such rows, and a check of what they show."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from maskgen.core.predictions import Batch, Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.objectives import MaskedTokens

HEIGHT, WIDTH = 5, 3
IMAGE = Stream("image", "image", 2, (HEIGHT, WIDTH))
LABEL = Stream("label", "label", 10, (1,))
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ALPHABET = " " + "".join(sorted(set("".join(NAMES))))
CAPTION = Stream("caption", "text", len(ALPHABET), (5,))
N_TRAIN, N_HELD_OUT = 1500, 300
NOISE = 0.01
"""Share of pixels that are flipped."""

NUMERALS = (
    "###|# #|# #|# #|###", "  #|  #|  #|  #|  #", "###|  #|###|#  |###", "###|  #|###|  #|###", "# #|# #|###|  #|  #",
    "###|#  |###|  #|###", "###|#  |###|# #|###", "###|  #|  #|  #|  #", "###|# #|###|# #|###", "###|# #|###|  #|###",
)  # fmt: skip
"""A pixel tells some numerals apart, so that a part of a picture is ambiguous."""


class RowTransformer(nn.Module):
    """Rows (B, L) of a layout -> logits (B, L, V): an embedding and a head of each stream, one transformer for all."""

    def __init__(self, layout: TokenLayout, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.layout = layout
        sizes = [stream.vocab_size for stream in layout.streams]
        # One vector for each pair of position and token, the last token is [MASK].
        self.embeddings = nn.ModuleList(
            nn.Embedding(stream.length * (stream.vocab_size + 1), width) for stream in layout.streams
        )
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        streams = zip(self.layout.streams, self.embeddings, self.layout.split(x_t).values(), strict=True)
        x = torch.cat(
            [embed(torch.arange(one.length) * (one.vocab_size + 1) + tokens) for one, embed, tokens in streams], 1
        )
        parts = self.layout.parts(self.blocks(x)).items()
        return Categorical(
            self.layout.join_logits({name: head(part) for head, (name, part) in zip(self.heads, parts, strict=True)})
        )


@cache
def prototypes() -> Tensor:
    """(10, 15), the numerals without noise."""
    return torch.tensor([[mark == "#" for mark in rows.replace("|", "")] for rows in NUMERALS]).long()


@cache
def numerals() -> tuple[Tensor, Tensor]:
    """Noisy images (N, 5, 3) and labels (N,)."""
    rng = Rng.stream("numerals")
    labels = (rng.uniform((N_TRAIN + N_HELD_OUT,)) * 10).long()
    is_flipped = rng.uniform((len(labels), HEIGHT * WIDTH)) < NOISE
    return (prototypes()[labels] ^ is_flipped.long()).view(-1, HEIGHT, WIDTH), labels


def spelled(labels: Tensor) -> Tensor:
    """Labels (B,) -> (B, 5), their names in letters, filled with spaces."""
    rows = [[ALPHABET.index(letter) for letter in name.ljust(5)] for name in NAMES]
    return torch.tensor(rows)[labels]


def rows_of(layout: TokenLayout) -> Tensor:
    """(N, L), the numerals and what the layout has of label and caption."""
    images, labels = numerals()
    parts = {"image": images, "label": labels[:, None], "caption": spelled(labels)}
    return layout.join({name: parts[name] for name in layout.index_of})


def trained(layout: TokenLayout, objective: MaskedTokens, steps: int, size: int = 64) -> RowTransformer:
    """A network trained on the first rows of the numerals."""
    torch.manual_seed(0)
    network, rows = RowTransformer(layout), rows_of(layout)[:N_TRAIN]
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        rng = Rng.stream("train", step)
        batch = Batch(rows[(rng.uniform((size,)) * len(rows)).long()])
        objective(network, batch, rng).value.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return network.eval()


def classified(images: Tensor) -> Tensor:
    """(B, 15) pixels -> (B,), the label of the nearest numeral."""
    return torch.cdist(images.float(), prototypes().float()).argmin(1)

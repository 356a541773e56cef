"""A data set, model, tokenizer or sampler order is one new file: found, validated, built, trained, sampled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FILES = {
    "data/image/stripes.py": '''
"""Stripes."""

from __future__ import annotations

import torch

from maskgen.data.base import DATASETS, ImageSource, ImageSplit, SplitName, TensorSplit


@DATASETS.register("stripes")
class Stripes(ImageSource):
    """Rows of black and white."""

    name = "stripes"
    classes = ("even", "odd")
    image_shape = (1, 8, 8)

    def _load(self, split: SplitName) -> ImageSplit:
        labels = torch.arange(32) % 2
        rows = (torch.arange(8)[None, :] + labels[:, None]) % 2
        return TensorSplit((255 * rows[:, None, :, None].expand(-1, 1, -1, 8)).to(torch.uint8), labels)
''',
    "tokenizers/image/threshold.py": '''
"""Black or white."""

from __future__ import annotations

from torch import Tensor

from maskgen.tokenizers.base import TOKENIZERS, ImageTokenizer


@TOKENIZERS.register("threshold")
class Threshold(ImageTokenizer):
    """A pixel is token 1 if it is light."""

    vocab_size = 2

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid = image_shape[1:]

    def encode(self, images: Tensor) -> Tensor:
        return (images > 0.5).long().flatten(1)

    def decode(self, tokens: Tensor) -> Tensor:
        return tokens.float().view(-1, 1, *self.grid)
''',
    "models/convolutions.py": '''
"""Convolutions over the grid of tokens."""

from __future__ import annotations

from torch import Tensor, nn

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS


@MODELS.register("convolutions")
class Convolutions(nn.Module):
    """An embedding and two convolutions."""

    traits = NetworkTraits(objectives=("masked_tokens",), tokens=("discrete",), streams=("image",), conditions=())

    def __init__(self, vocab_size: int, grid: tuple[int, int], width: int = 8) -> None:
        super().__init__()
        self.grid = grid
        self.embedding = nn.Embedding(vocab_size + 1, width)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, vocab_size, 3, padding=1)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, *, subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        x = self.embedding(x_t).mT.unflatten(2, self.grid)
        logits = self.head(self.body(x).relu()).flatten(2).mT
        return Categorical(logits if where is None else logits[where], where)
''',
    "samplers/masked/snake.py": '''
"""Every second token first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.samplers.masked.order import ORDERS, Order, Proposal


@ORDERS.register("snake")
@dataclass(frozen=True)
class Snake(Order):
    """Even positions before odd ones."""

    def score(self, proposal: Proposal, rng: Rng) -> Tensor:
        index = torch.arange(proposal.where.shape[1], device=proposal.where.device)
        return torch.where(proposal.where, (-(index % 2)).double(), -torch.inf)
''',
}
SCRIPT = """
import torch
from maskgen.core.predictions import Batch
from maskgen.core.rng import Rng
from maskgen.data.base import DATASETS
from maskgen.pipelines.generator import Generator
from maskgen.recipes.build import DataFacts, build_system
from maskgen.recipes.load import parse_recipe

recipe = parse_recipe({
    "data": "stripes", "tokenizer": "threshold", "model": {"type": "convolutions", "width": 4},
    "objective": {"type": "masked_tokens", "label_dropout": 0}, "sampler": {"type": "maskgit", "steps": 4},
})
source = recipe.build_data()
tokenizer = recipe.build_tokenizer(source.image_shape)
system = build_system(recipe, DataFacts.of(source), tokenizer)
images, labels = source.split("train").__getitems__(range(4))
loss = system.objective(system.network, Batch(tokenizer.encode(images / 255)), Rng.stream(0))
loss.value.backward()
print("images", tuple(Generator.of(system, torch.device("cpu")).images([0, 1]).shape))
"""


def copy_of(package: Path, home: Path, added: set[str]) -> None:
    """The package as links to its files; folders that hold an added file are real folders."""
    home.mkdir()
    for entry in package.iterdir():
        inside = {name.split("/", 1)[1] for name in added if name.startswith(f"{entry.name}/")}
        if inside:
            copy_of(entry, home / entry.name, inside)
        else:
            (home / entry.name).symlink_to(entry)


@pytest.mark.slow
def test_a_new_part_is_one_file(tmp_path: Path) -> None:
    copy_of(ROOT / "maskgen", tmp_path / "maskgen", set(FILES))
    for program in ("train", "sample", "configs"):
        (tmp_path / "maskgen" / program).symlink_to(ROOT / program)
    for name, text in FILES.items():
        (tmp_path / "maskgen" / name).write_text(text.lstrip())
    for name in ("tests", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-2] == "images (2, 1, 8, 8)"
    laws = ["tests/core/test_traits.py", "tests/samplers/test_order.py", "tests/samplers/test_masked.py"]
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *laws, "-k", "convolutions or snake"]
    run = subprocess.run(pytest_run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout

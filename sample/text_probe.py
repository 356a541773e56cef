"""`maskgen probe` of a text generator: retrieval of second halves, and inversion of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.checkpoints.checkpoint import Checkpoint, load_text_model
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.core.traits import network_of, traits_of
from maskgen.data.text.rows import TextData, text_data
from maskgen.evaluation.probes.classifiers import Accuracy
from maskgen.evaluation.probes.inversion import STEPS, inverted
from maskgen.evaluation.probes.retrieval import Pairs, nearest_halves, retrieval_head
from maskgen.evaluation.report import Entry, Made, Report

TEXT_METHODS = ("retrieval", "inversion")
HALF, N_TRAIN, N_INVERTED, BATCH = 2, 400, 4, 64
"""Most rows of half a passage; passages that the head is trained on; inverted rows; rows of a pass."""

Embed = Callable[[Tensor], Tensor]


def text_report(
    checkpoint: Checkpoint, source: str, methods: Sequence[str], seed: int, device: torch.device, has_baseline: bool
) -> Report:
    """What the methods find, all of them if none is given.

    Raises:
        UserError: a method of images, a network without features, or a text that is too short.
    """
    methods = methods or TEXT_METHODS
    if wrong := [one for one in methods if one not in TEXT_METHODS]:
        raise UserError(f"--method {wrong[0]} is for images, {source} is a text generator; use retrieval or inversion")
    model, tokenizer = load_text_model(checkpoint)
    if not traits_of(model).has_features:
        raise UserError(f"{source}: a {type(model).__name__} has no features to be probed")
    text = checkpoint.recipe.build_text()
    train, test = (
        TextData(text_data(text, split, tokenizer).packed, text.length, text.length) for split in ("train", "test")
    )
    made: Made = {"seed": seed, "sampler": {"checkpoint": source, "step": checkpoint.step}}
    n_counted = tokenizer.vocab_size if has_baseline else 0
    entries = text_entries(network_of(model.to(device)), (train, test), methods, n_counted, made)
    return Report(entries[0], others=entries[1:])


def text_entries(
    network: Any, data: tuple[TextData, TextData], methods: Sequence[str], n_counted: int, made: Made
) -> list[Entry]:
    """What the methods find in a network with the trait `has_features`, on its device.

    Args:
        network: of text.
        data: rows of the training and the test split.
        methods: of `TEXT_METHODS`.
        n_counted: vocabulary size V, for retrieval by counts of tokens beside; 0 for none.
        made: the seed, and where the network is from.
    """
    device, entries = network.embedding.weight.device, list[Entry]()

    def embed(rows: Tensor) -> Tensor:
        found: Tensor = network.features(rows.to(device)).mean(1).cpu()
        return found

    def counted(rows: Tensor) -> Tensor:
        return F.one_hot(rows, n_counted).float().mean(1)

    if "retrieval" in methods:
        encoders = {f"{type(network).__name__}, mean of tokens": embed}
        for label, encoder in (encoders | ({"counts of tokens": counted} if n_counted else {})).items():
            entries += _retrieval(encoder, label, data, made)
    if "inversion" in methods:
        entries.append(_inversion(network, data[1], Rng.stream(made.get("seed", 0), "inversion"), made))
    return entries


def _retrieval(embed: Embed, name: str, data: tuple[TextData, TextData], made: Made) -> Iterator[Entry]:
    """Top-1 with and without the head."""
    half = max(1, min(HALF, min(len(one) for one in data) // 4))
    train, test = (_pairs(embed, one, half, limit) for one, limit in zip(data, (N_TRAIN, None), strict=True))
    facts = {"tokens_per_half": half * data[1].length, "train_passages": len(train.first)}
    for kind, found in (
        ("infonce", retrieval_head(train, test)),
        ("cosine", nearest_halves(test.standardised(train))),
    ):
        yield _entry(f"retrieval_top1[{kind}]", name, found, facts, made)


@torch.no_grad()
def _pairs(embed: Embed, data: TextData, half: int, limit: int | None) -> Pairs:
    """Mean embeddings of the rows of each half of passages that follow each other, evenly spread if limited."""
    n_passages = len(data) // (2 * half)
    if n_passages < 2:
        raise UserError(
            f"retrieval needs 2 passages of {2 * half * data.length} tokens in each split; use a longer text"
        )
    chosen = torch.linspace(0, n_passages - 1, min(limit or n_passages, n_passages)).long()
    rows = (chosen[:, None] * 2 * half + torch.arange(2 * half)).flatten().tolist()
    parts = [embed(data.__getitems__(rows[i : i + BATCH])[0]) for i in range(0, len(rows), BATCH)]
    halves = torch.cat(parts).unflatten(0, (-1, 2, half)).mean(2)  # (N, 2, D)
    return Pairs(halves[:, 0], halves[:, 1])


def _inversion(network: Any, data: TextData, rng: Rng, made: Made) -> Entry:
    """Share of the tokens of some rows that their hidden vectors determine."""
    rows = torch.linspace(0, len(data) - 1, min(N_INVERTED, len(data))).long().tolist()
    network.eval().requires_grad_(False)
    ids = network.inputs(data.__getitems__(rows)[0].to(network.embedding.weight.device))
    right = (inverted(network.features_of, ids, network.embedding.weight, rng) == ids).double()
    facts = {"steps": STEPS, "tokens": ids.numel()}
    return _entry(
        "inversion_accuracy", f"{type(network).__name__}", Accuracy(float(right.mean()), ids.numel()), facts, made
    )


def _entry(name: str, of: str, found: Accuracy, facts: dict[str, Any], made: Made) -> Entry:
    return Entry(name, of, found.value, found.n, standard_error=found.standard_error, facts=facts, **made)

"""`maskgen evaluate --metric likelihood`: likelihood of held-out text or images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import Checkpoint, CheckpointError, load_model, load_text_model, read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.core.pixels import to_uint8
from maskgen.core.predictions import Condition
from maskgen.core.rng import Rng
from maskgen.core.traits import traits_of
from maskgen.data.cache import token_data
from maskgen.data.loader import Rows, in_order
from maskgen.data.text.answers import answer_data
from maskgen.data.text.conversations import Conversations
from maskgen.data.text.rows import TextData, text_data
from maskgen.evaluation.metrics.likelihood import Likelihood, answer_likelihood, corpus_likelihood
from maskgen.evaluation.report import Report, publish
from maskgen.schedules import Linear, Schedule
from maskgen.tokenizers.text.tokenizer import TextTokenizer

from .metric import METRICS, metric
from .pictures import check_writable

BATCH_TOKENS = 8192
"""Tokens computed together."""


@METRICS.register("likelihood")
@metric(is_default=True)
def run(
    source: str,
    /,
    *,
    split: str = "test",
    strata: int = 8,
    seed: int = 0,
    output: str | None = None,
    device: str = "auto",
) -> str:
    """Bits per token, character, byte or dimension of held-out data, with error bars.

    Raises:
        UserError: a checkpoint, split, number of strata or output that cannot be used.
    """
    path = check_writable(output, (".json",)) if output else None
    if strata != 1 and (strata < 2 or strata % 2):
        raise UserError(f"--strata must be 1 or even, got {strata}: the error comes from two independent halves")
    checkpoint = read_checkpoint(source)
    if checkpoint.recipe.task != "generator":
        raise UserError(f"{source} is a {checkpoint.recipe.task}: it has no likelihood")
    place = pick_device(device)
    score = _score_text if checkpoint.recipe.kind == "text" else _score_images
    found, of = score(checkpoint, split, strata, Rng.stream(seed), place)
    entries = [replace(entry, seed=seed) for entry in found.entries(of)]
    return publish(Report(entries[0], others=entries[1:]), path)


def _score_text(
    checkpoint: Checkpoint, split: str, strata: int, rng: Rng, device: torch.device
) -> tuple[Likelihood, str]:
    network, tokenizer = load_text_model(checkpoint)
    source = checkpoint.recipe.build_text()
    if isinstance(source, Conversations):
        return _score_answers(checkpoint, source, network.to(device), tokenizer, split, strata, rng)
    packed = text_data(source, split, tokenizer).packed
    data = TextData(packed, source.length, source.length)  # training rows may overlap; here each token counts once

    traits = traits_of(network)
    left_out = tokenizer.decode(data.tail) if traits.has_fixed_grid and not traits.is_autoregressive else ""

    def batches() -> Iterator[Tensor]:
        yield from (x_0 for x_0, _ in _shown(data, data.length))
        if len(data.tail) and not left_out:
            yield data.tail[None]

    mask_id, schedule = tokenizer.vocab_size, schedule_of(checkpoint)
    eos = tokenizer.eos if checkpoint.recipe.train.document_attention else None
    found = corpus_likelihood(
        network.to(device), batches(), rng, mask_id=mask_id, strata=strata, schedule=schedule, eos=eos
    )
    n_characters, n_bytes = data.characters - len(left_out), data.n_bytes - len(left_out.encode())
    return replace(found, n_characters=n_characters, n_bytes=n_bytes), f"{source.name} {split}"


def _score_answers(
    checkpoint: Checkpoint,
    source: Conversations,
    network: nn.Module,
    tokenizer: TextTokenizer,
    split: str,
    strata: int,
    rng: Rng,
) -> tuple[Likelihood, str]:
    """Bits of the answers of conversations, each given its prompt, with the token that ends it."""
    data = answer_data(source, split, tokenizer)
    if not len(data):
        raise UserError(f"--split {split}: {source.name} has no answer there; use another split")
    tokens = [data[index][0][:size] for index, size in enumerate(data.sizes.tolist())]
    rows = [(row[:n], row[n:]) for row, n in zip(tokens, data.n_prompt.tolist(), strict=True)]
    bar = tqdm(rows, "likelihood", unit="answer", disable=None)
    mask_id, schedule = tokenizer.vocab_size, schedule_of(checkpoint)
    found = answer_likelihood(network, bar, rng, strata, schedule, mask_id=mask_id)
    texts = [tokenizer.decode(answer[:-1]) for _, answer in rows]
    n_characters, n_bytes = (sum(map(len, some)) or None for some in (texts, [text.encode() for text in texts]))
    return replace(found, n_characters=n_characters, n_bytes=n_bytes), f"answers of {source.name} {split}"


def _score_images(
    checkpoint: Checkpoint, split: str, strata: int, rng: Rng, device: torch.device
) -> tuple[Likelihood, str]:
    """Bits per dimension where the tokenizer is lossless; conditional on the class if the model is."""
    if split not in ("train", "test"):
        raise UserError(f"--split {split}: images have the splits train and test")
    network, tokenizer = load_model(checkpoint)
    if tokenizer is None or not tokenizer.vocab_size:
        raise CheckpointError(f"{checkpoint.path} has continuous tokens; likelihood needs a vocabulary")
    source = checkpoint.recipe.build_data()
    images = source.split("train" if split == "train" else "test")
    data = token_data(images, tokenizer, device=device)
    has_labels = bool(checkpoint.classes) and traits_of(network).takes_classes

    def batches() -> Iterator[Tensor | tuple[Tensor, Condition]]:
        for x_0, labels in _shown(data, data.length):
            yield (x_0, Condition(labels)) if has_labels else x_0

    mask_id, schedule = tokenizer.vocab_size, schedule_of(checkpoint)
    found = corpus_likelihood(network.to(device), batches(), rng, mask_id=mask_id, strata=strata, schedule=schedule)
    few, tokens = images.__getitems__(range(min(len(images), 100)))[0], data.__getitems__(range(min(len(data), 100)))[0]
    if torch.equal(to_uint8(tokenizer.decode(tokens.to(device))).cpu(), few):  # else they are bits of something else
        found = replace(found, n_dims=len(images) * few[0].numel())
    return found, f"{source.name} {split}{' given the class' if has_labels else ''}"


def _shown(data: Rows, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of about `BATCH_TOKENS`, with a progress bar."""
    size = max(BATCH_TOKENS // length, 1)
    return iter(tqdm(in_order(data, size), "likelihood", -(-len(data) // size), unit="batch", disable=None))


def schedule_of(checkpoint: Checkpoint) -> Schedule:
    """The schedule of training, for networks conditioned on time."""
    return checkpoint.recipe.masking_schedule() or Linear()

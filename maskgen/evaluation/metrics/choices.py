"""Likelihood of an answer given a prompt, and tasks with several answers to choose from."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.devices import device_of
from maskgen.core.errors import UserError, first_line
from maskgen.core.files import numbered_lines
from maskgen.core.positions import categorical_at
from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.core.traits import traits_of
from maskgen.schedules import Fixed, Linear, Schedule

GROUPS = 8
"""Independent groups of draws, whose spread gives the error."""
BATCH_TOKENS = 8192
"""Tokens computed together."""


@dataclass(frozen=True)
class Task:
    """A prompt and its possible answers; `answer` is the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class AnswerNll:
    """-log p(answer | prompt), or an estimate of an upper bound on it.

    Attributes:
        nats: summed over the answer's tokens.
        error: standard error over masks; 0 if nothing is drawn, None for a single draw.
        n_draws: masks that the network was evaluated on.
        is_bound: whether `nats` estimates a bound, and not the value itself.
    """

    nats: float
    error: float | None
    n_draws: int
    is_bound: bool


def read_tasks(file: Path) -> list[Task]:
    """Tasks of a .jsonl, an object with `prompt`, `choices` and `answer` a line; the answer is an index or a choice.

    Raises:
        UserError: no such file, no task, or a line that is none; the message says which.
    """
    try:
        lines = numbered_lines(file)
    except (OSError, ValueError) as error:
        raise UserError(f"no tasks at {file}: {first_line(error)}; a line is {EXAMPLE}") from None
    return [_task(line, f"{file}, line {number}") for number, line in lines]


EXAMPLE = '{"prompt": "The sky is", "choices": [" blue", " green"], "answer": 0}'


def _task(line: str, where: str) -> Task:
    try:
        tree = json.loads(line)
        prompt, choices, answer = tree["prompt"], tree["choices"], tree["answer"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where}: not a task; write {EXAMPLE}") from None
    if not isinstance(prompt, str) or not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise UserError(f"{where}: prompt must be a text and choices a list of texts; write {EXAMPLE}")
    if len(set(choices)) < max(len(choices), 2) or "" in choices:
        raise UserError(f"{where}: a task needs two different choices at least, none of them empty")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(f"{where}: answer must be one of the choices or its index from 0, got {answer!r}")
    return Task(prompt, tuple(choices), answer)


@torch.no_grad()
def answer_nll(
    model: Callable[..., Categorical | Tensor],
    prompt: Tensor,
    answer: Tensor,
    rng: Rng,
    draws: int,
    schedule: Schedule = Linear(),
    *,
    mask_id: int,
) -> AnswerNll:
    """-log p(answer | prompt) in float32 with sums in float64.

    Autoregressive models: exactly, in one pass. All others: n/k times the cross-entropy of k masked tokens of the
    answer's n, k uniform and stratified, the prompt visible (LLaDA, arXiv 2502.09992, appendix B.5). If all 2^n - 1
    masks are no more than `draws`, each is computed once, and the bound is exact. Block diffusion draws a k for each
    block (BD3-LM, arXiv 2503.09573, eq. 8).

    Args:
        model: a denoiser in evaluation mode.
        prompt, answer: (P,) and (n,) int64; the prompt may be empty.
        rng: one stream.
        draws: masks of a masked model, in groups of 8 whose spread gives the error.
        schedule: of the times given to a time-conditioned model.
        mask_id: V.

    Raises:
        ValueError: an empty answer, no draws, or a model with learned rates.
    """
    traits, n = traits_of(model), len(answer)
    if not n or draws < 1 or traits.has_exponents:
        raise ValueError(f"needs an answer, draws and a model without learned rates, got {n} tokens and {draws} draws")
    row = torch.cat([prompt, answer])[None].to(device_of(model, prompt.device))
    is_answer = (torch.arange(row.shape[1], device=row.device) >= len(prompt))[None]
    if traits.is_autoregressive:
        prediction = categorical_at(model(row, torch.zeros(1, device=row.device)), is_answer)
        return AnswerNll(-float(prediction.log_prob(row[is_answer]).double().sum()), 0.0, 1, is_bound=False)
    drawn = _masks(torch.arange(len(prompt), row.shape[1]), traits.block_length, rng, draws)
    times = (Linear() if isinstance(schedule, Fixed) else schedule).inverse(1 - drawn.ratios).clamp(0, 1).float()
    means = masked_costs(model, row, drawn, times, mask_id).view(drawn.n_groups, -1).mean(1)
    return AnswerNll(float(means.mean()), drawn.error(means), len(times), is_bound=traits.block_length != 1)


def masked_costs(
    model: Callable[..., Categorical | Tensor], row: Tensor, drawn: AnswerMasks, times: Tensor, mask_id: int
) -> Tensor:
    """(M,) float64 on the CPU, the weighted cross-entropy of each mask of the answer that ends a row (1, L)."""
    values, size, n_prompt = [], max(BATCH_TOKENS // row.shape[1], 1), row.shape[1] - drawn.masks.shape[1]
    is_blockwise = traits_of(model).block_length is not None
    for masks, weights, t in zip(*(part.split(size) for part in (drawn.masks, drawn.weights, times)), strict=True):
        rows = row.expand(len(masks), -1)
        where = F.pad(masks, (n_prompt, 0)).to(row.device)
        more = {"clean": rows} if is_blockwise else {}
        answers = model(torch.where(where, mask_id, rows), t.to(row.device), where=where, **more)
        losses = -categorical_at(answers, where).log_prob(rows[where]).double().cpu()
        values.append((torch.zeros(masks.shape, dtype=torch.float64).masked_scatter(masks, losses) * weights).sum(1))
    return torch.cat(values)


@dataclass(frozen=True)
class AnswerMasks:
    """Masks of an answer, M in all, whose weighted cross-entropies have the bound as their mean.

    Attributes:
        masks: (M, n) bool.
        weights: (M, n) float64.
        ratios: (M,) float64, mask ratio of the first block.
        n_groups: independent groups of equal size.
        is_fixed: nothing is drawn.
    """

    masks: Tensor
    weights: Tensor
    ratios: Tensor
    n_groups: int = 1
    is_fixed: bool = False

    def error(self, means: Tensor) -> float | None:
        """Standard error of the mean of the groups' means; None for one group."""
        if self.is_fixed:
            return 0.0
        return None if self.n_groups == 1 else float(means.std() / math.sqrt(self.n_groups))


def _masks(place: Tensor, block_length: int | None, rng: Rng, draws: int) -> AnswerMasks:
    """Masks of the answer at positions `place` (n,) of a row."""
    n = len(place)
    blocks = (
        torch.zeros(n, dtype=torch.int64) if block_length is None else place // block_length - place[0] // block_length
    )
    sizes = blocks.bincount()
    if len(sizes) == 1 and n < 63 and 2**n - 1 <= draws:
        return _every_mask(n)
    is_fixed = bool((sizes == 1).all())
    n_groups = 1 if is_fixed else min(GROUPS, draws)
    strata = 1 if is_fixed else draws // n_groups
    stratum = torch.arange(strata).repeat(n_groups)[:, None]
    level = (stratum + rng.uniform((len(stratum), len(sizes)))) / strata
    count = torch.minimum(1 + (sizes * level).long(), sizes)[:, blocks]  # (M, n), of the block of a token
    noise = rng.uniform((len(stratum), n))
    is_earlier = (noise[:, None] < noise[..., None]) & (blocks == blocks[:, None])
    masks = is_earlier.sum(-1) < count
    ratios = torch.where(masks & (blocks == 0), noise, 0).amax(1).double()  # the k-th smallest, see `count_bound`
    return AnswerMasks(masks, sizes[blocks] / count.double(), ratios, n_groups, is_fixed)


def _every_mask(n: int) -> AnswerMasks:
    """All masks of at least one of n tokens; those of k weigh n/k times 1/n, the chance of k, over their number."""
    masks = torch.tensor([one for one in itertools.product((False, True), repeat=n) if any(one)])
    k = masks.sum(1)
    weights = torch.tensor([len(masks) / (one * math.comb(n, one)) for one in k.tolist()], dtype=torch.float64)
    return AnswerMasks(masks, weights[:, None].expand(-1, n), k.double() / (n + 1), is_fixed=True)


def accuracy(scores: Sequence[Sequence[float]], answers: Sequence[int]) -> tuple[float, float | None]:
    """Share of tasks whose lowest score is that of the answer, and its standard error (None for one task)."""
    hits = [
        float(min(range(len(row)), key=row.__getitem__) == right) for row, right in zip(scores, answers, strict=True)
    ]
    mean = sum(hits) / len(hits)
    return mean, math.sqrt(mean * (1 - mean) / (len(hits) - 1)) if len(hits) > 1 else None

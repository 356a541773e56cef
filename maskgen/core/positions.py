"""Predictions at chosen positions: selection from denoisers that return all positions, and checks of shapes."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from maskgen.core.predictions import Categorical, Point, Prediction


def prediction_at(answer: Prediction | Tensor, where: Tensor) -> Prediction:
    """The output of a denoiser at the M positions of `where` (B, L) bool, packed in row order.

    A tensor is logits. Predictions of continuous tokens are selected if they are a `Point`, else unchanged.

    Raises:
        ValueError: see `categorical_at`.
    """
    if isinstance(answer, Categorical | Tensor):
        return categorical_at(answer, where)
    if isinstance(answer, Point) and answer.where is None:
        difficulty = None if answer.difficulty is None else answer.difficulty[where]
        return Point(answer.value[where], where, difficulty)
    return answer


def categorical_at(
    answer: Prediction | Tensor, where: Tensor, *, vocab_size: int | None = None, n: int | None = None
) -> Categorical:
    """The output of a denoiser of discrete tokens at the M positions of `where` (B, L) bool, packed (M, V).

    Args:
        answer: logits (B, L, V) or (M, V), or a `Categorical` of either.
        where: positions, as they were given to the denoiser.
        vocab_size: V, checked if given.
        n: M if known; else it is counted on the CPU only, since a count waits for any other device.

    Raises:
        ValueError: wrong shapes, or no categorical prediction.
    """
    if isinstance(answer, Tensor):
        answer = Categorical(answer, where if answer.ndim == 2 else None)
    if not isinstance(answer, Categorical):
        raise ValueError(f"discrete tokens need logits (B, L, V) or a Categorical, got {type(answer).__name__}")
    logits = answer.logits
    n = int(where.sum()) if n is None and where.device.type == "cpu" else n
    fits = logits.shape[:-1] == where.shape if answer.where is None else logits.ndim == 2 and n in (None, len(logits))
    if not fits:
        (n_rows, length), packed = where.shape, "M" if n is None else n
        raise ValueError(
            f"the denoiser returned logits of shape {tuple(logits.shape)} for tokens of shape {(n_rows, length)}; "
            f"return ({n_rows}, {length}, V), or ({packed}, V) at the positions of `where`"
        )
    if vocab_size is not None and logits.shape[-1] != vocab_size:
        raise ValueError(
            f"the denoiser returned logits of shape {tuple(logits.shape)}, but the process has vocab_size "
            f"{vocab_size}: return one logit per token, and none for [MASK]"
        )
    if answer.where is not None:
        return answer
    difficulty = None if answer.difficulty is None else answer.difficulty[where]
    return replace(answer, logits=logits[where], where=where, difficulty=difficulty)

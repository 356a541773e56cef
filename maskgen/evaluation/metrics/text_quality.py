"""Quality of generated texts: perplexity under another model, and diversity.

A sampler that repeats itself has a low perplexity, so report entropy beside it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.hub import download, is_hub_id, model_files, without_advice
from maskgen.core.predictions import Denoiser
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.likelihood import is_exact, row_nll
from maskgen.schedules import Linear, Schedule

log = logging.getLogger(__name__)

Aggregation = Literal["corpus", "mean_of_exp", "exp_of_mean"]


class ScorerError(UserError):
    """A scorer model that is missing or cannot be loaded."""


def generative_perplexity(nats: Tensor, counts: Tensor, aggregation: Aggregation = "corpus") -> float:
    """Perplexity of N generated texts under a scorer; name scorer and aggregation beside the number.

    Args:
        nats: (N,) of each text.
        counts: (N,) tokens of each text that were scored.
        aggregation: `corpus`, exp of all nats over all tokens; `mean_of_exp`, the mean of the texts' own
            perplexities; `exp_of_mean`, exp of the mean of their nats a token. They differ: 84.2 and 54.6 for two
            texts of 3 and 5 nats a token.

    Raises:
        ValueError: shapes that differ, or a text without scored tokens where it has a perplexity of its own.
    """
    nats, counts = nats.double(), counts.double()
    if nats.shape != counts.shape or nats.ndim != 1 or not counts.sum() > 0:
        raise ValueError(
            f"need (N,) nats and as many counts, not all 0, got {tuple(nats.shape)}, {tuple(counts.shape)}"
        )
    if aggregation == "corpus":
        return float((nats.sum() / counts.sum()).exp())
    if not bool((counts > 0).all()):
        n_empty = int((counts <= 0).sum())
        raise ValueError(f"{n_empty} of {len(counts)} texts have no scored tokens; leave them out or use corpus")
    per_token = nats / counts
    return float(per_token.exp().mean() if aggregation == "mean_of_exp" else per_token.mean().exp())


def token_entropy(tokens: Tensor) -> Tensor:
    """Entropy in nats of how often tokens occur within each sample, (N, L) -> (N,) float64; at most ln L."""
    found = []
    for row in tokens:
        share = row.unique(return_counts=True)[1].double() / len(row)
        found.append(-(share * share.log()).sum())
    return torch.stack(found)


def distinct_n(tokens: Tensor, n: int) -> float:
    """Different n-grams over all n-grams of all samples, tokens (N, L) (Li et al., arXiv 1510.03055).

    It falls as samples are added, so compare equal numbers of equal lengths.

    Raises:
        ValueError: n outside of 1..L, or no samples.
    """
    if not len(tokens) or not 1 <= n <= tokens.shape[1]:
        raise ValueError(f"n must be in 1..L and there must be samples, got n = {n} and tokens {tuple(tokens.shape)}")
    grams = tokens.unfold(1, n, 1).reshape(-1, n)
    return len(grams.unique(dim=0)) / len(grams)


class Scorer(Protocol):
    """A language model that scores texts.

    Attributes:
        name: for reports.
        is_bound: whether its nats are an upper bound.
        n_cut: texts of the last call that were longer than its context and were scored in part.
    """

    @property
    def name(self) -> str: ...
    @property
    def is_bound(self) -> bool: ...
    @property
    def n_cut(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Nats (N,) float64 of each text and its scored tokens (N,) int64, on the CPU."""


class Encoder(Protocol):
    """The part of a text tokenizer that scoring needs."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> Tensor:
        """(L,) int64."""

    def fingerprint(self) -> str:
        """The same for tokenizers that do the same."""


class CheckpointScorer:
    """A model of this package as a scorer: exact if autoregressive, else a bound. Every token is scored.

    Args:
        model: in evaluation mode.
        tokenizer: the model's own; texts are encoded again, whatever made them.
        rng: one stream; every call scores with the same masks.
        name: for reports.
        strata, schedule: of the bound, as in `corpus_likelihood`.
        batch_size: texts of one length at a time.
    """

    n_cut = 0

    def __init__(
        self,
        model: Denoiser,
        tokenizer: Encoder,
        rng: Rng,
        name: str = "checkpoint",
        strata: int = 8,
        schedule: Schedule = Linear(),
        batch_size: int = 32,
    ) -> None:
        self.model, self.tokenizer, self.rng, self.name = model, tokenizer, rng, name
        self.strata, self.schedule, self.batch_size = strata, schedule, batch_size

    @property
    def is_bound(self) -> bool:
        return not is_exact(self.model)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Nats (N,) and scored tokens (N,); masks of a text depend on its place in the list, not on the other texts."""
        return self.of_tokens([self.tokenizer.encode(text) for text in texts])

    def of_tokens(self, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The same of texts that are tokens of the scorer's own tokenizer already, (L,) each."""
        seeds = [int(seed * 2**53) for seed in self.rng.fork("texts").uniform((len(tokens),)).tolist()]
        counts = torch.tensor([len(row) for row in tokens], dtype=torch.long)
        nats = torch.zeros(len(tokens), dtype=torch.float64)
        for length in counts[counts > 0].unique():
            for index in (counts == length).nonzero()[:, 0].split(self.batch_size):
                x_0 = torch.stack([tokens[i] for i in index.tolist()])
                rows = Rng.per_sample([seeds[i] for i in index.tolist()])
                found = row_nll(self.model, x_0, rows, self.strata, self.schedule, mask_id=self.tokenizer.vocab_size)
                nats[index] = found.nats.cpu()
        return nats, counts


class CausalLMScorer:
    """Any causal language model of Hugging Face, GPT-2 for one; needs the package `transformers`.

    A text is encoded as the model's tokenizer does by itself. The first token is only read, so a text of L tokens has
    L - 1 scored ones. Texts are cut at the model's context and not slid over.

    Args:
        source: a folder, a hub id with its owner, `openai-community/gpt2-large`, a GGUF file, or `package:NAME`, an
            installed package with one in it.
        device: where it runs, in float32.
        batch_size: texts at a time.

    Raises:
        ScorerError: no `transformers`, no such model, or no way to the hub.
    """

    is_bound = False

    def __init__(self, source: str, device: torch.device | str = "cpu", batch_size: int = 8) -> None:
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise ScorerError(
                "scoring with a language model needs transformers: pip install 'maskgen[scorers]'"
            ) from error
        try:
            place, gguf = model_files(source)
            if is_hub_id(source):  # one try: transformers retries every file where there is no network
                place = str(download(source, ["*.json", "*.safetensors", "*.txt", "*.model"]))
            options = {"trust_remote_code": False} | ({} if gguf is None else {"gguf_file": gguf})
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
            safe = {"use_safetensors": True} if gguf is None else {}
            model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **safe, **options)
        except Exception as error:  # OSError, ValueError and those of the hub: all mean that there is no scorer
            reason = without_advice(error)
            raise ScorerError(f"cannot load the scorer {source!r}: {reason}") from error
        self.name, self.batch_size, self.n_cut = source, batch_size, 0
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self._model = model.to(device).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Nats (N,) and scored tokens (N,); `n_cut` is then the number of texts that were cut."""
        whole = [self._tokenizer(text, verbose=False)["input_ids"] for text in texts]
        rows = [row[: self.context] for row in whole]
        self.n_cut = sum(len(row) < len(ids) for row, ids in zip(rows, whole, strict=True))
        if self.n_cut:
            log.warning(
                "%d of %d texts were cut at the %s tokens of %s", self.n_cut, len(rows), self.context, self.name
            )
        nats = torch.zeros(len(rows), dtype=torch.float64)
        counts = torch.tensor([max(len(row) - 1, 0) for row in rows], dtype=torch.long)
        scored = (counts > 0).nonzero()[:, 0]
        for start in range(0, len(scored), self.batch_size):
            index = scored[start : start + self.batch_size]
            nats[index] = self._score([rows[i] for i in index.tolist()])
        return nats, counts

    def _score(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(B,) of rows of any lengths; padding comes last, where a causal model doesn't see it."""
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        valid = torch.arange(ids.shape[1]) < lengths[:, None]
        ids, valid = ids.to(self._model.device), valid.to(self._model.device)
        logits = self._model(input_ids=ids, attention_mask=valid.long()).logits.float()
        loss = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")  # (B, L - 1)
        return loss.double().masked_fill(~valid[:, 1:], 0.0).sum(1).cpu()

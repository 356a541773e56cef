"""Bits a character of a pretrained causal language model, as it is and adapted to masked diffusion, on other texts.

    python benchmarks/adapted.py CHECKPOINT [--texts kjv,python] [--most 40000] [--strata 2] --output FILE.json
    python benchmarks/adapted.py CHECKPOINT --write 16 --output FILE.json

Texts: the last 5 % of the King James Bible (`kjv`), and the last 5 % of Python's documentation of its own language
(`python`, module `pydoc_data.topics`), each up to `--most` characters, in rows of the checkpoint's length. The model as
it is reads the same rows from left to right, each after the token that begins a text: exact. Of the adapted one it is
the bound of `maskgen evaluate --metric likelihood`. CPU seconds are of this process.

With `--write` the model as it is writes texts of 64 tokens at temperature 0.8 and top_p 0.9, and scores them itself:
the numbers of `--metric generative-perplexity`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import load_text_model, read_checkpoint
from maskgen.core.rng import Rng
from maskgen.data.base import DATASETS, TextSource
from maskgen.evaluation.metrics.likelihood import corpus_likelihood
from maskgen.evaluation.metrics.text_quality import generative_perplexity, token_entropy
from maskgen.models.huggingface import HuggingFaceDenoiser


def text_of(name: str, most: int) -> str:
    """The last twentieth of a text, up to a number of characters."""
    if name == "kjv":
        source = DATASETS.build("kjv")
        assert isinstance(source, TextSource)
        return "".join(source.documents("test"))[:most]
    whole = "\n".join(topics[key] for key in sorted(topics))
    return whole[-len(whole) // 20 :][:most]


def rows(tokens: Tensor, length: int) -> Iterator[Tensor]:
    """Batches (B, L) of about 2,048 tokens, the rest of the text as a row of its own."""
    whole = len(tokens) // length * length
    yield from tokens[:whole].view(-1, length).split(max(2048 // length, 1))
    if whole < len(tokens):
        yield tokens[None, whole:]


@torch.no_grad()
def left_to_right(source: str, tokens: Tensor, length: int) -> float:
    """Nats of a text under the causal model itself."""
    from maskgen.models.pretrained import pretrained

    network = pretrained(source, "causal").eval()
    nats, first = 0.0, int(network.config.bos_token_id)
    for batch in rows(tokens, length):
        before = torch.cat([torch.full((len(batch), 1), first), batch[:, :-1]], 1)
        log_probs = network(input_ids=before).logits.float().log_softmax(-1)
        nats -= float(log_probs.gather(-1, batch[..., None]).double().sum())
    return nats


@torch.no_grad()
def written(source: str, n: int, length: int = 64) -> dict[str, Any]:
    """Perplexity under itself and entropy of what the causal model writes."""
    from maskgen.models.pretrained import pretrained

    torch.manual_seed(0)
    network = pretrained(source, "causal").eval()
    first = torch.full((n, 1), int(network.config.bos_token_id))
    tokens = network.generate(
        first, do_sample=True, temperature=0.8, top_p=0.9, top_k=0, min_new_tokens=length, max_new_tokens=length
    )[:, 1:]
    log_probs = network(input_ids=tokens).logits.float().log_softmax(-1)[:, :-1]
    nats = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0].double().sum(1)
    perplexity = generative_perplexity(nats, torch.full((n,), length - 1))
    return {"texts": n, "length": length, "perplexity": perplexity, "entropy": float(token_entropy(tokens).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--texts", default="kjv,python")
    parser.add_argument("--most", type=int, default=40_000)
    parser.add_argument("--strata", type=int, default=2)
    parser.add_argument("--write", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    checkpoint = read_checkpoint(options.checkpoint)
    network, tokenizer = load_text_model(checkpoint)
    assert isinstance(network, HuggingFaceDenoiser)
    assert isinstance(checkpoint.recipe.model, dict)
    length, source, found = int(checkpoint.length), str(checkpoint.recipe.model["source"]), []
    if options.write:
        options.output.write_text(json.dumps(written(source, options.write), indent=1))
        print(options.output.read_text())
        return
    for name in options.texts.split(","):
        text = text_of(name, options.most)
        tokens, started = tokenizer.encode(text), time.process_time()
        exact = left_to_right(source, tokens, length)
        bound = corpus_likelihood(
            network, rows(tokens, length), Rng.stream(0), mask_id=tokenizer.vocab_size, strata=options.strata
        )
        scale = math.log(2) * len(text)
        line: dict[str, Any] = {
            "text": name,
            "characters": len(text),
            "tokens": len(tokens),
            "length": length,
            "bits_per_char_left_to_right": exact / scale,
            "bits_per_char_bound": bound.nats / scale,
            "monte_carlo_error": (bound.monte_carlo_error or 0) * len(tokens) / scale,
            "cpu_seconds": time.process_time() - started,
        }
        found.append(line)
        print(json.dumps(line), flush=True)
        options.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

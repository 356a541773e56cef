"""Quality and cost of all samplers on one text checkpoint, with held-out text as the reference.

    python benchmarks/samplers.py CHECKPOINT --scorer CHECKPOINT [--num 64] [--length 128] [--steps 8 16 32 64 128]

Repetition also lowers perplexity: the numbers of real text are the aim. Tokens are drawn at temperature
1; at 0, LLaDA's own, all texts would be the same. Rows that are in --output are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import MODEL
from maskgen.core.errors import UserError
from maskgen.core.files import atomic
from maskgen.core.rng import Rng
from maskgen.data.text.rows import TextData, text_data
from maskgen.evaluation.metrics.text_quality import CheckpointScorer, distinct_n, generative_perplexity, token_entropy
from maskgen.pipelines.text import TextPipeline
from maskgen.sample.likelihood import schedule_of
from maskgen.sample.perplexity import BATCH, CountedDenoiser
from maskgen.samplers import SAMPLERS

REAL = "held-out text"
COLUMNS = ("evaluations", "seconds", "perplexity", "± perplexity", "entropy", "± entropy", "distinct-2")
Row = dict[str, Any]
ARMS: dict[str, tuple[str, str, str, tuple[float, ...], Row]] = {  # style, colour, what is varied, its values, the rest
    "ancestral": ("o-", "#0072B2", "steps", (), {"type": "ancestral"}),
    "Euler": ("s-", "#56B4E9", "steps", (), {"type": "euler"}),
    "ReMDM-cap": ("^-", "#009E73", "steps", (), {"type": "remdm_cap"}),
    "ReMDM-conf": ("v-", "#CC79A7", "steps", (), {"type": "remdm_conf"}),
    "MaskGIT": ("o--", "#E69F00", "steps", (), {"type": "maskgit"}),
    "LLaDA, blocks of 32": ("s--", "#D55E00", "steps", (), {"type": "llada", "block_length": 32}),
    "Dream, entropy": ("<--", "#56B4E9", "steps", (), {"type": "dream", "order": "entropy"}),
    "Dream, margin": (">--", "#CC79A7", "steps", (), {"type": "dream", "order": "margin"}),
    "Fast-dLLM": ("D:", "#009E73", "threshold", (0.05, 0.1, 0.2, 0.5, 0.9), {"type": "fast_dllm"}),
    "entropy-bounded": ("P:", "#0072B2", "gamma", (8.0, 2.0, 0.5, 0.1), {"type": "entropy_bounded"}),
    "first-hitting": ("*", "black", "", (), {"type": "first_hitting"}),
    "left to right": ("X", "dimgrey", "", (), {"type": "autoregressive"}),
}


def named(arm: str, steps: list[int]) -> dict[str, Row]:
    """Name and sampler of each row."""
    _, _, key, values, spec = ARMS[arm]
    return {f"{arm}, {key} {value:g}": spec | {key: value} for value in values or steps} if key else {arm: spec}


def scored(tokens: Tensor, pipeline: TextPipeline, scorer: CheckpointScorer) -> Row:
    """Perplexity and entropy, each with its standard error over texts, and the share of distinct pairs."""
    nats, counts = scorer(pipeline.generator.texts(tokens))
    perplexity, entropy, root = generative_perplexity(nats, counts), token_entropy(tokens), math.sqrt(len(tokens))
    error = perplexity * float((nats - math.log(perplexity) * counts).std() / counts.double().mean()) / root
    row = {"perplexity": perplexity, "± perplexity": error, "distinct-2": distinct_n(tokens, 2)}
    return row | {"entropy": float(entropy.mean()), "± entropy": float(entropy.std()) / root}


def held_out(pipeline: TextPipeline, num: int, length: int) -> Tensor:
    """(num, length) int64, rows spread over the test split."""
    source = pipeline.checkpoint.recipe.build_text()
    data = TextData(text_data(source, "test", pipeline.tokenizer, progress=False).packed, length, length)
    if len(data) < num:
        raise UserError(f"the test split has {len(data)} rows of {length} tokens; lower --num ({num}) or --length")
    return data.__getitems__([index * len(data) // num for index in range(num)])[0]


def sampled(pipeline: TextPipeline, spec: Row, scorer: CheckpointScorer, num: int, length: int) -> Row:
    """The row of one sampler."""
    counted, sampler = CountedDenoiser(pipeline.model), SAMPLERS.build({"top_p": 1.0, "temperature": 1.0} | spec)
    generator = replace(pipeline.generator, denoiser=counted, sampler=sampler, length=length)
    began = time.perf_counter()
    tokens = torch.cat(list(pipeline.draw(generator, num, batch_size=BATCH)))
    cost = {"evaluations": counted.n_rows / num, "seconds": (time.perf_counter() - began) / num}
    return cost | scored(tokens, pipeline, scorer)


def table(rows: dict[str, Row]) -> str:
    cells = [[f"{row[key]:#.4g}" if key in row else "-" for key in COLUMNS] for row in rows.values()]
    lines = zip(["a sample", *rows], [COLUMNS, *cells], strict=True)
    return "\n".join(f"{name:30}" + "".join(f"{cell:>14}" for cell in line) for name, line in lines)


def plot(path: Path, rows: dict[str, Row], arms: dict[str, dict[str, Row]], title: str) -> None:
    """Evaluations a sample against perplexity and entropy; bars are standard errors."""
    figure = Figure((11, 5.8), layout="constrained")
    labels = {"perplexity": "generative perplexity (log)", "entropy": "entropy of a sample's tokens (nats)"}
    for axes, (key, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        axes.axhline(rows[REAL][key], color="0.3", lw=2, label=REAL)
        for name, names in arms.items():
            x, y, bars = ([rows[row][column] for row in names] for column in ("evaluations", key, f"± {key}"))
            axes.errorbar(x, y, bars, fmt=ARMS[name][0], color=ARMS[name][1], label=name, ms=6, lw=1.4, elinewidth=0.8)
        axes.set_xscale("log", base=2)
        if key == "perplexity":
            axes.set_yscale("log", base=2, subs=[])
        axes.set(xlabel="network evaluations a sample", ylabel=label)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:.4g}")
        axes.grid(alpha=0.25)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--scorer", required=True, help="checkpoint that reads the samples, autoregressive at best")
    parser.add_argument("--num", type=int, default=64, help="samples a row, 2 or more")
    parser.add_argument("--length", type=int, help="tokens a sample, as in training by default")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--output", type=Path, default=Path("docs/results/samplers.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/samplers.png"))
    options = parser.parse_args()
    pipeline, judge = (TextPipeline.from_pretrained(source) for source in (options.checkpoint, options.scorer))
    num, length = options.num, options.length or pipeline.checkpoint.length
    rng, schedule = Rng.stream("scorer"), schedule_of(judge.checkpoint)
    scorer = CheckpointScorer(judge.model, judge.tokenizer, rng, schedule=schedule)
    sums = [one.checkpoint.info["files"][MODEL]["sha256"] for one in (pipeline, judge)]
    settings = {"num": num, "length": length, "sha256": sums}
    found: Row = json.loads(options.output.read_text("utf-8")) if options.output.exists() else {}
    if found.setdefault("settings", settings) != settings:
        raise UserError(f"{options.output} is of {found['settings']}, not {settings}; choose another --output")
    rows: dict[str, Row] = found.setdefault("rows", {})
    if REAL not in rows:
        rows[REAL] = scored(held_out(pipeline, num, length), pipeline, scorer)
    arms = {name: named(name, options.steps) for name in ARMS}
    specs = {name: spec for arm in arms.values() for name, spec in arm.items()}
    for name in tqdm([name for name in specs if name not in rows], unit="row", disable=None):
        rows[name] = sampled(pipeline, specs[name], scorer, num, length)
        with atomic(options.output) as file:
            file.write(json.dumps(found, indent=1).encode())
    print(table({name: rows[name] for name in (REAL, *specs)}))
    plot(options.plot, rows, arms, f"{pipeline.checkpoint.recipe.summary}\n{num} samples of {length} tokens")


if __name__ == "__main__":
    main()

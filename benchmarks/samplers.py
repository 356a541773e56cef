"""What the samplers make of one text checkpoint, and at what cost, beside held-out text.

    python benchmarks/samplers.py CHECKPOINT --scorer CHECKPOINT [--num 64] [--length 256] [--steps 8 16 32 64 128]
        [--output docs/samplers.json] [--plot docs/samplers.png]

A sampler that repeats itself has a low perplexity, so entropy and distinct pairs stand beside it, and the same numbers
of real text: they are the aim. All draw tokens at one temperature; at 0, LLaDA's own, all texts would be the same.
Rows that are in --output are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from maskgen.checkpoint import MODEL
from maskgen.data.text import TextData, text_data
from maskgen.errors import UserError
from maskgen.eval.text import CheckpointScorer, distinct_n, generative_perplexity, token_entropy
from maskgen.files import atomic
from maskgen.rng import Rng
from maskgen.sample.likelihood import schedule_of
from maskgen.sample.perplexity import BATCH, Evaluations
from maskgen.sample.text_pipeline import TextPipeline
from maskgen.samplers import SAMPLERS

REAL = "held-out text"
COLUMNS = {"evaluations": 1, "seconds": 3, "perplexity": 2, "± per": 2, "entropy": 3, "± ent": 3, "distinct-2": 4}
Row = dict[str, Any]
ARMS: dict[str, tuple[str, str, str, tuple[float, ...], Row]] = {  # style, colour, what is varied, its values, the rest
    "ancestral": ("o-", "#0072B2", "steps", (), {"type": "ancestral"}),
    "Euler": ("s-", "#56B4E9", "steps", (), {"type": "euler"}),
    "ReMDM-cap": ("^-", "#009E73", "steps", (), {"type": "remdm_cap"}),
    "ReMDM-conf": ("v-", "#CC79A7", "steps", (), {"type": "remdm_conf"}),
    "MaskGIT": ("o--", "#E69F00", "steps", (), {"type": "maskgit"}),
    "LLaDA, blocks of 32": ("s--", "#D55E00", "steps", (), {"type": "llada", "block_length": 32}),
    "Dream, entropy": ("^--", "#56B4E9", "steps", (), {"type": "dream", "order": "entropy"}),
    "Dream, margin": ("v--", "#CC79A7", "steps", (), {"type": "dream", "order": "margin"}),
    "Fast-dLLM": ("D:", "#009E73", "threshold", (0.2, 0.4, 0.6, 0.8, 0.95), {"type": "fast_dllm"}),
    "entropy-bounded": ("P:", "#0072B2", "gamma", (8.0, 2.0, 0.5, 0.1), {"type": "entropy_bounded"}),
    "first-hitting": ("*", "black", "", (1,), {"type": "first_hitting"}),
    "left to right": ("X", "dimgrey", "", (1,), {"type": "autoregressive"}),
}


def rows_of(arm: str, steps: list[int]) -> Iterator[tuple[str, Row]]:
    """Name and sampler of each row."""
    _, _, key, values, spec = ARMS[arm]
    for value in values or steps:
        yield (f"{arm}, {key} {value:g}", spec | {key: value}) if key else (arm, spec)


def scored(tokens: Tensor, pipeline: TextPipeline, scorer: CheckpointScorer) -> Row:
    """Perplexity and entropy, each with its standard error over texts, and the share of distinct pairs."""
    nats, counts = scorer(pipeline.generator.texts(tokens))
    perplexity, entropy, root = generative_perplexity(nats, counts), token_entropy(tokens), math.sqrt(len(tokens))
    error = perplexity * float((nats - math.log(perplexity) * counts).std() / counts.double().mean()) / root
    row = {"perplexity": perplexity, "± per": error, "distinct-2": distinct_n(tokens, 2)}
    return row | {"entropy": float(entropy.mean()), "± ent": float(entropy.std()) / root}


def held_out(pipeline: TextPipeline, num: int, length: int) -> Tensor:
    """(num, length) int64, rows spread over the test split."""
    source = pipeline.checkpoint.recipe.build_text()
    data = TextData(text_data(source, "test", pipeline.tokenizer, progress=False).packed, length, length)
    if len(data) < num:
        raise UserError(f"the test split has {len(data)} rows of {length} tokens; lower --num ({num}) or --length")
    return data.__getitems__([index * len(data) // num for index in range(num)])[0]


def sampled(pipeline: TextPipeline, spec: Row, scorer: CheckpointScorer, settings: Row, bar: Any) -> Row:
    """The row of one sampler."""
    counted, num = Evaluations(pipeline.model), settings["num"]
    sampler = SAMPLERS.build({"top_p": 1.0, "temperature": settings["temperature"]} | spec)
    generator = replace(pipeline.generator, denoiser=counted, sampler=sampler, length=settings["length"])
    parts, began = [], time.perf_counter()
    for part in pipeline.draw(generator, num, batch_size=BATCH):
        parts.append(part)
        bar.update(len(part))
    cost = {"evaluations": counted.n_rows / num, "seconds": (time.perf_counter() - began) / num}
    return cost | scored(torch.cat(parts), pipeline, scorer)


def table(rows: dict[str, Row]) -> str:
    cells = [[f"{row[key]:.{n}f}" if key in row else "-" for key, n in COLUMNS.items()] for row in rows.values()]
    lines = zip(["a sample", *rows], [COLUMNS, *cells], strict=True)
    return "\n".join(f"{name:30}" + "".join(f"{cell:>12}" for cell in line) for name, line in lines)


def plot(path: Path, rows: dict[str, Row], arms: dict[str, list[Row]], title: str) -> None:
    """Evaluations a sample against perplexity and entropy; bars are standard errors."""
    figure, real = Figure((11, 5.8), layout="constrained"), rows[REAL]
    labels = {"perplexity": "generative perplexity a token", "entropy": "entropy of the tokens of a sample (nats)"}
    for axes, (key, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        error = f"± {key[:3]}"
        axes.axhspan(real[key] - real[error], real[key] + real[error], color="0.88", lw=0)
        axes.axhline(real[key], color="0.3", lw=1.2, label=REAL)
        for name, found in arms.items():
            x, y, bars = ([row[column] for row in found] for column in ("evaluations", key, error))
            axes.errorbar(x, y, bars, fmt=ARMS[name][0], color=ARMS[name][1], label=name, ms=6, lw=1.4, elinewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="network evaluations a sample", ylabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title)
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--scorer", required=True, help="checkpoint that reads the samples, autoregressive at best")
    parser.add_argument("--num", type=int, default=64, help="samples a row")
    parser.add_argument("--length", type=int, help="tokens a sample, as in training by default")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--plot", type=Path, help="PNG")
    options = parser.parse_args()
    pipeline, reader = (TextPipeline.from_pretrained(source) for source in (options.checkpoint, options.scorer))
    scorer = CheckpointScorer(
        reader.model, reader.tokenizer, Rng.stream("scorer"), schedule=schedule_of(reader.checkpoint)
    )
    length, settings = options.length or pipeline.checkpoint.length, {"num": options.num, "temperature": options.temperature}
    settings |= {"length": length, "checkpoint": identity(pipeline), "scorer": identity(reader)}
    is_begun = options.output is not None and options.output.exists()
    found = json.loads(options.output.read_text("utf-8")) if is_begun else {"settings": settings, "rows": {}}
    if found["settings"] != settings:
        raise UserError(f"{options.output} is of {found['settings']}, not {settings}; choose another --output")
    rows: dict[str, Row] = found["rows"]
    if REAL not in rows:
        rows[REAL] = scored(held_out(pipeline, options.num, length), pipeline, scorer)
    wanted = {name: dict(rows_of(name, options.steps)) for name in ARMS}
    missing = {name: spec for arm in wanted.values() for name, spec in arm.items() if name not in rows}
    with tqdm(total=len(missing) * options.num, unit="text", disable=None) as bar:
        for name, spec in missing.items():
            bar.set_description(name)
            rows[name] = sampled(pipeline, spec, scorer, settings, bar)
            if options.output is not None:
                with atomic(options.output) as file:
                    file.write(json.dumps(found, indent=1).encode())
    arms = {name: [rows[row] for row in arm] for name, arm in wanted.items()}
    print(table({name: rows[name] for name in (REAL, *(row for arm in wanted.values() for row in arm))}))
    if options.plot is not None:
        plot(options.plot, rows, arms, f"{pipeline.checkpoint.recipe.summary}\n{options.num} samples of {length} tokens")


if __name__ == "__main__":
    main()

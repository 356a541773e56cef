"""Time of token mixers, and a hole filled by autoregression: `python benchmarks/mixers.py latency --output FILE.json`.

    python benchmarks/mixers.py latency [--lengths 49,256,1024,4096,16384] [--output FILE.json]
    python benchmarks/mixers.py inpaint RUN [--steps 1,4,8,16] [--num 500] [--output FILE.json]
    python benchmarks/mixers.py train EXPERIMENT [--seconds 20] [--seeds 2] [--first 0] [--num 256] [--output FILE.json]

`latency`: CPU seconds of a forward pass of one layer (width 192, 6 heads, one row) and of a whole MaskGIT of 6 blocks,
by the number of tokens; the median of some passes. `inpaint`: the middle 3 x 3 of 7 x 7 tokens of test images, filled
by the checkpoint RUN given the class: share of the tokens that are the image's, squared error of the pixels, and
accuracy of the zoo's classifier. An autoregressive network sees the tokens before the hole in raster order only.
`train`: the arms of an experiment (mixers, mixers-text) in one process, each for so many CPU seconds, the learning rate
a cosine of the time spent; `maskgen bench budget --experiment mixers` is the same with a process for each part, for
budgets of minutes. What --output holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import maskgen
from maskgen.checkpoints.checkpoint import load_model, read_checkpoint
from maskgen.core.files import write_json
from maskgen.core.pixels import to_float
from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.core.traits import traits_of
from maskgen.data.cache import token_data
from maskgen.data.text.rows import TextData, text_data
from maskgen.evaluation.metrics.frechet import Moments, frechet_distance
from maskgen.evaluation.metrics.likelihood import corpus_likelihood
from maskgen.models import MODELS
from maskgen.nn.mixers.attention import AttentionSettings
from maskgen.nn.mixers.registry import MIXERS, MixerPlace
from maskgen.pipelines.generator import Generator
from maskgen.recipes.build import DataFacts, System, build_system
from maskgen.recipes.load import load_recipe
from maskgen.recipes.schema import Recipe
from maskgen.sample.nfe import CountedDenoiser
from maskgen.sample.text_probe import TEXT_METHODS, text_entries
from maskgen.tokenizers.text.tokenizer import TextTokenizer
from maskgen.train.experiment import read_experiment
from maskgen.train.optim import build_optimizer

WIDTH, HEADS, DEPTH, VOCAB_SIZE = 192, 6, 6, 512
V2 = {"type": "bi_mamba_v2", "scan": "ssd"}
LAYERS: dict[str, tuple[dict[str, Any], int]] = {
    "attention": ({"type": "attention"}, 16384),
    "Bi-Mamba, SSD": ({"type": "bi_mamba", "scan": "ssd", "expand": 1}, 16384),
    "Bi-Mamba-v2, SSD": (V2, 16384),
    "Bi-Mamba-v2, selective": ({"type": "bi_mamba_v2"}, 1024),
    "token": ({"type": "token", "projects": True}, 4096),
}
"""Spec of a mixer and the longest row it is measured on."""
WHOLE = {name: LAYERS[name] for name in ("attention", "Bi-Mamba-v2, SSD", "token")} | {
    "serial": ({"type": "serial", "first": V2}, 16384)
}
GRID, HOLE = (7, 7), slice(2, 5)


def seconds(call: Callable[[], object], budget: float = 3.0) -> float:
    """CPU seconds of a call: the median of up to 7 within a budget, after one that does not count."""
    taken: list[float] = []
    call()
    while len(taken) < 7 and sum(taken) < budget:
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def layer(spec: dict[str, Any], length: int) -> Callable[[], object]:
    """A forward pass of one mixer over one row."""
    mixer = MIXERS.build(spec).build(AttentionSettings(WIDTH, HEADS), MixerPlace(length)).eval()
    x = Rng.stream("latency").normal((1, length, WIDTH))
    return lambda: mixer(x)


def whole(spec: dict[str, Any], length: int) -> Callable[[], object]:
    """A forward pass of a MaskGIT over one row, logits of all its tokens included."""
    grid = (math.isqrt(length), length // math.isqrt(length))
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS}
    network = MODELS.build({"type": "maskgit", **sizes, "mixer": spec}, vocab_size=VOCAB_SIZE, grid=grid, n_classes=10)
    ids, t, cond = torch.full((1, grid[0] * grid[1]), VOCAB_SIZE), torch.zeros(1), Condition(torch.zeros(1).long())
    return lambda: network.eval()(ids, t, cond)


@torch.no_grad()
def latency(options: argparse.Namespace) -> None:
    """Measure what is missing; print the table."""
    found: dict[str, float] = _stored(options.output)
    lengths = [int(length) for length in options.lengths.split(",")]
    for what, build, arms in (("layer", layer, LAYERS), ("whole", whole, WHOLE)):
        print(f"{what}: milliseconds of CPU time at {', '.join(map(str, lengths))} tokens")
        for name, (spec, longest) in arms.items():
            for length in lengths:
                key = f"{what} / {name} / {length}"
                if key not in found and length <= longest:
                    found[key] = seconds(build(spec, length))
                    _store(options.output, found)
            times = (found.get(f"{what} / {name} / {length}") for length in lengths)
            print(f"  {name}: " + ", ".join("-" if one is None else f"{1000 * one:.4g}" for one in times), flush=True)


@torch.no_grad()
def inpaint(options: argparse.Namespace) -> None:
    """Fill the hole by the checkpoint with each number of steps; print a line each."""
    found: dict[str, Any] = _stored(options.output)
    pipeline: Any = maskgen.load(options.checkpoint)
    classifier, _ = load_model(read_checkpoint("fashion-classifier"))
    source = pipeline.checkpoint.recipe.build_data()
    images, labels = source.split("test").__getitems__(range(options.num))
    tokens = torch.cat([pipeline.tokenizer.encode(to_float(part)) for part in images.split(250)])
    is_hole = torch.zeros(GRID, dtype=torch.bool)
    is_hole[HOLE, HOLE] = True
    is_causal = traits_of(pipeline.generator.denoiser).is_autoregressive
    for steps in [0] if is_causal else map(int, options.steps.split(",")):
        key = f"{options.checkpoint} / {steps or 'one token a step'}"
        if key not in found:
            generator = pipeline.with_sampler() if is_causal else pipeline.with_sampler(steps=steps)
            start = time.process_time()
            filled = torch.cat([
                fill(generator, part, is_hole.flatten(), of, first * 250)
                for first, (part, of) in enumerate(zip(tokens.split(250), labels.split(250), strict=True))
            ])  # fmt: skip
            taken = time.process_time() - start
            made = generator.decode(filled)
            right = (filled == tokens)[:, is_hole.flatten()].double().mean()
            error = (to_float(made) - to_float(images)).square().mean()
            accuracy = (classifier(to_float(made)).argmax(1) == labels).double().mean()
            values = {"tokens": right, "squared_error": error, "class_accuracy": accuracy}
            found[key] = {name: float(value) for name, value in values.items()} | {"seconds": taken / len(images)}
            _store(options.output, found)
        print(key, {name: round(value, 5) for name, value in found[key].items()}, flush=True)


def fill(generator: Any, tokens: Tensor, is_hole: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Tokens (B, L) with those of the hole (L,) generated; tokens after it stay, seen or not."""
    mask_id, denoiser = generator.tokenizer.vocab_size, generator.denoiser
    denoiser = denoiser.cached() if traits_of(denoiser).has_cache else denoiser
    denoise = generator.guidance.bind(denoiser, Condition(labels), mask_id=mask_id)
    rng = Rng.per_sample(range(seed, seed + len(tokens)))
    sampler = generator.effective_sampler()
    filled: Tensor = sampler(denoise, tokens.masked_fill(is_hole, mask_id), rng, mask_id=mask_id, grid=GRID)
    return filled


def train(options: argparse.Namespace) -> None:
    """Train and score the arms that are missing; print a line each."""
    found: dict[str, Any] = _stored(options.output)
    experiment = read_experiment(None, options.experiment)
    for seed in range(options.first, options.seeds):
        for name in experiment.chosen(options.arms):
            arm, key = experiment.arms[name], f"{name} / {options.seconds:g} s / seed {seed}"
            if key not in found:
                recipe = load_recipe(arm.recipe, [*experiment.overrides, *arm.overrides, f"seed={seed}"])
                torch.manual_seed(seed)
                system, rows, labels = prepared(recipe)
                cost = fitted(system, rows, labels, options.seconds, seed)
                score = score_text if recipe.kind == "text" else score_images
                found[key] = cost | score(system, name, options.num, seed)
                _store(options.output, found)
            print(key, {name: round(value, 4) for name, value in found[key].items()}, flush=True)


def prepared(recipe: Recipe) -> tuple[System, Tensor, Tensor | None]:
    """The system of a recipe, its training rows (N, L) and their labels."""
    if recipe.kind == "text":
        source = recipe.build_text()
        tokenizer = recipe.build_text_tokenizer(source)
        data = text_data(source, "train", tokenizer)
        rows = data.__getitems__(range(0, len(data), 4))[0]
        return build_system(recipe, DataFacts.of(source), tokenizer), rows, None
    images = recipe.build_data()
    vq: Any = load_model(read_checkpoint("fashion-vq"))[0]
    tokens = token_data(images.split("train"), vq)
    rows, labels = tokens.__getitems__(range(len(tokens)))
    return build_system(recipe, DataFacts.of(images), vq), rows, labels


def fitted(system: System, rows: Tensor, labels: Tensor | None, budget: float, seed: int) -> dict[str, float]:
    """Train the network for a budget of CPU seconds."""
    network, settings = system.network.train(), system.recipe.train
    optimizer = build_optimizer(network, settings)
    rates = [group["lr"] for group in optimizer.param_groups]
    start, step = time.process_time(), 0
    while (spent := (time.process_time() - start) / budget) < 1:
        rng = Rng.stream("mixers", seed, step)
        chosen = (rng.uniform((settings.batch_size,)) * len(rows)).long()
        cond = None if labels is None else Condition(labels[chosen])
        loss = system.objective(network, Batch(rows[chosen].long(), cond), rng).value
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, 20 * spent + 0.02) * (1 + math.cos(math.pi * spent)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        optimizer.step()
        step += 1
    network.eval()
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": n_parameters, "steps": step, "rows_per_second": step * settings.batch_size / budget}


@torch.no_grad()
def score_images(system: System, name: str, num: int, seed: int) -> dict[str, float]:
    """Loss on test rows and scores of samples; of attention and autoregression at all numbers of steps."""
    classifier: Any = load_model(read_checkpoint("fashion-classifier"))[0]
    images = system.recipe.build_data().split("test")
    pixels, labels = images.__getitems__(range(2000))
    tokenizer: Any = system.tokenizer
    tokens = torch.cat([tokenizer.encode(to_float(part)) for part in pixels.split(250)])
    real = Moments.of(torch.cat([classifier.features(to_float(part)) for part in pixels.split(250)]))
    batch = Batch(tokens[:512], Condition(labels[:512]))
    scores = {"test_loss": float(system.objective(system.network, batch, Rng.stream("test", seed)).value)}
    generator = Generator.of(system, torch.device("cpu"))
    wanted = torch.arange(num) % 10
    is_hole = torch.zeros(GRID, dtype=torch.bool)
    is_hole[HOLE, HOLE] = True
    is_causal = traits_of(system.network).is_autoregressive
    choices: list[dict[str, Any]] = [{}]
    if name == "attention":
        choices = [{"steps": steps} for steps in (1, 2, 4, 8, 12, 16)]
    for choice in choices:
        one = replace(generator, sampler=system.recipe.build_sampler(**choice)) if choice else generator
        counted = CountedDenoiser(system.network)
        start = time.process_time()
        made = replace(one, denoiser=counted).tokens(range(seed * num, (seed + 1) * num), wanted)
        taken = time.process_time() - start
        drawn = to_float(generator.decode(made))
        mark = f" at {choice['steps']} steps" if choice else ""
        scores["distance" + mark] = frechet_distance(Moments.of(classifier.features(drawn)), real)
        scores["class_accuracy" + mark] = float((classifier(drawn).argmax(1) == wanted).double().mean())
        scores["evaluations" + mark] = counted.n_rows / num
        scores["samples_per_second" + mark] = num / taken
        if choice or is_causal:
            filled = fill(one, tokens[:num], is_hole.flatten(), labels[:num], seed * num)
            right = (filled == tokens[:num])[:, is_hole.flatten()].double().mean()
            error = (to_float(generator.decode(filled)) - to_float(pixels[:num])).square().mean()
            scores["hole_tokens" + mark], scores["hole_squared_error" + mark] = float(right), float(error)
    return scores


def score_text(system: System, name: str, num: int, seed: int) -> dict[str, float]:  # noqa: ARG001 - as score_images
    """Bits a character of test rows, retrieval and inversion."""
    network: Any = system.network
    source, tokenizer = system.recipe.build_text(), system.tokenizer
    assert isinstance(tokenizer, TextTokenizer)
    train, test = (
        TextData(text_data(source, split, tokenizer).packed, source.length, source.length)
        for split in ("train", "test")
    )
    rows = test.__getitems__(torch.linspace(0, len(test) - 1, num).long().tolist())[0]
    nats = corpus_likelihood(network, rows.split(64), Rng.stream("bits", seed), mask_id=tokenizer.vocab_size).nats
    scores = {"bits_per_character": nats / math.log(2) / rows.numel()}
    entries = text_entries(network, (train, test), TEXT_METHODS, tokenizer.vocab_size, {"seed": seed})
    names = [f"{one.name}{' of counts' if 'counts' in one.of else ''}" for one in entries]
    return scores | {name: one.value for name, one in zip(names, entries, strict=True)}


def _stored(output: Path | None) -> Any:
    return json.loads(output.read_text(encoding="utf-8")) if output is not None and output.is_file() else {}


def _store(output: Path | None, found: dict[str, Any]) -> None:
    if output is not None:
        write_json(output, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    times = parts.add_parser("latency")
    times.add_argument("--lengths", default="49,256,1024,4096,16384")
    times.set_defaults(run=latency)
    hole = parts.add_parser("inpaint")
    hole.add_argument("checkpoint")
    hole.add_argument("--steps", default="1,2,4,8,16")
    hole.add_argument("--num", type=int, default=500)
    hole.set_defaults(run=inpaint)
    arms = parts.add_parser("train")
    arms.add_argument("experiment")
    arms.add_argument("--seconds", type=float, default=20.0)
    arms.add_argument("--seeds", type=int, default=2)
    arms.add_argument("--first", type=int, default=0)
    arms.add_argument("--arms")
    arms.add_argument("--num", type=int, default=256)
    arms.set_defaults(run=train)
    for one in (times, hole, arms):
        one.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.run(options)


if __name__ == "__main__":
    main()

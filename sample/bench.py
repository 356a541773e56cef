"""`maskgen bench fid`: checkpoints over samplers, steps and guidance, on one process or many, resumed where it stopped.

torchrun --nproc_per_node 2 -m maskgen.sample.bench CHECKPOINT ... [options of `maskgen bench fid`]
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.core.devices import is_first_rank, pick_device, sum_over_ranks
from maskgen.core.errors import UserError
from maskgen.core.files import atomic, local_path, require_writable
from maskgen.core.lock import RunLock
from maskgen.data.image.grid import grid
from maskgen.evaluation.metrics.frechet import standard_error
from maskgen.evaluation.metrics.scored import Scored, keeps_features, measure, require_able
from maskgen.evaluation.metrics.stored import cached
from maskgen.evaluation.protocols.features import Extractor
from maskgen.evaluation.report import plain
from maskgen.pipelines.base import settings_of
from maskgen.pipelines.image import ImagePipeline
from maskgen.samplers import FIELD_SAMPLERS, SAMPLERS
from maskgen.tokenizers import ImageTokenizer

from .bench_report import FILE, GRIDS, Book
from .draws import Arm, Draw, arm_of
from .evaluate import Cost, Ground, Restored, ground_of, score_samples
from .judges import DEFAULT, pick_extractor, require_fit
from .nfe import published_nfe

SHOWN = 40


@dataclass(frozen=True)
class Sweep:
    """What is varied (None: as the recipe has it), and what all arms share; `arguments` are of their samplers."""

    num: int
    seed: int
    metrics: tuple[str, ...]
    folder: Path
    samplers: Sequence[str] | None = None
    steps: Sequence[int] | None = None
    guidance: Sequence[float] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def run(
    checkpoints: Sequence[str],
    *,
    num: int = 10_000,
    seed: int = 0,
    output: str = "bench",
    protocol: str | None = None,
    weights: str | None = None,
    metrics: Sequence[str] = (),
    device: str = "auto",
    **varied: Any,
) -> str:
    """Score every combination that is not in the output's report yet; the table of all of them, in Markdown.

    Raises:
        UserError: a checkpoint, sampler, protocol or output that cannot be used, or a report of another measure.
    """
    folder, place = local_path(output), pick_device(device)
    require_writable(folder, output)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        Accelerator(cpu=place.type == "cpu")  # the processes find each other
    extractor = pick_extractor(protocol or DEFAULT, weights, place)
    sweep = Sweep(num, seed, tuple(metrics), folder, **varied)
    with RunLock(folder) if is_first_rank() else nullcontext():  # two writers would lose each other's rows
        book = Book.read(folder) if (folder / FILE).is_file() else Book(num=num, seed=seed)
        _fill(book, [_Bench.of(source, extractor, sweep, place) for source in checkpoints])
        if not is_first_rank():
            return ""
        book.write_pages(folder)
    return f"{book.markdown()}\n\nreport: {folder / FILE}, report.md and report.html beside it"


def _fill(book: Book, benches: Sequence[_Bench]) -> None:
    """Score what the book lacks; what does not compare is refused before anything is drawn."""
    for bench in benches:
        floor = bench.ground.floor()
        book.require_same(floor, bench.sweep.num, bench.sweep.seed)
        book.floor = book.floor or floor
    for bench in benches:
        bench.fill(book)


@dataclass(frozen=True)
class _Bench:
    """One checkpoint: its arms, and what they are read against."""

    source: str
    arms: list[tuple[dict[str, object], Arm]]
    ground: Ground
    sweep: Sweep

    @classmethod
    def of(cls, source: str, extractor: Extractor, sweep: Sweep, device: torch.device) -> _Bench:
        checkpoint = read_checkpoint(source)
        if checkpoint.recipe.kind == "text":
            raise UserError(f"{source} writes text; bench fid is for images")
        pipeline = ImagePipeline(checkpoint, device)
        require_fit(extractor, checkpoint)
        arms = list(_arms(pipeline, source, sweep))
        ground = ground_of(checkpoint, extractor, keeps_features(sweep.metrics))
        for name in sweep.metrics:
            require_able(name, ground.reference, sweep.num)
        return cls(source, arms, ground, sweep)

    def fill(self, book: Book) -> None:
        """Score the arms that the book lacks; it is written after each."""
        sweep = self.sweep
        todo = [arm for arm in self.arms if not book.has(_key(arm[1], sweep.num), sweep.metrics)]
        if not todo:
            return
        tokenizer = todo[0][1].pipeline.generator.tokenizer
        assert isinstance(tokenizer, ImageTokenizer)
        restored = cached(Restored(tokenizer, self.ground.test), self.ground.extractor)
        floor = self.ground.scored(restored, "tokenizer reconstructions of test images").distance()
        for facts, arm in tqdm(todo, self.source, unit="arm", disable=None if is_first_rank() else True):
            row = {**facts, **self._score(arm), "reconstruction_floor": plain(asdict(floor))}
            if is_first_rank():
                book.add(_key(arm, sweep.num), row, self.ground.floor())
                book.write(sweep.folder)

    def _score(self, arm: Arm) -> dict[str, object]:
        cost, shown, sweep = Cost(), [], self.sweep

        def look(draw: Draw) -> None:
            if draw.first < SHOWN:
                shown.append(draw.images[: SHOWN - draw.first])

        samples = score_samples(self.ground.extractor, arm, sweep.num, True, cost, look)
        settings = {"checkpoint": self.source, "step": arm.pipeline.checkpoint.step, **settings_of(arm.generator)}
        scored = self.ground.scored(samples, "samples", seed=arm.seed, sampler=settings)
        others = [entry for name in sweep.metrics for entry in measure(name, scored)]
        picture = f"{GRIDS}/{_key(arm, sweep.num)}.png"
        if shown and is_first_rank():
            with atomic(sweep.folder / picture) as file:
                grid(torch.cat(shown), 10).save(file, "PNG")
        spent = sum_over_ranks(torch.tensor([cost.seconds, cost.evaluations], dtype=torch.float64)) / sweep.num
        return {
            "score": plain(asdict(scored.distance(standard_error=_error(scored)))),
            "accuracy": samples.accuracy,
            "others": [plain(asdict(entry)) for entry in others],
            "metrics": list(sweep.metrics),
            "seconds": float(spent[0]),
            "evaluations": float(spent[1]),
            "scheduled": published_nfe(arm.generator, float(spent[1])),
            "grid": picture,
        }


def _error(scored: Scored) -> float:
    """Standard error of the distance, over the draw of the samples."""
    assert scored.samples.features is not None
    return standard_error(scored.samples.features, scored.reference.moments)


def _arms(pipeline: ImagePipeline, source: str, sweep: Sweep) -> Iterator[tuple[dict[str, object], Arm]]:
    """Every combination once; a sampler that takes no steps is not repeated for each."""
    given = [f"{key}={value}" for key, value in sweep.arguments.items()]
    for sampler, guidance in product(sweep.samplers or (None,), sweep.guidance or (None,)):
        for steps in sweep.steps if sweep.steps and _takes_steps(sampler) else (None,):
            more = dict(sweep.arguments) if steps is None else {**sweep.arguments, "steps": steps}
            generator = pipeline.with_sampler(sampler, guidance, **more)
            facts: dict[str, object] = {
                "checkpoint": source,
                "sampler": " ".join([sampler or "recipe's", *given]),
                "steps": steps,
                "guidance": guidance if guidance is not None else generator.guidance.scale,
            }
            yield facts, arm_of(pipeline, generator, sweep.seed, sweep.folder / "samples")


def _takes_steps(sampler: str | None) -> bool:
    name = str(sampler).replace("-", "_")
    registry = FIELD_SAMPLERS if name in FIELD_SAMPLERS.names() else SAMPLERS
    return name not in registry.names() or "steps" in registry.arguments(name)


def _key(arm: Arm, num: int) -> str:
    return f"{arm.key}-{num}"


if __name__ == "__main__":
    importlib.import_module("maskgen.cli.commands").main(
        "bench", "fid"
    )  # by name: the command line is above the programs

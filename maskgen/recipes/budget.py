"""How a recipe is trained: the settings, its phases, and what holds at each step as functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from maskgen.data.image.views import Views

Share = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
RateSchedule = Literal["constant", "cosine"]

CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: math.cos(math.pi / 2 * x) ** 2,
    "cosine4": lambda x: math.cos(math.pi / 2 * x) ** 4,
}
"""Falling 1 -> 0 over x in [0, 1]; the last two are MaskDiT's (arXiv 2306.09305)."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class KeepCurve(_Settings):
    """A keep ratio that goes from `start` to `end` over a phase, in `levels` stretches of one value each.

    Few values mean few shapes, so a compiled network is compiled few times.
    """

    type: Literal["linear", "cosine", "cosine4"]
    start: Ratio
    end: Ratio
    levels: int = Field(8, ge=2, le=64)

    def at(self, share: float) -> float:
        """The ratio after a share of the phase in [0, 1]; `start` and `end` are reached exactly."""
        level = min(int(share * self.levels), self.levels - 1)
        if level == self.levels - 1:
            return self.end
        return self.end + (self.start - self.end) * CURVES[self.type](level / (self.levels - 1))


def _kind(value: object) -> str:
    return "curve" if isinstance(value, Mapping | KeepCurve) else "number"


KIND_TAGS = ("number", "curve")
KeepRatio = Annotated[Annotated[Ratio, Tag("number")] | Annotated[KeepCurve, Tag("curve")], Discriminator(_kind)]
"""A number, or a curve over the phase; a fault in one is not reported as a fault in the other."""


class Phase(_Settings):
    """A stretch of a run; what it does not say it takes from `train`.

    With `lr`, `lr_schedule`, `lr_floor` or `warmup` of its own the rate is one over the phase's own steps (and without
    warm-up unless it says so); else it is the run's, which goes on over all phases.
    """

    steps: int = Field(ge=1)
    keep_ratio: KeepRatio | None = None
    lr: float | None = Field(None, gt=0)
    lr_schedule: RateSchedule | None = None
    lr_floor: Ratio | None = None
    warmup: int | None = Field(None, ge=0)
    resolution: int | None = Field(None, ge=1, description="size of the images; the data's own if left out")
    batch_size: int | None = Field(None, ge=1)
    accumulate: int | None = Field(None, ge=1)

    @property
    def has_own_rate(self) -> bool:
        return any(value is not None for value in (self.lr, self.lr_schedule, self.lr_floor, self.warmup))


class Best(_Settings):
    """Which checkpoint is the best: by a value of the validation, `loss` say."""

    metric: str
    mode: Literal["min", "max"] = "min"


class TrainSettings(_Settings):
    """How a recipe is trained.

    With `phases`, `steps` is their sum; given as well, the phases are stretched in proportion to last as long.
    """

    steps: int = Field(10_000, ge=1)
    batch_size: int = Field(128, ge=1, description="of all processes and accumulation steps together")
    accumulate: int = Field(1, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    lr_schedule: RateSchedule = "cosine"
    lr_floor: Share = Field(0.0, description="share of lr at which the cosine ends")
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.95)
    layer_decay: float = Field(1.0, gt=0, le=1, description="rate of a block over that of the next one")
    freeze: tuple[str, ...] = Field((), description="patterns of tensors that are not trained")
    clip: float = Field(1.0, gt=0)
    ema: Share = Field(0.999, description="0 is off")
    keep_ratio: KeepRatio = 1.0
    phases: tuple[Phase, ...] = ()
    flip: bool = False
    views: Views | None = None
    document_attention: bool = Field(False, description="documents packed into a row do not see each other")
    gradient_checkpointing: bool = Field(False, description="compute a block's activations again, not keep them")
    precision: Literal["auto", "no", "bf16"] = "auto"
    workers: int = Field(0, ge=0, le=256, description="processes that read data ahead")
    worker_timeout: float = Field(600.0, ge=0, description="seconds a batch of a data worker may take; 0 is no limit")
    checkpoint_every: int = Field(1000, ge=1)
    keep_checkpoints: int = Field(2, ge=1, description="the newest so many")
    keep_every: int = Field(0, ge=0, description="also those of every so many steps; 0 is off")
    keep_best: Best | None = Field(None, description="also the best by a value of the validation")
    skip_limit: int = Field(10, ge=0, description="steps in a row with a NaN or infinite loss that end the run")
    log_every: int = Field(50, ge=1)
    preview_every: int = Field(1000, ge=0, description="0 is off")
    validation_rows: int = Field(1000, ge=0, description="held-out rows looked at with every checkpoint; 0 is off")
    tensorboard: bool = True
    trackers: tuple[Literal["tensorboard", "wandb", "csv"], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _sum_of_phases(cls, tree: object) -> object:
        """`steps` from the phases where it is not given; what is not well-formed is left for validation to name."""
        if not isinstance(tree, Mapping) or "steps" in tree or not isinstance(tree.get("phases"), list | tuple):
            return tree
        steps = [phase.get("steps") if isinstance(phase, Mapping) else None for phase in tree["phases"]]
        return {**tree, "steps": sum(steps)} if steps and all(isinstance(n, int) for n in steps) else tree

    @model_validator(mode="after")
    def _has_values_to_keep_by(self) -> TrainSettings:
        if self.keep_best is not None and not self.validation_rows:
            raise ValueError("keep_best needs a validation; set validation_rows above 0, or leave keep_best out")
        return self

    @property
    def lowest_keep_ratio(self) -> float:
        """The least share of tokens that is kept in any phase."""
        return min(min(stretch.keep_ratios) for stretch in plan(self))


@dataclass(frozen=True)
class Stretch:
    """A phase laid out: steps `first` to `last` - 1, every value filled in; `images` were seen before it."""

    index: int
    first: int
    last: int
    images: int
    keep_ratio: float | KeepCurve
    batch_size: int
    accumulate: int
    resolution: int | None

    def __len__(self) -> int:
        return self.last - self.first

    def keep_ratio_at(self, step: int) -> float:
        """The keep ratio of one of its steps."""
        if isinstance(self.keep_ratio, float):
            return self.keep_ratio
        return self.keep_ratio.at((step - self.first) / len(self))

    @property
    def keep_ratios(self) -> dict[float, int]:
        """The ratios that occur, in their order, and the steps each holds for."""
        if isinstance(self.keep_ratio, float):
            return {self.keep_ratio: len(self)}
        counts: dict[float, int] = {}
        for step in range(self.first, self.last):
            ratio = self.keep_ratio_at(step)
            counts[ratio] = counts.get(ratio, 0) + 1
        return counts


def plan(settings: TrainSettings) -> tuple[Stretch, ...]:
    """The phases of a run one after the other, together `settings.steps` long; one that gets no step is left out."""
    phases = settings.phases or (Phase(steps=settings.steps),)
    total, reached, images = sum(phase.steps for phase in phases), 0, 0
    stretches, first = [], 0
    for index, phase in enumerate(phases):
        reached += phase.steps
        last = settings.steps * reached // total  # exact: the last phase ends at `steps`
        if last > first:
            batch_size = phase.batch_size or settings.batch_size
            keep = settings.keep_ratio if phase.keep_ratio is None else phase.keep_ratio
            accumulate = phase.accumulate or settings.accumulate
            stretches.append(Stretch(index, first, last, images, keep, batch_size, accumulate, phase.resolution))
            images += (last - first) * batch_size
        first = last
    return tuple(stretches)


def stretch_at(settings: TrainSettings, step: int) -> Stretch:
    """The phase of step 0, 1, ...; the last one beyond the end."""
    stretches = plan(settings)
    return next((stretch for stretch in stretches if step < stretch.last), stretches[-1])


def images_before(step: int, settings: TrainSettings) -> int:
    """How many images the steps before one have taken."""
    stretch = stretch_at(settings, step)
    return stretch.images + (step - stretch.first) * stretch.batch_size


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then constant or half a cosine to `lr_floor` of the rate.

    A function of the step alone, so a resumed run needs no state for it.
    """
    if settings.phases:
        stretch = stretch_at(settings, step)
        own = settings.phases[stretch.index]
        if own.has_own_rate:
            fields = {key: getattr(own, key) for key in ("lr", "lr_schedule", "lr_floor")}
            changes = {key: value for key, value in fields.items() if value is not None}
            alone = settings.model_copy(
                update={**changes, "warmup": own.warmup or 0, "steps": len(stretch), "phases": ()}
            )
            return learning_rate(step - stretch.first, alone)
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.lr_schedule == "constant":
        return settings.lr * warm
    share = max(step - settings.warmup, 0) / max(settings.steps - settings.warmup, 1)
    falling = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return settings.lr * warm * (settings.lr_floor + (1 - settings.lr_floor) * falling)

"""Published samplers of language models: path planning, and generation by masked language models."""

from __future__ import annotations

from typing import Literal

from maskgen.samplers.masked.layout import Blocks
from maskgen.samplers.masked.loop import MaskedSampler
from maskgen.samplers.masked.order import Confidence, Order, Random
from maskgen.samplers.masked.presets import SAMPLERS
from maskgen.samplers.masked.remask import Planned
from maskgen.samplers.masked.unmasking import Bernoulli, One, Scheduled, Unmasking
from maskgen.schedules import Linear, Schedule


@SAMPLERS.register("p2")
def p2(
    steps: int = 64,
    temperature: float = 1.0,
    planner: Literal["self", "random"] = "self",
    eta: float = 1.0,
    schedule: Schedule = Linear(),
    top_p: float = 1.0,
) -> MaskedSampler:
    """Path planning: masked and revealed tokens compete for the visible places (P2, arXiv 2502.03540).

    Counts follow the schedule exactly, those of random planning by coins, so that it has the law of `ancestral`.

    Args:
        steps: T.
        temperature: of the tokens.
        planner: what ranks them: `self`, the network's log-probability; `random`, with eta 0 ancestral sampling.
        eta: weight of revealed tokens; 0 masks none again, 1 is greedy, more masks more of them again.
        schedule: alpha(t), whose share of the tokens is visible after each step.
        top_p: nucleus.
    """
    order: Order = Confidence() if planner == "self" else Random()
    unmasking: Unmasking = Scheduled(schedule) if planner == "self" else Bernoulli(schedule)
    return MaskedSampler(order, unmasking, Planned(eta), steps=steps, temperature=temperature, top_p=top_p)


@SAMPLERS.register("masked_lm")
def masked_lm(
    masks: int = 3, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, beam: int = 1
) -> MaskedSampler:
    """Left to right by a masked language model (BERT): a token is drawn at the first of a few masks (arXiv 2406.04823).

    Args:
        masks: after the text so far; those behind the first keep the end of the text away.
        temperature, top_p, top_k: of the tokens.
        beam: number of texts of a beam search, which draws nothing (published for tasks: 4); 1 draws.
    """
    if masks < 1:
        raise ValueError(f"masks must be at least 1, got {masks}")
    return MaskedSampler(
        Random(),
        One(),
        layout=Blocks(1, "row"),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        lookahead=masks - 1,
        beam=beam,
    )

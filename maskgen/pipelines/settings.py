"""Sampler and guidance of a pipeline as plain values."""

from __future__ import annotations

from dataclasses import asdict

from maskgen.core.traits import traits_of
from maskgen.pipelines.generator import Generator
from maskgen.samplers import FieldSampler

HEAD_NFE = "head_nfe_per_token"
"""Of a diffusion head, twice as many under guidance; the network's own evaluations are counted apart."""


def settings_of(generator: Generator) -> dict[str, object]:
    """Sampler and guidance as plain values, for a report."""
    sampler = generator.effective_sampler()
    if isinstance(sampler, FieldSampler):
        return {**asdict(sampler), "nfe": sampler.nfe, "guidance": repr(generator.guidance)}
    chosen = {
        "order": sampler.order,
        "unmasking": sampler.unmasking,
        "remask": sampler.remask,
        "layout": sampler.layout,
    }
    parts: dict[str, object] = {name: repr(part) for name, part in chosen.items()}
    numbers: dict[str, object] = {
        "steps": sampler.steps,
        "temperature": sampler.temperature,
        "top_p": sampler.top_p,
        "crossing": sampler.crossing,
    }
    given = {"top_k": (sampler.top_k, 0), "lookahead": (sampler.lookahead, None)}
    numbers |= {name: value for name, (value, off) in given.items() if value != off}
    if traits_of(generator.denoiser).has_token_diffusion:
        numbers |= {"head": repr(sampler.head), HEAD_NFE: sampler.head.nfe}
    return {**parts, **numbers, "guidance": repr(generator.guidance)}

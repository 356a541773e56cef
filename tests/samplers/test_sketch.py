"""MaskSketch: what is masked again, and by what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.samplers.masked.sketch import SketchSampler, similarity
from tests.toys import MASK, waves

SKETCH = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [4, 4, 0, 0, 1, 1, 2, 2]])


def by_place(x: Tensor) -> Tensor:
    """(B, 1, L, L), maps that depend on the tokens."""
    return torch.softmax((x[:, :, None] * x[:, None]).double(), -1)[:, None]


def drawn(
    sampler: SketchSampler, seeds: list[int], sketch: Tensor = SKETCH, steps: list[Tensor] | None = None
) -> Tensor:
    def keep(_: int, __: int, x: Tensor) -> None:
        if steps is not None:
            steps.append(x.clone())

    return sampler(waves, by_place, sketch[: len(seeds)], Rng.per_sample(seeds), mask_id=MASK, on_step=keep)


def test_the_similarity_is_two_negative_cross_entropies() -> None:
    a, b = by_place(SKETCH), by_place(SKETCH.roll(3, 1))
    expected = [
        [
            sum(float(p * q.log() + q * p.log()) for p, q in zip(one, other, strict=True))
            for one, other in zip(m, n, strict=True)
        ]
        for m, n in zip(a[:, 0], b[:, 0], strict=True)
    ]
    torch.testing.assert_close(similarity(a, b), torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(similarity(a, b), similarity(b, a))


def test_one_hot_maps_have_a_finite_similarity_highest_where_they_agree() -> None:
    one, other = torch.eye(4)[None, None], torch.eye(4)[[0, 1, 3, 2]][None, None]
    found = similarity(one, other)[0]
    assert found.isfinite().all()
    assert found[:2].min() > found[2:].max()


def test_a_sample_depends_on_its_seed_and_sketch_only() -> None:
    sampler = SketchSampler(steps=5, temperature=1.0)
    both = drawn(sampler, [3, 4])
    assert torch.equal(both[1], drawn(sampler, [4], SKETCH[1:])[0])
    assert not torch.equal(both[1], drawn(sampler, [5], SKETCH[1:])[0])


@pytest.mark.parametrize("structure", [0.0, 0.9, 1.0])
def test_tokens_change_within_the_share_of_a_step_and_none_is_masked_at_the_end(structure: float) -> None:
    steps: list[Tensor] = []
    sampler = SketchSampler(steps=6, structure=structure, most=0.75, least=0.25)
    out = drawn(sampler, [0, 1], steps=steps)
    assert int(out.max()) < MASK
    shares = [0.75 * (0.25 + (1 - step / 6) * 0.5) for step in range(1, 6)]
    for before, after, share in zip(steps[:-1], steps[1:], shares, strict=True):
        assert ((before != after).sum(1) <= 8 * share + 1).all()


def test_without_structure_the_attention_changes_nothing_and_with_it_alone_the_confidence_does_not() -> None:
    sampler = SketchSampler(steps=4, structure=0.0)
    silent = sampler(
        waves, lambda x: torch.full((len(x), 1, 8, 8), 1 / 8), SKETCH, Rng.per_sample([0, 1]), mask_id=MASK
    )
    assert torch.equal(silent, drawn(sampler, [0, 1]))
    assert not torch.equal(silent, drawn(SketchSampler(steps=4, structure=1.0), [0, 1]))


def test_the_start_masks_the_largest_share_of_the_sketch() -> None:
    asked: list[Tensor] = []

    def watched(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> object:
        asked.append((x_t == MASK).sum(1))
        assert torch.equal(t, (x_t == MASK).double().mean(1))
        return waves(x_t, t, where=where)

    sampler = SketchSampler(steps=3, most=0.5)
    sampler(watched, by_place, SKETCH, Rng.per_sample([0, 1]), mask_id=MASK)  # type: ignore[arg-type]
    assert asked[0].tolist() == [4, 4]
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps"), ({"structure": 1.5}, "structure"), ({"structure": float("nan")}, "structure"),
        ({"most": 0.2, "least": 0.5}, "least"), ({"temperature": -1.0}, "temperature"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SketchSampler(**arguments)  # type: ignore[arg-type]

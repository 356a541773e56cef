"""Laws of the targets of masked autoencoders: invariances, teachers, resumption, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import Batch
from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES, MaskedRegression, ProjectedRegression
from maskgen.objectives.projection import orthonormal, projected
from maskgen.objectives.targets import TARGETS, EmaTeacher, FrozenNetwork, FrozenTokenizer, Pixels, frozen_copy
from maskgen.objectives.targets.clusters import balanced
from maskgen.objectives.targets.hog import oriented_gradients
from maskgen.objectives.targets.latent import patch_discrimination
from maskgen.processes import Absorbing
from maskgen.recipes.checks import check_together
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.tree import RecipeError
from maskgen.schedules import Fixed
from maskgen.strategies import Attention, Hard
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.image.patches import PatchTokenizer, patchify
from tests.cases import each

GRID, SIDE, N = (4, 4), 2, 4
LAYOUT = TokenLayout.of(Stream("image", "image", 0, GRID, SIDE**2))
IMAGES = Rng.stream("images").uniform((N, 1, 8, 8)).float()
x_0 = patchify(2 * IMAGES - 1, SIDE)
SMALL = {"width": 8, "depth": 1, "heads": 2}
SPECS: dict[str, dict[str, Any]] = {
    "pixels": {},
    "normalised": {},
    "hog": {"cell": 1},
    "teacher": {"checkpoint": "runs/teacher"},
    "bootstrap": {"stages": 2},
    "latent": {"decay": 0.5},
    "clusters": {"n": 3, "decay": 0.5},
    "codes": {"checkpoint": "runs/vq"},
}


def network(target_width: int = 0, **more: Any) -> Any:
    torch.manual_seed(0)
    spec = {"type": "mae", **SMALL, "decoder": {"type": "joint", **SMALL}, **more}
    return MODELS.build(spec, token_width=SIDE**2, grid=GRID, target_width=target_width)


def source(name: str) -> Any:
    """What the checkpoint of a spec would give."""
    if name == "teacher":
        return FrozenNetwork(network().eval(), PatchTokenizer((1, 8, 8), SIDE), (1, 8, 8))
    if name == "codes":
        spec = {"type": "fsq", "levels": [3, 3], "width": 8, "fine_width": 4, "depth": 1, "factor": 2}
        return FrozenTokenizer(TOKENIZERS.build(spec, image_shape=(1, 8, 8)).eval())  # type: ignore[arg-type]
    return None


def regression(name: str, **more: Any) -> tuple[MaskedRegression, Any]:
    """An objective and a network for its target."""
    spec = TARGETS.build({"type": name, **SPECS[name]})
    objective = MaskedRegression(Absorbing(0, Fixed(0.75)), spec, layout=LAYOUT, **more)
    given = source(name)
    trained = network(objective.target_width(given))
    objective.attach(trained, given)
    return objective, trained


def step(objective: MaskedRegression, trained: Any, index: int) -> float:
    """A step of plain gradient descent; its loss."""
    loss = objective(trained, Batch(x_0), Rng.stream("step", index), progress=index / 4).value
    trained.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    return float(loss.detach())


def test_every_target_is_tested() -> None:
    assert set(SPECS) == set(TARGETS.names())


@each("name", list(SPECS))
def test_a_run_continues_from_its_state_as_if_it_had_never_stopped(name: str) -> None:
    objective, trained = regression(name)
    for index in range(3):
        assert math.isfinite(step(objective, trained, index))
    assert objective.state is not None
    weights = {key: value.clone() for key, value in trained.state_dict().items()}
    state = {key: value.clone() for key, value in objective.state.state_dict().items()}
    expected = [step(objective, trained, index) for index in (3, 4)]
    again, fresh = regression(name)
    fresh.load_state_dict(weights)
    assert again.state is not None
    again.state.load_state_dict(state)
    assert [step(again, fresh, index) for index in (3, 4)] == expected


@each("name", list(SPECS))
def test_a_target_has_no_gradient_and_no_parameters(name: str) -> None:
    objective, trained = regression(name)
    truth = objective.target(x_0)
    assert not truth.requires_grad
    assert not list(objective.target.parameters())
    assert truth.shape[:2] == (N, 16)
    before = [parameter.clone() for parameter in trained.parameters()]
    objective(trained.eval(), Batch(x_0), Rng.stream(0))
    assert all(torch.equal(one, other) for one, other in zip(before, trained.parameters(), strict=True))


def test_histograms_ignore_brightness_and_contrast_and_flat_images_have_none() -> None:
    base = oriented_gradients(IMAGES, 2, 9)
    assert torch.allclose(oriented_gradients(0.3 * IMAGES + 0.2, 2, 9), base, atol=1e-4)
    assert not oriented_gradients(torch.ones(1, 1, 8, 8), 2, 9).any()
    assert torch.allclose(base.norm(dim=2), torch.ones(N, 1, 4, 4), atol=1e-5)


def test_a_quarter_turn_of_the_image_turns_directions_by_half_of_the_bins() -> None:
    turned = oriented_gradients(IMAGES.rot90(dims=(2, 3)), 2, 8)
    expected = oriented_gradients(IMAGES, 2, 8).rot90(dims=(3, 4)).roll(4, 2)
    assert torch.allclose(turned, expected, atol=1e-5)


def test_histograms_of_a_patch_are_those_of_its_cells() -> None:
    objective, _ = regression("hog")
    truth = objective.target(x_0).unflatten(2, (9, SIDE, SIDE))
    whole = oriented_gradients((IMAGES * 2 - 1 + 1) / 2, 1, 9)[:, 0]
    assert torch.allclose(truth[:, 6], whole[:, :, 2:4, 4:6], atol=1e-5)  # patch (1, 2)


def test_patch_discrimination_is_free_for_orthogonal_targets_and_costs_log_k_after_a_collapse() -> None:
    truth = torch.eye(6).expand(2, -1, -1)
    right = patch_discrimination(truth.flatten(0, 1), truth, None, 0.01)
    assert torch.allclose(right, torch.zeros(12), atol=1e-4)
    collapsed = patch_discrimination(torch.ones(12, 6), torch.ones(2, 6, 6), None, 0.2)
    assert torch.allclose(collapsed, torch.full((12,), math.log(6)))
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    padded = patch_discrimination(torch.ones(10, 6), torch.ones(2, 6, 6), valid, 0.2)
    assert torch.allclose(padded[6:], torch.full((4,), math.log(4)))


def test_assignments_use_every_cluster_equally_at_every_position() -> None:
    scores = Rng.stream("scores").normal((64, 3, 4)) + torch.tensor([3.0, 0, 0, 0])
    assigned = balanced(scores, 0.5, rounds=50)
    assert torch.allclose(assigned.sum(-1), torch.ones(64, 3), atol=1e-5)
    assert torch.allclose(assigned.sum(0), torch.full((3, 4), 16.0), atol=0.1)


def test_a_teacher_moves_once_per_step_and_stands_still_in_the_end() -> None:
    first, second = network(), network()
    teacher = EmaTeacher(first, 0.9)
    with torch.no_grad():
        second.class_token += 1
    start = first.class_token.detach().clone()
    for _ in range(3):  # micro-batches of one step
        teacher.update(second, 0.0)
    moved = dict(teacher.average.named_buffers())["class_token"]
    assert torch.allclose(moved, start + 0.1, atol=1e-6)
    teacher.update(second, 1.0)
    assert torch.allclose(dict(teacher.average.named_buffers())["class_token"], start + 0.1, atol=1e-6)


def test_a_frozen_copy_computes_the_same_and_has_nothing_to_train() -> None:
    original = network().eval()
    twin: Any = frozen_copy(original)
    assert torch.equal(twin.features(x_0), original.features(x_0))
    assert not list(twin.parameters())
    assert set(twin.state_dict()) == set(original.state_dict())


def test_a_renewed_teacher_is_the_network_at_the_beginning_of_its_stage() -> None:
    objective, trained = regression("bootstrap")
    target: Any = objective.target
    expected = torch.empty(0)
    for index, stage in enumerate((0, 0, 1, 1)):
        if index in (0, 2):
            expected = F.layer_norm(trained.features(x_0), (8,), eps=1e-6).detach()
        step(objective, trained, index)
        assert int(target.stage) == stage
        assert torch.allclose(target(x_0), expected, atol=1e-6)


def test_a_strategy_asks_the_moving_average_where_one_is_kept() -> None:
    for strategy, more in ((Attention(), {}), (Hard(), {"has_difficulty": True})):
        process = Absorbing(0, Fixed(0.5), strategy=strategy)
        objective = MaskedRegression(process, Pixels(), teacher_decay=0.9, layout=LAYOUT)
        trained = network(**more)
        objective.attach(trained, None)
        objective(trained, Batch(x_0), Rng.stream(0), progress=0.5)
        assert objective.state is not None
        assert any(key.startswith("teacher.average.") for key in objective.state.state_dict())


def test_projections_are_onto_their_subspace() -> None:
    basis = orthonormal(3, 16, 4, Rng.stream(0), torch.device("cpu"))
    assert torch.allclose(basis.mT @ basis, torch.eye(4).expand(3, -1, -1), atol=1e-5)
    once = projected(x_0[:3], basis)
    assert torch.allclose(projected(once, basis), once, atol=1e-5)


def test_only_what_the_projection_lost_has_a_cost() -> None:
    def answers(offset: Tensor) -> Any:
        class Network:
            training = True

            def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any, targets: TokenSubset) -> Any:
                from maskgen.core.predictions import Point

                self.x_t = x_t
                return Point(targets.pack(x_0 + (x_t if offset.ndim == 0 else offset)), targets.is_kept())

        return Network()

    objective = ProjectedRegression(0.75)
    kept = objective(answers(torch.tensor(0.0)), Batch(x_0), Rng.stream(0)).value
    assert float(kept) == pytest.approx(0, abs=1e-5)  # x_t is in the subspace
    assert float(objective(answers(torch.ones_like(x_0)), Batch(x_0), Rng.stream(0)).value) > 0.1


def test_the_former_key_still_chooses_pixels() -> None:
    for former, now in ((False, "pixels"), (True, "normalised")):
        spec = {"type": "masked_regression", "normalise": former}
        built: Any = OBJECTIVES.build(spec, process=Absorbing(0, Fixed(0.75)))
        assert type(built.spec) is TARGETS.get(now)


RECIPE: dict[str, Any] = {
    "data": "digits",
    "tokenizer": {"type": "patches", "size": 2},
    "process": {"type": "absorbing", "schedule": {"type": "fixed", "ratio": 0.75}},
    "model": {"type": "mae", **SMALL, "decoder": {"type": "joint", **SMALL}},
    "sampler": {"type": "masked", "order": "random", "steps": 1},
    "train": {"preview_every": 0},
}


@each(
    "objective, more, message",
    [
        ({"target": {"type": "hog", "cell": -1}}, {}, "cell not negative"),
        ({"target": {"type": "latent", "decay": 1.5}}, {}, r"decay of a teacher must be in \[0, 1\)"),
        ({"target": "clusters", "teacher_decay": 0.9}, {}, "does not evaluate the network"),
        ({"target": "hog"}, {"train": {"preview_every": 5}}, "this target is no image"),
        ({"target": "latent"}, {"train": {"preview_every": 0, "phases": [{"steps": 2, "resolution": 16}]}}, "teacher"),
    ],
)
def test_combinations_are_refused_in_words(objective: dict[str, Any], more: dict[str, Any], message: str) -> None:
    tree = {**RECIPE, "objective": {"type": "masked_regression", **objective}, **more}
    if "phases" in tree["train"]:
        tree["data"] = {"type": "folder", "path": "x", "size": 8}
    with pytest.raises(RecipeError, match=message):
        check_together(parse_recipe(tree))


def test_a_source_of_another_kind_or_grid_is_refused() -> None:
    objective = MaskedRegression(Absorbing(0, Fixed(0.75)), TARGETS.build({"type": "codes", "checkpoint": "x"}))
    with pytest.raises(ValueError, match="must be of a trained tokenizer"):
        objective.attach(network(), source("teacher"))
    coarse = TokenLayout.of(Stream("image", "image", 0, (2, 2), 16))
    spec = TARGETS.build({"type": "codes", "checkpoint": "x"})
    with pytest.raises(ValueError, match=r"has a grid \(4, 4\) of tokens, the network one of \(2, 2\)"):
        MaskedRegression(Absorbing(0, Fixed(0.75)), spec, layout=coarse).attach(network(), source("codes"))

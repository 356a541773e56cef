"""Costs: counted operations against formulas, totals against sums, and all of it without data."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from maskgen.core.errors import UserError
from maskgen.core.streams import Stream, TokenLayout
from maskgen.recipes.budget import TrainSettings
from maskgen.recipes.build import DataFacts, build_system, text_layout
from maskgen.recipes.cost import GPUS, Macs, Subject, cost_of, count, gpu_hours, measure, ratios, subject, total_flops
from maskgen.recipes.load import load_recipe, parse_recipe
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.image.latent import KLTokenizer
from tests.tiny import tree

Command = Callable[..., tuple[int, str, str]]
WIDTH, DEPTH, LENGTH, VOCABULARY = 16, 3, 64, 5


def tiny(condition: str = "token", strategy: str = "random", **model: Any) -> Subject:
    spec = {"type": "maskgit", "width": WIDTH, "depth": DEPTH, "heads": 2, "condition": condition, **model}
    with torch.device("meta"):
        recipe = parse_recipe(tree(model=spec, process={"type": "absorbing", "strategy": strategy}))
        return of_images(recipe, recipe.build_tokenizer((1, 8, 8)).layout, 10)


def of_images(recipe: Recipe, layout: TokenLayout | None, n_classes: int) -> Subject:
    return subject(build_system(recipe, DataFacts(n_classes, recipe.image_shape()), layout=layout))


def latents(width: int) -> TokenLayout:
    return TokenLayout.of(Stream("image", "image", 0, (16, 16), width))


def of_text(recipe: Recipe) -> Subject:
    length = recipe.row_length()
    return subject(build_system(recipe, DataFacts(length=length), layout=text_layout(63, length)))


def block(n: int, modulated: bool = False) -> int:
    """MACs of a transformer block on n tokens: projections, attention, feed-forward, adaLN."""
    return 12 * n * WIDTH**2 + 2 * n**2 * WIDTH + modulated * 6 * WIDTH**2


@pytest.mark.parametrize("keep_ratio", [1.0, 0.75, 0.5, 0.25])
def test_counted_operations_are_those_of_the_formula(keep_ratio: float) -> None:
    macs = count(tiny("token"), keep_ratio)
    kept = round(LENGTH * keep_ratio) + 1  # and the class token
    assert macs.stages["blocks"] == DEPTH * block(kept)
    assert macs.stages["head"] == LENGTH * (WIDTH**2 + VOCABULARY * WIDTH)
    assert macs.total == sum(macs.stages.values())


def test_modulation_is_a_stage_of_its_own_and_does_not_grow_with_tokens() -> None:
    whole, quarter = (count(tiny("adaln"), ratio) for ratio in (1.0, 0.25))
    assert whole.stages["modulations"] == quarter.stages["modulations"] == DEPTH * 6 * WIDTH**2
    assert quarter.stages["blocks"] == DEPTH * block(LENGTH // 4)


def test_the_published_maskgit_costs_what_its_sizes_say() -> None:
    with torch.device("meta"):
        tokenizer = TOKENIZERS.build({"type": "vq", "codes": 1024, "depth": 4}, image_shape=(3, 256, 256))
        tokenizer.grid = (16, 16)
        what = of_images(load_recipe("imagenet-maskgit"), tokenizer.layout, 1000)
    n, d = 257, 768
    assert count(what).stages["blocks"] == 24 * (12 * n * d**2 + 2 * n**2 * d)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "published"),
    [(384, 12, 6, 6.056e9), (768, 12, 12, 23.005e9), (1152, 28, 16, 118.621e9)],
)
def test_dits_cost_what_is_published(width: int, depth: int, heads: int, published: float) -> None:
    eps = "process={type: gaussian, target: eps, steps: 1000}"
    sizes = [f"model.width={width}", f"model.depth={depth}", f"model.heads={heads}", "model.has_variance=true", eps]
    recipe = load_recipe("fashion-dit", sizes)
    with torch.device("meta"):
        what = of_images(recipe, latents(16), 1000)
    assert count(what).total == pytest.approx(published, rel=0.001)


def test_deferred_masking_costs_its_mixer_whole_and_the_rest_by_kept_tokens() -> None:
    with torch.device("meta"):
        what = of_images(load_recipe("fashion-dit", ["model.masking=deferred"]), latents(4), 10)
    whole, quarter = count(what), count(what, 0.25)
    assert whole.stages["trunk.mixer_blocks"] == quarter.stages["trunk.mixer_blocks"]
    assert 0.2 < quarter.stages["trunk.backbone"] / whole.stages["trunk.backbone"] < 0.26
    assert quarter.total / whole.total > 0.35


def test_an_autoencoder_that_is_not_here_is_taken_for_stable_diffusions(command: Command) -> None:
    spec = "tokenizer={type: autoencoder_kl, source: someone/something, patch: 2}"
    data = "data={type: folder, path: nowhere, size: 256}"
    code, out, error = command("cost", "fashion-dit", spec, data, "--no-measure", "--classes", "10")
    assert code == 0, error
    assert f"{256 * 16 * 128 / 1000} k" in out  # the embedding: 16 x 16 tokens of 4 channels and 2 x 2 latents


def test_a_text_network_and_a_classifier_are_counted_too() -> None:
    recipe = load_recipe("text/kjv-md4")

    with torch.device("meta"):
        what = of_text(recipe)
        judge = of_images(load_recipe("fashion-classifier"), None, 10)
    assert what.shape == (128,)
    assert count(what).total > 12 * 128 * 128**2
    assert count(judge).total > 1e6


def test_block_diffusion_costs_two_passes_of_its_clean_half_and_the_noisy_one() -> None:
    totals = []
    for name in ("text/kjv-md4", "text/kjv-bd3"):
        with torch.device("meta"):
            what = of_text(load_recipe(name))
        totals.append(count(what).total)
    assert 1.9 < totals[1] / totals[0] < 2.4


def test_a_tokenizer_is_counted_by_its_parts() -> None:
    macs = count(of_images(load_recipe("fashion-vq"), None, 10))
    assert set(macs.stages) == {"encoder", "quantiser", "decoder"}


def test_the_whole_run_is_the_sum_over_its_phases() -> None:
    phases = [{"steps": 6, "keep_ratio": 0.25, "batch_size": 2}, {"steps": 4, "keep_ratio": 1, "resolution": 16}]
    settings = TrainSettings.model_validate({"phases": phases, "batch_size": 8})
    macs = {(None, 0.25): Macs(10.0), (16, 1.0): Macs(1000.0)}
    assert ratios(settings) == list(macs)
    assert total_flops(settings, macs) == 6 * (10 * 6 * 2 + 1000 * 4 * 8)


def test_micro_diffusions_four_stages_take_their_published_operations() -> None:
    phases = [
        {"steps": 250_000, "keep_ratio": 0.25}, {"steps": 30_000},
        {"steps": 50_000, "keep_ratio": 0.25, "resolution": 512}, {"steps": 5_000, "resolution": 512},
    ]  # fmt: skip
    settings = TrainSettings.model_validate({"phases": phases, "batch_size": 2048})
    macs = {
        (None, 1.0): Macs(123.16e9), (None, 0.25): Macs(0.389 * 123.16e9),
        (512, 1.0): Macs(565.96e9), (512, 0.25): Macs(0.338 * 565.96e9),
    }  # fmt: skip
    assert total_flops(settings, macs) == pytest.approx(3.448e20, rel=0.002)


def test_unmasked_operations_are_the_comparison() -> None:
    settings = TrainSettings.model_validate({"steps": 10, "batch_size": 4, "keep_ratio": 0.25})
    cost = cost_of(settings, {None: tiny()}, others=(0.5,))
    assert [ratio for _, ratio in cost.macs] == [0.25, 1.0, 0.5]
    assert cost.flops / cost.unmasked_flops == cost.macs[None, 0.25].total / cost.macs[None, 1.0].total
    assert cost.tree()["flops"] == cost.flops


@pytest.mark.parametrize("gpu", GPUS)
def test_hours_fall_with_the_peak_and_the_share_of_it(gpu: str) -> None:
    assert gpu_hours(3600 * GPUS[gpu], gpu, 1.0) == pytest.approx(1)
    assert gpu_hours(3600 * GPUS[gpu], gpu, 0.5) == pytest.approx(2)


def test_an_unknown_gpu_and_an_impossible_share_are_refused() -> None:
    with pytest.raises(UserError, match=r"--gpu abacus: unknown; choose from .*h100"):
        gpu_hours(1, "abacus", 0.4)
    with pytest.raises(UserError, match=r"--mfu must be in \(0, 1\], got 1.5"):
        gpu_hours(1, "h100", 1.5)


def test_speed_is_measured_on_real_weights() -> None:
    recipe = parse_recipe(tree())
    what = of_images(recipe, recipe.build_tokenizer((1, 8, 8)).layout, 10)
    assert measure(what, 2, 0.5, 1) > 0


def test_the_command_needs_no_data(command: Command) -> None:
    spec = "tokenizer={type: vq, codes: 1024, depth: 4}"
    code, out, _ = command("cost", "imagenet-maskgit", spec, "--no-measure", "--gpu", "a100", "--price", "2")
    assert code == 0
    assert "175,406,313 parameters" in out or "172,457,193 parameters" in out
    assert "USD at 2 USD an hour" in out
    for ratio in ("0.75", "0.5", "0.25"):
        assert f" {ratio} " in out
    code, out, _ = command("cost", "text/owt-mdlm", "--vocab", "50257", "--no-measure")
    assert (code, "169,627,218 parameters" in out) == (0, True)


def test_the_command_says_what_is_missing(command: Command) -> None:
    code, _, error = command("cost", "imagenet-maskgit", "--no-measure")
    assert code == 2
    assert "tokenizer={type: vq, ...}" in error


def test_a_recipe_that_cannot_drop_tokens_is_not_compared_with_dropping(command: Command) -> None:
    code, out, _ = command("cost", "text/kjv-ar", "--vocab", "63", "--no-measure")
    assert code == 0
    assert "0.25" not in out


def test_what_a_strategy_asks_of_the_network_is_counted() -> None:
    def of(strategy: str) -> Macs:
        return count(tiny("token", strategy, has_difficulty=True))

    n, plain = LENGTH + 1, of("random")
    last = 3 * n * WIDTH**2 + n**2 * WIDTH  # queries, keys and values, and who looks where
    attention, hard = (of(strategy).total - plain.total for strategy in ("attention", "hard"))
    assert attention == (DEPTH - 1) * block(n) + last
    assert hard == 2 * (DEPTH * block(n) + LENGTH * WIDTH)
    assert of("hard").stages == {**plain.stages, "other": hard}


@pytest.mark.parametrize("name", ["mar-l", "emigm-l"])
def test_a_published_mar_takes_what_was_counted_of_the_public_one(name: str) -> None:
    recipe = load_recipe(f"image/imagenet-{name}")
    _, arguments = TOKENIZERS.check(recipe.tokenizer or "")
    sizes = KLTokenizer.sizes_of(recipe.image_shape(), **arguments)
    with torch.device("meta"):
        what = of_images(recipe, latents(sizes["token_width"]), 1000)
    found = count(what)
    assert found.stages["encoder"] == pytest.approx(20.1e9, rel=0.03)
    assert found.stages["decoder"] == pytest.approx(67.8e9, rel=0.01)
    assert found.stages["other"] == pytest.approx(74.0e9, rel=0.01)  # the head, as on all tokens, four noises each


@pytest.mark.parametrize("key", ["width", "depth"])
def test_sizes_beyond_any_machine_are_one_message(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskgen.recipes.build.MOST_PARTS", 3000)
    with pytest.raises(UserError, match="sizes of this recipe") as error:
        importlib.import_module("maskgen.train.cost_report").run("kjv-md4", [f"model.{key}={10**9}"], is_measured=False)
    assert len(str(error.value).splitlines()) == 1

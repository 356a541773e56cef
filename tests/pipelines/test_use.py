"""A pipeline in use: device and number format, samplers as names and objects, seeds, steps, wrong arguments."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import maskgen
from maskgen.checkpoints.checkpoint import write_checkpoint
from maskgen.core.errors import UserError
from maskgen.pipelines.classes import ClassNames
from maskgen.pipelines.watch import steps_of
from maskgen.recipes.load import parse_recipe
from maskgen.samplers.gaussian.sampler import FieldSampler
from maskgen.samplers.masked.presets import halton, maskgit
from tests.tiny import FIELD, GENERATOR, LENGTH, SHAPE, VECTORS, generator_checkpoint

KINDS = {"tokens": GENERATOR, "field": FIELD, "vectors": VECTORS}


@pytest.fixture
def digits(digits_run: Path) -> maskgen.ImagePipeline:
    return maskgen.load_image(digits_run, device="cpu")


@pytest.fixture
def text(text_kinds: dict[str, Path]) -> maskgen.TextPipeline:
    return maskgen.load_text(text_kinds["mdlm"], device="cpu")


def test_a_sampler_is_set_by_name_mapping_or_object(digits: maskgen.ImagePipeline) -> None:
    wanted = digits(3, sampler="halton", steps=4).tokens
    for sampler in ("halton", {"type": "halton", "steps": 4}, halton(steps=4)):
        digits.sampler = sampler
        assert torch.equal(digits(3, steps=4).tokens, wanted)
        assert torch.equal(digits(3, sampler=halton(4)).tokens, wanted)
    assert digits.sampler == halton(steps=4)
    digits.sampler = "halton"
    assert digits.sampler.steps == 32
    assert digits(1, steps=3).tokens.shape == (1, 64)
    for wrong in (3, FieldSampler("ddim", 3)):
        with pytest.raises(TypeError, match=r"sampler must be a preset's name or a MaskedSampler"):
            digits.sampler = wrong  # type: ignore[assignment]
    digits.sampler = maskgit(2)
    with pytest.raises(UserError, match="eta: unknown key; a MaskedSampler accepts order"):
        digits(1, eta=0.1)
    with pytest.raises(UserError, match="steps must be at least 1, got 0"):
        digits(1, steps=0)


def test_guidance_is_set_as_a_scale_or_whole(digits: maskgen.ImagePipeline) -> None:
    plain, guided = digits(3, steps=2, guidance=1).tokens, digits(3, steps=2, guidance=4).tokens
    digits.guidance = 4
    assert digits.guidance.scale == 4
    assert torch.equal(digits(3, steps=2).tokens, guided)
    digits.guidance = maskgen.Guidance(1.0)
    assert torch.equal(digits(3, steps=2).tokens, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_computes_in_another_number_format(tmp_path: Path, kind: str) -> None:
    generator_checkpoint(tmp_path / "g", KINDS[kind])
    pipeline = maskgen.load_image(tmp_path / "g", device="cpu", dtype=torch.bfloat16)
    assert pipeline.dtype == torch.bfloat16
    assert torch.bfloat16 in {parameter.dtype for parameter in pipeline.model.parameters()}
    seen: list[torch.dtype] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
        for module in pipeline.model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    assert pipeline(2, steps=2).pixels.shape == (2, 1, 8, 8)
    assert seen
    assert set(seen) == {torch.bfloat16}
    for handle in handles:
        handle.remove()
    assert pipeline.to("cpu", torch.float32).dtype == torch.float32
    assert pipeline.device == torch.device("cpu")
    assert pipeline(1, steps=2).pixels.shape == (1, 1, 8, 8)


def test_devices_and_formats_that_are_not_there_are_refused(digits: maskgen.ImagePipeline) -> None:
    with pytest.raises(UserError, match=r"unknown device 'tpu'; choose from auto, cpu, cuda, cuda:N, mps"):
        digits.to("tpu")
    with pytest.raises(TypeError, match=r"dtype must be torch\.float32, torch\.bfloat16 or torch\.float16, got"):
        digits.to(dtype=torch.int64)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device cuda:1 is not available"):
            digits.to("cuda:1")


def test_seeds_are_a_number_or_a_list(digits: maskgen.ImagePipeline, text: maskgen.TextPipeline) -> None:
    many = digits(6, ["3"], seed=4, steps=2)
    some = digits(classes=["3"], seed=[8, 5, 8], steps=2)
    assert torch.equal(some.tokens, many.tokens[[4, 1, 4]])
    assert (many.seeds, some.seeds) == (tuple(range(4, 10)), (8, 5, 8))
    texts = text(5, seed=2).texts
    assert text(seed=[4, 2]).texts == [texts[2], texts[0]]
    with pytest.raises(UserError, match="2 seeds for 3 samples"):
        digits(3, seed=[1, 2])


@pytest.mark.parametrize("sampler", ["maskgit", "ancestral", "halton", "remdm_loop"])
def test_the_unmasking_order_counts_what_each_step_reveals(digits: maskgen.ImagePipeline, sampler: str) -> None:
    seen: list[torch.Tensor] = []
    made = digits(5, sampler=sampler, steps=4, seed=1, on_step=lambda _done, _total, x_t: seen.append(x_t.clone()))
    mask_id, order = digits.tokenizer.vocab_size, made.unmasked_at
    assert order is not None
    assert order.shape == made.tokens.shape
    assert int(order.min()) >= 1
    for step, x_t in enumerate(seen, 1):
        is_late = order > step  # unmasked later for good: masked now, or masked again since
        if sampler != "remdm_loop":
            assert torch.equal(x_t == mask_id, is_late)
        assert not bool((x_t == mask_id)[~is_late].any())
    assert torch.equal(digits(5, sampler=sampler, steps=4, seed=1, batch_size=2).unmasked_at, order)


def test_given_tokens_have_unmasking_step_zero(
    digits: maskgen.ImagePipeline, text: maskgen.TextPipeline, tmp_path: Path
) -> None:
    picture = torch.zeros(1, 8, 8, dtype=torch.uint8)
    order = digits(2, picture=picture, hole="right", steps=3).unmasked_at
    assert order is not None
    assert torch.equal(order.view(2, 8, 8) == 0, (torch.arange(8) < 4).expand(2, 8, 8))
    order = text(2, prompt="line").unmasked_at
    assert order is not None
    assert torch.equal(order == 0, (torch.arange(LENGTH) < 4).expand(2, LENGTH))
    generator_checkpoint(tmp_path / "g", FIELD)
    assert maskgen.load_image(tmp_path / "g", device="cpu")(1).unmasked_at is None


def test_a_stream_yields_every_step_and_ends_in_the_samples(
    digits: maskgen.ImagePipeline, text: maskgen.TextPipeline
) -> None:
    steps = list(digits.stream(3, ["1", "2"], steps=4, seed=7))
    made = digits(3, ["1", "2"], steps=4, seed=7)
    assert [step for step, _, _ in steps] == [1, 2, 3, 4]
    assert torch.equal(steps[-1].tokens, made.tokens)
    assert [image.tobytes() for image in steps[-1].images] == [image.tobytes() for image in made.images]
    n_masked = [int((tokens == digits.tokenizer.vocab_size).sum()) for _, tokens, _ in steps]
    assert n_masked == sorted(n_masked, reverse=True)
    assert 128 in steps[0].images[0].tobytes(), "[MASK] is grey"
    *_, last = text.stream(2, prompt="line", seed=3)
    assert last.texts == text(2, prompt="line", seed=3).texts
    known = text.tokenizer.encode("line 1")[None]
    assert [(step, texts) for step, _, texts in text.stream(1, known=known)] == [(0, ["line 1"])]


def test_a_stream_that_is_left_ends_its_decoding(digits: maskgen.ImagePipeline) -> None:
    before = threading.active_count()
    for step, _, _ in digits.stream(1, steps=8):
        if step == 2:
            break
    assert threading.active_count() == before
    with pytest.raises(UserError, match="unknown sampler 'none'"):
        digits.stream(1, sampler="none")

    def fail(on_step: Any) -> torch.Tensor:
        on_step(1, 2, torch.zeros(1, 1))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(steps_of(fail))


def test_progress_is_a_bar_or_a_function(digits: maskgen.ImagePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, int]] = []
    digits(5, steps=3, batch_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 9) for done in range(1, 10)]
    assert not capsys.readouterr().err
    digits(2, steps=3, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_pipelines_and_outputs_are_one_line(digits: maskgen.ImagePipeline, text: maskgen.TextPipeline) -> None:
    shown = repr(digits)
    assert shown.startswith(
        "ImagePipeline('checkpoint-4', images 1 x 8 x 8, 10 classes, maskgit in 16 steps, guidance 1.5"
    )
    assert shown.endswith("cpu, float32)")
    assert repr(digits(2, steps=1)) == "ImageOutput(2 images 1 x 8 x 8, tokens 2 x 64)"
    assert repr(text).startswith("TextPipeline('mdlm', texts of 12 tokens, vocabulary")
    assert repr(text(3, prompt="line")).startswith("TextOutput(3 texts, tokens 3 x 12, first 'line")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num": "8"}, "num must be a whole number, got '8'"),
    ({"num": 2.5}, r"num must be a whole number, got 2\.5"),
    ({"num": True}, "num must be a whole number, got True"),
    ({"batch_size": None}, "batch_size must be a whole number, got a NoneType"),
    ({"seed": "x"}, "seed must be a whole number, got 'x'"),
    ({"seed": [1, "x"]}, "seed must be a whole number, got 'x'"),
    ({"guidance": "2"}, "guidance must be a number, got '2'"),
    ({"guidance": float("inf")}, "guidance must be finite, got inf"),
    ({"guidance": float("nan")}, "guidance must be finite, got nan"),
    ({"guidance": -1}, "guidance must be at least 0"),
    ({"classes": 2.5}, r"classes must be a class name, an id, or a list of these, got 2\.5"),
    ({"classes": [None]}, "classes must be a class name, an id, or a list of these, got a NoneType"),
    ({"prompts": 3}, "prompts must be a string or a list of strings, got 3"),
    ({"progress": "yes"}, r"progress must be True, False or a function of .*, got 'yes'"),
    ({"steps": "many"}, "steps"),
    ({"temperature": [1]}, "temperature"),
]
WRONG_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"length": "12"}, "length must be a whole number, got '12'"),
    ({"prompt": 3}, "prompt must be a string, got 3"),
    ({"infill": ["_"]}, "infill must be a string, got a list"),
    ({"known": [1, 2]}, "known must be an int64 tensor of tokens, got a list"),
    ({"known": torch.zeros(2, 3)}, "known must be an int64 tensor of tokens, got a Tensor"),
]


def test_arguments_of_a_wrong_type_are_one_sentence(digits: maskgen.ImagePipeline, text: maskgen.TextPipeline) -> None:
    cases = [(digits, *case) for case in WRONG] + [(text, *case) for case in WRONG_TEXT]
    for pipeline, arguments, message in cases:
        with pytest.raises(UserError, match=message) as found:
            pipeline(**({"num": 2} | arguments))
        assert "\n" not in str(found.value)


def test_a_number_that_is_a_name_and_an_id_is_never_guessed() -> None:
    folders = ClassNames(tuple(sorted(map(str, range(1, 13)))))  # 1, 10, 11, 12, 2, ...
    assert folders.ids("id:2") == [2]
    assert folders.ids(["name:2", "name:10"]) == [4, 1]
    assert folders.ids([2]) == [2], "an int is an id"
    assert folders.ids("12") == [3], "no class has the id 12"
    with pytest.raises(UserError, match=r"'2' is ambiguous: .* id of class '11'; write name:2 or id:2"):
        folders.ids("2")
    digits = ClassNames(tuple("0123456789"))
    assert digits.ids(["3", "none", -1, "all"]) == [3, -1, -1, *range(10)]
    assert ClassNames(("bag", "Bag", "all", "id:0")).ids(["Bag", "BAG", "all", "id:0", "id:1"]) == [1, 0, 2, 3, 1]
    with pytest.raises(UserError, match=r"unknown class '99'; choose from all, 0 bag"):
        ClassNames(("bag",)).ids("id:99")


def test_outputs_are_saved_by_their_ending(
    digits: maskgen.ImagePipeline, text: maskgen.TextPipeline, tmp_path: Path
) -> None:
    made = digits(4, steps=1)
    for ending, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP")):
        path = made.save(tmp_path / f"a{ending}", n_columns=4, scale=3)
        with Image.open(path) as image:
            assert (image.format, image.size) == (kind, (4 * (24 + 2) + 2, 24 + 4))
    assert len(list(made.save(tmp_path / "folder").glob("*.png"))) == 4
    with pytest.raises(UserError, match=r"the ending must be \.png, \.jpg"):
        made.save(tmp_path / "a.bmp")
    texts = text(2, seed=5)
    assert texts.save(tmp_path / "t.jsonl").read_text().startswith('{"seed": 5, "text": ')
    with pytest.raises(UserError, match=r"the ending must be \.txt or \.jsonl"):
        texts.save(tmp_path / "t.doc")


def test_without_classes_the_recipes_own_guidance_counts_as_one_and_another_is_refused(tmp_path: Path) -> None:
    recipe = parse_recipe({**GENERATOR, "guidance": {"scale": 3.0}})
    network = recipe.build_model(n_classes=0, image_shape=SHAPE, **recipe.build_tokenizer(SHAPE).sizes())
    info = {"step": 1, "classes": [], "image_shape": list(SHAPE)}
    write_checkpoint(tmp_path / "c", recipe, {"model.safetensors": network.state_dict()}, info)
    pipeline = maskgen.load_image(tmp_path / "c", device="cpu")
    assert pipeline.generator.guidance.scale == 1
    assert len(pipeline(num=2, steps=2).images) == 2
    with pytest.raises(UserError, match="guidance needs a condition"):
        pipeline(num=1, steps=2, guidance=3.0)

"""Which program a checkpoint goes to, which options go with it, and the film of a decoding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import maskgen
from maskgen.core.errors import UserError
from maskgen.pipelines.image import ImagePipeline
from maskgen.pipelines.text import TextPipeline
from maskgen.sample import program
from maskgen.sample.animate import Recorder, write_animation
from maskgen.samplers import SAMPLERS
from maskgen.tokenizers import ImageTokenizer
from tests.tiny import KINDS, LENGTH, SHAPE, generator_checkpoint

Command = Callable[..., tuple[int, str, str]]


def test_a_checkpoint_is_loaded_as_what_it_is(text_run: Path, digits_run: Path) -> None:
    assert isinstance(maskgen.load(str(text_run)), TextPipeline)
    assert isinstance(maskgen.load(str(digits_run)), ImagePipeline)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name.replace("_", "-") for name in SAMPLERS.names()])
def test_every_sampler_writes_text_from_the_command_line(
    command: Command, text_kinds: dict[str, Path], kind: str, name: str
) -> None:
    code, out, error = command("sample", text_kinds[kind], "--num", 1, "--prompt", "line ", "--sampler", name)
    assert code == 0, error
    assert out.startswith("line ")
    assert len(out.removesuffix("\n")) == LENGTH


@pytest.mark.parametrize("name", sorted({n for one in SAMPLERS.names() for n in (one, one.replace("_", "-"))}))
def test_every_sampler_draws_digits_from_the_command_line(
    command: Command, digits_run: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "s.npz"
    code, _, error = command("sample", digits_run, "--num", 2, "--sampler", name, "--output", file)
    if SAMPLERS.build(name.replace("-", "_")).lookahead is not None:
        assert (code, file.exists()) == (2, False)
        assert "this network takes one length; use sampler autoregressive" in error
        return
    assert code == 0, error
    assert file.is_file()


def test_the_command_gives_what_the_library_gives(command: Command, text_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    options = ("--num", 3, "--seed", 9, "--length", 20, "--prompt", "line", "--steps", 3, "--temperature", 0.5)
    code, out, error = command("sample", text_run, *options, "--batch-size", 2, "--output", file, "top_p=0.9")
    assert (code, out.strip()) == (0, str(file)), error
    wanted = maskgen.load(str(text_run), device="cpu")(
        3, 20, seed=9, prompt="line", steps=3, temperature=0.5, top_p=0.9
    ).texts
    written = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert written == wanted


def test_temperature_zero_and_seed_zero_are_heard(command: Command, text_kinds: dict[str, Path]) -> None:
    ar = text_kinds["ar"]
    default, cold, other = (
        command("sample", ar, "--num", 1, *options)[1]
        for options in [(), ("--temperature", 0, "--seed", 0), ("--temperature", 0, "--seed", 1)]
    )
    assert cold == other != default
    assert command("sample", ar, "--num", 1, "--seed", 0)[1] == default != command("sample", ar, "--seed", 1)[1]


def test_an_argument_of_a_sampler_may_be_null_or_false(
    text_kinds: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    mdlm = str(text_kinds["mdlm"])
    pipeline = maskgen.load(mdlm, device="cpu")
    arguments: dict[str, Any] = {"sampler": "fast_dllm", "num": 1, "length": 64}
    found = []
    for block_length in (None, 32):
        program.sample(mdlm, **arguments, block_length=block_length, temperature=1.0)
        found.append(capsys.readouterr().out)
        assert found[-1] == pipeline(**arguments, block_length=block_length, temperature=1.0).texts[0] + "\n"
    assert found[0] != found[1]


def refused(text: Path, kinds: dict[str, Path], digits: Path, folder: Path) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Arguments and a part of the answer."""
    sample, evaluate = ("sample", text, "--num", 1), ("evaluate", text)
    perplexity = (*evaluate, "--metric", "generative-perplexity", "--num", 2)
    behind = ("--infill", "l__________e")
    return {
        "prompt too long": ((*sample, "--prompt", "line 1 of a poem"), "nothing is left to write"),
        "no gap": ((*sample, "--infill", "line"), "has no gap"),
        "prompt and infill": ((*sample, "--prompt", "li", "--infill", "li_e"), "not both"),
        "unknown character in a prompt": ((*sample, "--prompt", "ξ"), "no token for 'ξ'"),
        "unknown character in an infill": ((*sample, "--infill", "ξ_"), "no token for 'ξ'"),
        "text after a gap, bd3": (("sample", kinds["bd3"], *behind), "cannot see text after a gap"),
        "text after a gap, ar": (("sample", kinds["ar"], *behind), "cannot see text after a gap"),
        "guidance of free text": ((*sample, "--guidance", 2), "by what it is given: a prompt"),
        "guidance, bd3": (("sample", kinds["bd3"], "--prompt", "li", "--guidance", 2), "generates from left to right"),
        "guidance, ar": (("sample", kinds["ar"], "--prompt", "li", "--guidance", 2), "generates from left to right"),
        "classes of text": ((*sample, "--class", "3"), "--class does not go with"),
        "film of text": ((*sample, "--animate", folder / "f.gif"), "--animate does not go with"),
        "prompt of images": (("sample", digits, "--prompt", "3"), "--prompt does not go with"),
        "infill of images": (("sample", digits, "--infill", "_"), "--infill does not go with"),
        "length of images": (("sample", digits, "--length", 3), "--length does not go with"),
        "steps shown of images": (("sample", digits, "--show-steps"), "--show-steps does not go with"),
        "length zero": ((*sample, "--length", 0), "0 is not in the range"),
        "picture of text": ((*sample, "--output", folder / "t.png"), ".jsonl"),
        "unknown sampler": ((*sample, "--sampler", "ancestrall"), "did you mean ancestral? choose from"),
        "unknown argument": ((*sample, "stpes=3"), "stpes: unknown key"),
        "argument that is ours": ((*sample, "known=3"), "known: unknown key"),
        "argument that is ours too": ((*sample, "source=3"), "source: unknown key"),
        "argument that is the pipeline's": (("sample", digits, "on_step=3"), "on_step: unknown key"),
        "fidelity of text": (
            (*evaluate, "--metric", "fidelity"),
            "choose from choices, diversity, exact-match, generative-perplexity, likelihood, lm-eval",
        ),
        "perplexity of images": (
            ("evaluate", digits, "--metric", "generative-perplexity"),
            "choose from fidelity, inpainting, likelihood, probe",
        ),
        "no scorer": (perplexity, "needs --scorer"),
        "scorer that is not there": ((*perplexity, "--scorer", folder / "none"), "cannot load the scorer"),
        "scorer of images": ((*perplexity, "--scorer", digits), "is made for images"),
        "guided perplexity": ((*perplexity, "--scorer", text, "--guidance", 2), "by what it is given: a prompt"),
        "odd strata": ((*evaluate, "--strata", 3), "must be 1 or even, got 3"),
        "no strata": ((*evaluate, "--strata", 0), "0 is not in the range"),
        "unknown split": ((*evaluate, "--split", "dev"), "'dev' is not one of"),
        "unknown split of images": (
            ("evaluate", digits, "--metric", "likelihood", "--split", "validation"),
            "images have the splits train and test",
        ),
        "strata of perplexity": ((*perplexity, "--scorer", text, "--strata", 2), "--strata does not go with"),
        "sampler of likelihood": ((*evaluate, "--sampler", "euler"), "--sampler does not go with"),
        "argument of likelihood": ((*evaluate, "foo=3"), "--foo does not go with"),
        "likelihood of a tokenizer": (("evaluate", "fashion-vq", "--metric", "likelihood"), "it has no likelihood"),
        "report that cannot be": ((*evaluate, "--output", folder / "r.txt"), ".json"),
    }  # fmt: skip


CASES = list(refused(Path(), dict.fromkeys(KINDS, Path()), Path(), Path()))


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_go_together_is_one_message(
    command: Command, text_run: Path, text_kinds: dict[str, Path], digits_run: Path, tmp_path: Path, case: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments, message = refused(text_run, text_kinds, digits_run, tmp_path)[case]
    code, out, error = command(*arguments)
    assert code == 2, (out, error)
    assert not out
    answer = error[error.index("Error: ") :]
    assert message in answer
    assert answer.count("Error: ") == 1
    assert len(answer.strip().splitlines()) <= 2
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.fixture
def tokenizer(tmp_path: Path) -> ImageTokenizer:
    recipe, _ = generator_checkpoint(tmp_path / "g")
    return recipe.build_tokenizer(SHAPE)


def tokens_after(done: int, total: int) -> Tensor:
    """(1, 64): of 5 grey levels, the last (total - done) / total masked."""
    x_t = torch.arange(64)[None] % 5
    x_t[:, 64 * done // total :] = 5
    return x_t


def test_a_film_is_of_the_first_batch_though_a_later_one_takes_longer(tokenizer: ImageTokenizer) -> None:
    recorder = Recorder(tokenizer)
    for total in (3, 5, 4):
        for done in range(1, total + 1):
            recorder.add(tokens_after(done, total), done)
    frames = recorder.frames()
    assert len(frames) == 1 + 3
    assert bool((frames[0] == 128).all())
    assert torch.equal(frames[-1], (tokenizer.decode(tokens_after(1, 1)) * 255).round().to(torch.uint8))


def test_what_is_done_in_one_step_is_a_film_of_two_frames(tokenizer: ImageTokenizer) -> None:
    recorder = Recorder(tokenizer)
    for _ in range(3):
        recorder.add(tokens_after(1, 1), 1)
    assert len(recorder.frames()) == 2


@pytest.mark.parametrize("ending", [".gif", ".png"])
def test_a_film_without_a_step_shows_the_finished_samples(
    tokenizer: ImageTokenizer, tmp_path: Path, ending: str
) -> None:
    recorder = Recorder(tokenizer)
    assert recorder.frames() == []
    write_animation(tmp_path / f"f{ending}", recorder, torch.full((2, *SHAPE), 200, dtype=torch.uint8))
    with Image.open(tmp_path / f"f{ending}") as image:
        assert getattr(image, "n_frames", 1) == 1
        assert image.convert("L").getpixel((10, 10)) == 200


def test_a_film_of_a_decoding_that_ends_early_has_as_many_frames_as_steps(
    command: Command, digits_run: Path, tmp_path: Path
) -> None:
    film = tmp_path / "film.gif"
    options = ("--sampler", "fast-dllm", "threshold=1.0e-9", "block_length=16", "--batch-size", 2, "--animate", film)
    code, _, error = command("sample", digits_run, "--num", 5, *options, "--output", tmp_path / "s.png")
    assert code == 0, error
    with Image.open(film) as image:
        assert getattr(image, "n_frames", 1) == 1 + 64 // 16


def test_an_option_is_refused_by_the_library_too(text_run: Path) -> None:
    with pytest.raises(UserError, match="--class does not go with"):
        program.sample(str(text_run), classes=("3",))

"""The command line: instant help, whole commands, and one message for a user's mistake."""

from __future__ import annotations

import errno
import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from click.shell_completion import ShellComplete
from PIL import Image

from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.export import EXPORTERS
from maskgen.cli import names
from maskgen.cli.commands import cli, main
from maskgen.core import catalogue
from maskgen.data.image.grid import LABEL_HEIGHT
from maskgen.evaluation.metrics.scored import FEATURE_METRICS
from maskgen.evaluation.protocols.protocol import PROTOCOLS
from maskgen.sample.metric import METRICS
from maskgen.samplers import FIELD_SAMPLERS, SAMPLERS

Command = Callable[..., tuple[int, str, str]]
LISTS = [["--help"], ["recipes"], ["samplers"], ["samplers", "first-hitting"], ["zoo"], ["zoo", "kjv-md4"]]
LISTS += [["evaluate", "--list-metrics"], ["evaluate", "--list-protocols"], ["convert", "--list"]]


def test_help_and_lists_import_no_torch() -> None:
    commands = [*([name, "--help"] for name in cli.commands), ["bench", "fid", "--help"], ["bench", "budget", "-h"]]
    program = (
        "import sys; from maskgen.cli.commands import cli\n"
        f"for command in {commands + LISTS!r}:\n"
        "    try: cli.main(command)\n"
        "    except SystemExit as stop: assert not stop.code, command\n"
        "    heavy = {'torch', 'numpy', 'pydantic', 'diffusers'} & set(sys.modules); assert not heavy, (command, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage: ") == len(commands) + 1


def test_help_and_lists_take_less_than_three_tenths_of_a_second_of_cpu() -> None:
    for arguments in (["--help"], ["zoo"], ["samplers"]):
        seconds = []
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", "maskgen", *arguments], capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert min(seconds) < 0.3, arguments


def test_names_are_completed_by_the_shell() -> None:
    found = {}
    for words, incomplete in ((["sample"], "fash"), (["train"], "kjv"), (["sample", "x", "--sampler"], "first")):
        completion = ShellComplete(cli, {}, "maskgen", "_MASKGEN_COMPLETE")
        found[incomplete] = [
            item.value for item in completion.get_completions(words, incomplete) if item.type == "plain"
        ]
    assert found["fash"] == ["fashion-classifier", "fashion-maskgit", "fashion-vq"]
    assert {"kjv-md4", "kjv-ar"} <= set(found["kjv"])
    assert found["first"] == ["first-hitting"]


def test_homes_of_the_command_line_are_those_of_the_registries() -> None:
    assert (SAMPLERS.home, FIELD_SAMPLERS.home) == names.SAMPLERS
    for home, registry in (
        (names.METRICS, METRICS), (names.FEATURE_METRICS, FEATURE_METRICS), (names.PROTOCOLS, PROTOCOLS),
        (names.CONVERTERS, CONVERTERS), (names.EXPORTERS, EXPORTERS),
    ):  # fmt: skip
        assert home == registry.home
        assert registry.names() == sorted(catalogue.entries(home))


def test_a_shipped_part_is_shown(command: Command) -> None:
    code, out, _ = command("recipes", "kjv-md4", "train.steps=7")
    assert code == 0
    tree = yaml.safe_load(out)
    assert (tree["train"]["steps"], tree["data"]["type"]) == (7, "kjv")
    assert "choice_temperature  = 4.5" in command("samplers", "maskgit")[1]
    assert "| bits_per_token[bound] | kjv test |" in command("zoo", "kjv-md4")[1]
    code, _, error = command("zoo", "kjv-md5")
    assert (code, "did you mean kjv-md4" in error) == (2, True)


def test_the_former_form_of_convert_is_accepted_with_a_notice(command: Command, tmp_path: Path) -> None:
    code, _, error = command("convert", "mar", tmp_path / "none.pt", "--output", tmp_path / "out")
    assert (code, "note: `convert mar FILE` is now `convert FILE --layout mar`" in error) == (2, True)
    assert "no file" in error


def test_escape_codes_of_a_file_do_not_reach_the_terminal(command: Command, tmp_path: Path) -> None:
    code, _, error = command("sample", f"{tmp_path}/\x1b[31mred")
    assert code == 2
    assert "\x1b" not in error
    assert "\\x1b[31mred" in error


def test_a_png_is_a_grid_with_a_labelled_column_a_class(command: Command, digits_run: Path, tmp_path: Path) -> None:
    code, out, _ = command("sample", digits_run, "--num", 20, "--steps", 2, "--output", tmp_path / "s.png")
    assert code == 0
    assert str(tmp_path / "s.png") in out
    with Image.open(tmp_path / "s.png") as image:
        assert image.size == (10 * (56 + 2) + 2, LABEL_HEIGHT + 2 * (56 + 2) + 2)


def test_an_npz_has_images_and_labels_and_depends_on_the_seed_alone(
    command: Command, digits_run: Path, tmp_path: Path
) -> None:
    for name, options in {"a": (), "b": ("--batch_size", 3), "c": ("--seed", 1)}.items():
        out = tmp_path / f"{name}.npz"
        assert command("sample", digits_run, "--num", 7, "--steps", 3, "--output", out, *options)[0] == 0
    a, b, c = (np.load(tmp_path / f"{name}.npz") for name in "abc")
    assert a["images"].shape == (7, 8, 8)
    assert a["images"].dtype == np.uint8
    assert a["labels"].tolist() == list(range(7))
    assert (a["images"] == b["images"]).all()
    assert (a["images"] != c["images"]).any()


def test_a_folder_gets_numbered_pngs(command: Command, digits_run: Path, tmp_path: Path) -> None:
    code, _, _ = command("sample", digits_run, "--num", 3, "--class", 4, "--steps", 2, "--output", tmp_path / "out")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000.png", "00001.png", "00002.png"]


@pytest.mark.parametrize("ending", [".gif", ".png"])
def test_a_film_has_a_frame_a_step_and_one_before(
    command: Command, digits_run: Path, tmp_path: Path, ending: str
) -> None:
    film = tmp_path / f"film{ending}"
    options = ("--output", tmp_path / "s.png", "--animate", film)
    assert command("sample", digits_run, "--num", 4, "--steps", 3, *options)[0] == 0
    with Image.open(film) as image:
        assert getattr(image, "n_frames", 1) == 4


@pytest.mark.parametrize("name", ["maskgit", "mage", "halton", "ancestral", "first_hitting"])
def test_every_preset_samples_from_any_checkpoint(
    command: Command, digits_run: Path, tmp_path: Path, name: str
) -> None:
    assert command("sample", digits_run, "--num", 2, "--sampler", name, "--output", tmp_path / "s.png")[0] == 0


def test_sampler_arguments_follow_as_key_and_value(command: Command, digits_run: Path, tmp_path: Path) -> None:
    arguments = ("order=margin", "remask={type: cap, eta: 0.1}", "layout={type: blocks, block_length: 32}")
    options = ("--sampler", "masked", "--steps", 4, "--output", tmp_path / "s.png")
    assert command("sample", digits_run, "--num", 2, *options, *arguments)[0] == 0


def test_evaluation_prints_score_floors_and_accuracy_and_writes_them(
    command: Command, digits_run: Path, digits_judge: Path, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    options = ("--num", 30, "--steps", 2, "--protocol", digits_judge, "--output", file)
    code, out, error = command("evaluate", digits_run, *options)
    assert code == 0, error
    report = json.loads(file.read_text())
    assert report["score"]["name"] == "frechet_distance[judge]"
    assert report["score"]["n_samples"] == 30
    assert report["train_floor"]["value"] >= 0
    assert report["reconstruction_floor"]["value"] == pytest.approx(0, abs=1e-6), "17 grey levels lose nothing"
    names = {entry["name"] for entry in report["others"]}
    assert {"class_accuracy[judge]", "psnr", "codes_used", "nfe_per_sample", "seconds_per_sample"} <= names
    assert "frechet_distance[judge]" in out
    assert "FID" not in out
    published = tmp_path / "published"
    assert command("export", digits_run, published, "--report", file)[0] == 0
    card = (published / "README.md").read_text()
    assert "frechet_distance[judge]" in card
    assert "maskgen train digits-maskgit" in card
    code, _, error = command("export", digits_run, tmp_path / "other", "--report", digits_run / "recipe.yaml")
    assert code == 2
    assert "recipe.yaml" in error


def test_export_leaves_training_state_behind_and_adds_a_card(
    command: Command, digits_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "published"
    assert command("export", digits_run, out, "--dtype", "fp16", "--summary", "tiny")[0] == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "checkpoint.json", "model.safetensors", "recipe.yaml"}
    assert "tiny" in (out / "README.md").read_text()
    assert command("sample", out, "--num", 1, "--steps", 1, "--output", tmp_path / "s.png")[0] == 0


@pytest.mark.parametrize("name", ["recipes", "samplers", "zoo"])
def test_lists_have_a_line_for_each(command: Command, name: str) -> None:
    code, out, _ = command(name)
    assert code == 0
    expected = {
        "recipes": ("image/digits-maskgit", "text/kjv-md4", "text/kjv-bd3"),
        "samplers": ("first_hitting", "remdm_cap", "fast_dllm"),
        "zoo": ("fashion-vq",),
    }
    assert all(any(line.startswith(f"{one} ") for line in out.splitlines()) for one in expected[name])


def bad_inputs(run: Path, folder: Path) -> dict[str, tuple[tuple[object, ...], tuple[str, ...]]]:
    """Arguments, and what the answer must name."""
    sample = ("sample", run, "--steps", "1", "--num", "1")
    broken, pictures = folder / "broken", folder / "pictures"
    return {
        "unknown recipe": (("train", "image/fashion-maskgti"), ("fashion-maskgti", "did you mean")),
        "unknown recipe key": (("train", "digits-maskgit", "model.widht=3"), ("model.widht", "width")),
        "unknown train key": (("train", "digits-maskgit", "train.stesp=3"), ("train.stesp", "steps")),
        "wrong type": (("train", "digits-maskgit", "train.steps=many"), ("train.steps", "many")),
        "impossible value": (("train", "digits-maskgit", "train.lr=-1"), ("train.lr", "-1")),
        "not an override": (("train", "digits-maskgit", "steps"), ("key=value",)),
        "unknown sampler": ((*sample, "--sampler", "magit"), ("magit", "maskgit", "halton")),
        "unknown sampler argument": ((*sample, "chioce=3"), ("chioce", "choice_temperature")),
        "class out of range": ((*sample, "--class", "10"), ("10", "0 0", "9 9")),
        "negative guidance": ((*sample, "--guidance", "-1"), ("-1",)),
        "no checkpoint": (("sample", folder / "nothing"), ("nothing", "fashion-vq")),
        "empty directory": (("sample", folder), ("checkpoint.json",)),
        "truncated checkpoint": (("sample", broken, "--output", folder / "s.png"), ("model.safetensors", "truncated")),
        "not a generator": (("sample", "fashion-vq", "--output", folder / "s.png"), ("tokenizer", "generator")),
        "unwritable output": ((*sample, "--output", "/proc/nothing/s.png"), ("/proc/nothing/s.png",)),
        "unknown ending": ((*sample, "--output", folder / "s.tga"), ("s.tga", ".png")),
        "output is a directory": ((*sample, "--output", folder / "dir.png"), ("dir.png", "directory")),
        "no image folder": (
            ("train", "tokenizer/folder-vq", f"data.path={folder / 'none'}", "--output", folder / "r1"),
            ("none",),
        ),
        "unreadable image": (
            ("train", "tokenizer/folder-vq", f"data.path={pictures}", "--output", folder / "r2", "train.steps=1"),
            ("bad.png",),
        ),
        "run directory in use": (("train", "digits-maskgit", "--output", run), ("--resume",)),
        "nothing to resume": (("train", "digits-maskgit", "--output", folder / "new", "--resume"), ("new",)),
        "xformers without CUDA": (
            ("train", "digits-maskgit", "model.attention=xformers", "--output", folder / "r3"),
            ("xformers", "sdpa"),
        ),
        "no such option": (("sample", run, "--stesp", "3"), ("--stesp",)),
        "other classes": (("evaluate", run, "--num", "10"), ("fashion-classifier", "classifier")),
    }


CASES = list(bad_inputs(Path(), Path()))


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_answered_in_a_line_or_two(
    command: Command, digits_run: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = digits_run / "checkpoint-4"
    (tmp_path / "broken").mkdir()
    for file in checkpoint.iterdir():
        if file.is_file():
            data = file.read_bytes()
            (tmp_path / "broken" / file.name).write_bytes(data[:-9] if file.name == "model.safetensors" else data)
    (tmp_path / "dir.png").mkdir()
    for index in range(12):
        (tmp_path / "pictures" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / "a" / f"{index}bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    arguments, named = bad_inputs(digits_run, tmp_path)[case]
    monkeypatch.chdir(tmp_path)
    code, out, error = command(*arguments)
    assert code == 2, (out, error)
    assert "Traceback" not in error
    answer = error[error.index("Error: ") :]  # a progress bar may stand above it
    assert len(answer.strip().splitlines()) <= 2, error
    for text in named:
        assert text in error, error


def test_text_is_written_to_the_terminal_and_nothing_else_is(command: Command, text_run: Path, tmp_path: Path) -> None:
    code, out, error = command("sample", text_run, "--num", 1, "--prompt", "line ")
    assert code == 0, error
    assert out.startswith("line ")
    code, out, error = command("sample", text_run, "--num", 2, "--show-steps", "--steps", 3)
    assert code == 0, error
    assert out.startswith("step 1 of 3\n")
    assert "--- 2 of 2, seed 1\n" in out
    file = tmp_path / "t.txt"
    assert command("sample", text_run, "--num", 2, "--output", file)[:2] == (0, f"{file}\n")
    assert file.read_bytes().decode().count("\n\n----\n\n") == 1


def test_a_text_checkpoint_is_scored_by_likelihood_unless_told_otherwise(
    command: Command, text_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    code, out, error = command("evaluate", text_run, "--strata", 2, "--split", "validation", "--output", file)
    assert code == 0, error
    assert {"bits_per_token[bound]", "bits_per_char[bound]", "bits_per_byte[bound]"} <= set(out.split())
    assert "poem.txt validation" in out
    assert str(file) in out
    published = tmp_path / "published"
    assert command("export", text_run, published, "--report", file)[0] == 0
    assert "bits_per_char[bound]" in (published / "README.md").read_text()


def test_the_way_a_metric_is_spelled_does_not_matter(command: Command, text_run: Path) -> None:
    for name in ("generative-perplexity", "generative_perplexity"):
        code, out, error = command("evaluate", text_run, "--metric", name, "--scorer", text_run, "--num", 2)
        assert code == 0, error
        assert "token_entropy[nats]" in out


def numbers(group: click.Group, *before: str) -> list[tuple[tuple[str, ...], click.Option]]:
    """Every option of a command that takes a number with a point, with the words of the command."""
    found: list[tuple[tuple[str, ...], click.Option]] = []
    for name, command in group.commands.items():
        words = (*before, name)
        if isinstance(command, click.Group):
            found += numbers(command, *words)
        for option in command.params:
            is_list = option.name in {"guidance", "guidance_interval"}
            if isinstance(option, click.Option) and (is_list or isinstance(option.type, click.types.FloatParamType)):
                found.append((words, option))
    return found


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_no_number_of_the_command_line_may_be_infinite_or_none(command: Command, value: str) -> None:
    found = numbers(cli)
    assert {option.name for _, option in found} >= {"guidance", "temperature", "strength", "mfu", "price", "minutes"}
    for words, option in found:
        code, _, error = command(*words, f"{option.opts[0]}={value}", "x")
        assert code == 2
        assert f"Invalid value for '{option.opts[0]}'" in error, (words, error)


class Closed(io.StringIO):
    """A pipe without a reader."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["maskgen", "recipes"])
    monkeypatch.setattr("sys.stdout", Closed())
    main()


@pytest.mark.parametrize(
    "words",
    [
        ("compress", "kjv-ar", "no-file", "--output", "a.mgc"),
        ("compress", "kjv-ar", ".", "--output", "a.mgc"),
        ("decompress", "no-file", "--output", "a.txt"),
        ("decompress", ".", "--output", "a.txt"),
    ],
)
def test_a_file_that_is_not_there_is_named_without_an_error_number(
    command: Command, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = command(*words)
    assert code == 2
    assert len(error.splitlines()) == 1
    assert "Errno" not in error


@pytest.mark.parametrize(
    "words", [("sample", ""), ("fid", "a", ""), ("train", "x", "--output", ""), ("sample", "x", "--output=")]
)
def test_an_empty_argument_is_no_current_folder(command: Command, words: tuple[str, ...]) -> None:
    code, out, error = command(*words)
    assert (code, out) == (2, "")
    assert "an empty argument" in error

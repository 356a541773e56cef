"""The README and the pages: their rules hold, and every command and Python block of them runs, with less to do."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import pytest

from maskgen.cli.commands import cli
from maskgen.data.image.fashion import FASHION_FOLDER, FashionMnist
from maskgen.data.text import kjv
from maskgen.recipes.shipped import recipe_names
from maskgen.train import program
from maskgen.train.experiment import read_experiment
from tests.captioned import pictures, tiny_encoder
from tests.launch import once as in_a_fork

ROOT = Path(__file__).parents[1]
ORDER = ("start", "guides", "methods", "results", "extend", "design")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "docs" / "README.md",
        *(path for folder in ORDER for path in sorted((ROOT / "docs" / folder).glob("*.md"))),
    ]
}
MAX_LINES, MAX_COLUMNS = 300, 120
README_BYTES, README_LINES = 8192, 130
N_TRAIN, N_TEST = 200, 60
"""Images of Fashion-MNIST that the commands run with."""
N_CHARACTERS = 20_000
"""Characters of the King James Bible that they run with."""
BRIEF = ["train.batch_size=4", "train.validation_rows=4", "train.preview_every=0"]
SMALL = {
    "image/folder-maskgit": ["model.width=48", "model.depth=1"],
    "image/captions-micro": ["model.width=64", "model.depth=2", "model.masking={type: deferred, depth: 1, width: 64}"],
}
"""Recipes whose networks are large for a test."""
LESS = {"--num": 4, "--images": 4, "--steps": 4, "--length": 64, "--repeats": 2}
"""Largest values that options of `maskgen sample` and `maskgen evaluate` keep."""
NOT_RUN = ("pip", "make", "apt")
SHELL = ("cat", "cp", "printf", "mkdir")


def statements(block: str) -> Iterator[str]:
    """The commands of a bash block; continued lines and here-documents belong to one."""
    lines = iter(block.splitlines())
    for line in lines:
        text = line
        while text.endswith("\\"):
            text = text[:-1] + next(lines)
        if here := re.search(r"<<'(\w+)'", text):
            text += "\n"
            while not text.endswith(f"\n{here.group(1)}\n"):
                text += next(lines) + "\n"
        if text.strip() and not text.startswith("#"):
            yield text if "\n" in text else text.split("  #")[0].strip()


def blocks(kind: str, text: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Of all pages in reading order, each once; scripts are left out."""
    found = [
        statement
        for text in PAGES.values()
        for block in blocks("bash", text)
        if not block.startswith("#!")
        for statement in statements(block)
    ]
    return list(dict.fromkeys(found))


def inline() -> list[str]:
    """Commands in running text and tables that can be typed as they are."""
    codes = [code for text in PAGES.values() for code in re.findall(r"`((?:maskgen|python) [^`]+)`", text)]
    return [re.sub(r"\s+", " ", code) for code in dict.fromkeys(codes) if not re.search(r"\.\.\.|\||\$", code)]


def as_maskgen(words: Sequence[str]) -> list[str] | None:
    """The arguments of `maskgen` that a command runs; `torchrun -m maskgen.train X` is `maskgen train X` once."""
    words = words[words.index("torchrun") :] if "torchrun" in words else words
    if words[0] == "maskgen":
        return words[1:]
    if words[0] == "torchrun":
        module, *rest = words[words.index("-m") + 1 :]
        return [*{"maskgen.train": ["train"], "maskgen.sample.bench": ["bench", "fid"]}[module], *rest]
    return None


def short(words: Sequence[str]) -> list[str]:
    """A command of `maskgen` with less to do: a training takes one step, a resumed one two."""
    name, less = words[0], list(words)
    if name == "train":
        return [*words, *BRIEF, *SMALL.get(words[1], ()), f"train.steps={1 + ('--resume' in words)}"]
    if words[:2] == ["bench", "budget"]:
        return having(words, {"--minutes": "0.01", "--seeds": "1", "--jobs": "1", "--arms": "shallow"})
    if name == "probe":
        return having(words, {"--num": "100", **({"--minutes": "0.02"} if "finetune" in words else {})})
    if name == "evaluate":
        metric = after(words, "--metric", "")
        few = {"likelihood": {"--strata": "1"}, "inpainting": {"--num": "6", "--completions": "2"}}
        few |= {"choices": {"--draws": "4"}, "generative-perplexity": {"--num": "2", "--steps": "4"}, "probe": {}}
        return having(words, few.get(metric, {"--num": "20"}))
    if words[:2] == ["bench", "fid"]:
        return having(words, {"--images" if "--images" in words else "--num": "8"})
    if name == "cost":
        return [*dict.fromkeys([*words, "--no-measure"])]
    if name == "sample":
        least = {"--num": "4", "--steps": "2"}
        less = having(words, {option: value for option, value in least.items() if option not in words})
        options = {option: str(most) for option, most in LESS.items() if option in less}
        kept = {option: str(min(int(less[less.index(option) + 1]), int(most))) for option, most in options.items()}
        return having(less, kept)
    return less


def after(words: Sequence[str], option: str, default: str) -> str:
    """The value of an option."""
    return words[words.index(option) + 1] if option in words else default


def having(words: Sequence[str], options: Mapping[str, str]) -> list[str]:
    """The words with these options, whatever they were before."""
    found = list(words)
    for option, value in options.items():
        if option in found:
            found[found.index(option) + 1] = value
        else:
            found += [option, value]
    return found


def parse(words: Sequence[str]) -> None:
    """Check that the command line accepts the words, without running them.

    Raises:
        click.ClickException: it does not.
    """
    command, rest = cli, list(words)
    context = click.Context(cli, info_name="maskgen")
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(command.name, rest, parent=context.parent)
    if list(words[:2]) == ["bench", "budget"] and "--file" not in words:
        experiment = read_experiment(name=after(words, "--experiment", "budget"))
        named = after(words, "--arms", next(iter(experiment.arms)))
        assert set(named.split(",")) <= {*experiment.arms, *experiment.groups}


def once(words: Sequence[str], seen: set[tuple[str, ...]]) -> bool:
    """Whether to run a command: the first of its shape; of experiments only the page's own.

    Shipped experiments take minutes and are parsed instead; `tests/train/test_bench.py` runs them shortened.
    """
    if words[:2] == ["bench", "budget"] and "--file" not in words:
        return False
    shape = tuple(words)
    if words[0] == "cost":
        shape = ("cost", *sorted(word for word in words if word.startswith("--")))
    elif words[0] in ("evaluate", "probe") and "--output" in words:
        at = words.index("--output")
        shape = (*words[:at], *words[at + 2 :])
    is_new = shape not in seen
    seen.add(shape)
    return is_new


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_budget_and_its_links_lead_somewhere(name: str) -> None:
    text = PAGES[name]
    lines = text.splitlines()
    assert len(lines) <= (README_LINES if name == "README.md" else MAX_LINES)
    assert [line for line in lines if len(line) > MAX_COLUMNS] == []
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / name).parent / target).resolve().is_file(), f"{name}: {target}"
    for recipe in re.findall(r"`((?:image|text|tokenizer|classifier)/[\w-]+)`", text):
        assert recipe in recipe_names(), f"{name}: {recipe}"
    for path in re.findall(
        r"`((?:docs|tests|benchmarks|configs|notebooks|examples|maskgen|train|sample)/[\w./-]+\.\w+)`", text
    ):
        assert (ROOT / path).exists(), f"{name}: {path}"


def test_the_readme_is_short_and_every_page_is_in_an_index() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES
    index = PAGES["docs/README.md"]
    for name in PAGES:
        page = name.removeprefix("docs/")
        if page.split("/")[0] in ORDER and not page.startswith("design/decisions-"):
            assert f"]({page})" in index, name
    used = "".join(PAGES.values())
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.name in used, f"{path.name} is shown on no page"


def test_commands_in_tables_and_text_are_commands() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    typed = [*commands(), *re.findall(r"`(make [a-z]+)", "".join(PAGES.values()))]
    made = re.findall(r"(?m)^make ([a-z]+)", "\n".join(typed))
    assert {"quickstart", "test"} <= set(made) <= set(targets)
    for command in [*inline(), *commands()]:
        words = shlex.split(command.split("\n")[0])
        if words[0] == "python" and words[1].startswith("benchmarks/"):
            path = ROOT / words[1]
            shared = path.with_name("harness.py")
            script = path.read_text() + (shared.read_text() if shared.exists() else "")
            for option in (word for word in words if word.startswith("--")):
                assert f'"{option}"' in script, command
        elif (arguments := as_maskgen(words)) and len(arguments) > 1:
            parse(arguments)


def test_scripts_of_the_pages_are_bash() -> None:
    scripts = [block for text in PAGES.values() for block in blocks("bash", text)]
    for script in scripts:
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr + script


def here(*arguments: str | Path, threads: int | None = None) -> str:
    """Run a command of a benchmark, which has a thread and a process for each, in this process."""
    if arguments[0] == "train":  # the command line installs handlers of signals, which a thread cannot
        options = cli.commands["train"].make_context("train", [str(argument) for argument in arguments[1:]]).params
        program.run(options["recipe"], options["overrides"], options["output"], bool(options["resume"]))
        return ""
    cli.main([str(argument) for argument in arguments], standalone_mode=False)
    return ""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what pages take as given: the licence, captioned pictures, data cut to a few rows."""
    whole = kjv._king_james
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "LICENSE", tmp_path)
    pictures(tmp_path / "captioned", {f"{split}/{n}.png": "a boat" for split in ("train", "test") for n in range(4)})
    tiny_encoder(tmp_path / "google-t5" / "t5-small")
    monkeypatch.setattr("maskgen.train.bench.maskgen", here)
    monkeypatch.setattr(FashionMnist.__init__, "__defaults__", (None, N_TRAIN, N_TEST))
    monkeypatch.setattr(kjv, "_king_james", lambda: whole()[:N_CHARACTERS])
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path(FASHION_FOLDER).is_dir(), reason="Fashion-MNIST is not installed")
@pytest.mark.skipif(shutil.which("bible") is None, reason="the King James Bible is not installed")
def test_every_command_of_the_pages_runs_in_the_order_given(
    command: Callable[..., tuple[int, str, str]], home: Path
) -> None:
    seen, failed = set[tuple[str, ...]](), []
    for statement in commands():
        words = shlex.split(statement.split("\n")[0])
        if words[0] in SHELL:
            subprocess.run(["bash", "-euc", statement], check=True, cwd=home)
        elif (arguments := as_maskgen(words)) is not None:
            less = short(arguments)
            if less[0] == "train" and "--resume" not in less and "--output" in less:
                shutil.rmtree(home / less[less.index("--output") + 1], ignore_errors=True)
            if once(less, seen):
                code, _, error = command(*less)
                if code:
                    failed.append((statement, error))
        else:
            assert words[0] in NOT_RUN or words[1].startswith("benchmarks/"), statement
    assert failed == []


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The Python of each page as a module: its blocks one after the other."""
    folder = tmp_path_factory.mktemp("pages")
    found = []
    for name, text in PAGES.items():
        if code := blocks("python", text):
            found.append(folder / f"page_{re.sub(r'[^a-z]+', '_', name.removesuffix('.md').lower())}.py")
            found[-1].write_text("\n".join(code), encoding="utf-8")
    return found


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_the_python_of_the_pages_passes_a_strict_type_check(examples: list[Path], tmp_path: Path) -> None:
    assert any("readme" in path.name for path in examples)
    revealed = tmp_path / "revealed.py"
    revealed.write_text("import maskgen\nreveal_type(maskgen.load('kjv-md4'))\nreveal_type(maskgen.load('x'))\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, *map(str, examples), str(revealed)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Revealed type is "maskgen.pipelines.text.TextPipeline"' in done.stdout
    union = " | ".join(f"maskgen.pipelines.{kind.lower()}.{kind}Pipeline" for kind in ("Image", "Text", "Joint"))
    assert f'Revealed type is "{union}"' in done.stdout


@pytest.mark.slow
def test_the_python_of_the_pages_runs(examples: list[Path], tmp_path: Path) -> None:
    code, said = in_a_fork("tests.scripts", [tmp_path, *examples])
    assert code == 0, said[-4000:]

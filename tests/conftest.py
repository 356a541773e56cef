"""Small trained things that several tests look at: made once, on the digits, in seconds."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from maskgen.cli.commands import main

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Where the environment forbids bytecode files, every process would compile all of maskgen and rewrite every test anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

TINY = ["model.width=32", "model.depth=1", "model.heads=2", "train.batch_size=16", "train.tensorboard=false"]
BRIEF = ["train.steps=4", "train.checkpoint_every=2", "train.validation_rows=20", "train.preview_every=4"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: the last ones to run on several cores are then short."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Six thousand tests are many objects that live to the end: the garbage collector need not look at them again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["MASKGEN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny MaskGIT trained for four steps."""
    directory = tmp_path_factory.mktemp("digits") / "run"
    importlib.import_module("maskgen.train.program").run("digits-maskgit", [*TINY, *BRIEF], str(directory))
    return directory


@pytest.fixture(scope="session")
def digits_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny digits classifier."""
    directory = tmp_path_factory.mktemp("judge") / "judge"
    recipe = directory.parent / "judge.yaml"
    recipe.write_text(
        "{data: digits, model: {type: classifier, width: 16}, objective: classification, "
        "train: {steps: 4, batch_size: 16, tensorboard: false, preview_every: 0}}"
    )
    importlib.import_module("maskgen.train.program").run(str(recipe), [], str(directory))
    return directory


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny MDLM trained for four steps on the characters of a poem."""
    from tests.tiny import text_tree  # torch is not for the process that only hands out tests

    directory = tmp_path_factory.mktemp("text")
    train = {
        "steps": 4, "batch_size": 4, "checkpoint_every": 2, "preview_every": 4, "validation_rows": 4, "log_every": 1,
        "tensorboard": False,
    }  # fmt: skip
    recipe = directory / "poem.yaml"
    recipe.write_text(yaml.safe_dump(text_tree(directory / "poem.txt", train=train)))
    importlib.import_module("maskgen.train.program").run(str(recipe), [], str(directory / "run"), device="cpu")
    return directory / "run"


@pytest.fixture(scope="session")
def text_kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint with random weights of each kind of text generator: mdlm, genmd4, bd3, ar."""
    from tests.tiny import KINDS, text_checkpoint

    directory = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        text_checkpoint(directory / kind, kind)
    return {kind: directory / kind for kind in KINDS}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["maskgen", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, error = capsys.readouterr()
        return code, out, error

    return run

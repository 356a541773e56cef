"""Every command of the README runs: trainings for a step, scores on a few samples, the rest word by word."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from maskgen.data.fashion import FASHION_FOLDER
from tests.captioned import pictures, tiny_encoder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BRIEF = ["train.steps=1", "train.batch_size=4", "train.validation_rows=4", "train.preview_every=0"]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def test_the_make_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [words[1] for words in commands() if words[0] == "make"]
    assert {"quickstart", "test"} <= set(made) <= set(targets)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not Path(FASHION_FOLDER).is_dir(), reason="Fashion-MNIST is not installed")
@pytest.mark.skipif(shutil.which("bible") is None, reason="the King James Bible is not installed")
def test_every_maskgen_command_runs_in_the_order_given(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(40):
        folder = tmp_path / "pictures" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 70), (index * 6, 90, 255 - index * 6)).save(folder / f"{index}.png")
    Image.new("L", (28, 28), 128).save(tmp_path / "dress.png")
    pictures(tmp_path / "captioned", {f"{split}/{n}.png": "a boat" for split in ("train", "test") for n in range(4)})
    tiny_encoder(tmp_path / "encoder")
    (tmp_path / "my-recipe.yaml").write_text("base: digits-maskgit\n")
    (tmp_path / "my.txt").write_text("to be or not to be, that is the question\n" * 300)
    steps = 0
    for words in commands():
        if words[0] != "maskgen":
            continue
        arguments = words[1:]
        if arguments[0] == "train":
            steps += 1
            arguments += [*BRIEF, f"train.steps={steps}"]
        if arguments[0] == "evaluate":
            few = {"likelihood": ["--strata", "1"], "generative-perplexity": ["--num", "2", "--steps", "4"]}
            metric = next((word for word in few if word in arguments), None)
            arguments = [*(word for word in arguments if word not in ("--num", "10000"))]
            arguments += few[metric] if metric else ["--num", "20"]
        if arguments[0] == "probe":
            arguments += ["--data", "{type: fashion_mnist, n_train: 200, n_test: 60}", "--num", "100"]
            arguments += ["--minutes", "0.02"] if "finetune" in arguments else []
        if arguments[0] == "bench":
            few_arms = ["budget", "--arms", "dit", "--minutes", "0.01", "--seeds", "1", "--num", "20"]
            if arguments[1] == "budget":
                arguments = ["bench", *few_arms]
            else:
                arguments = [word for word in arguments if word not in ("--num", "10000")] + ["--num", "20"]
        code, _, error = command(*arguments)
        assert code == 0, (words, error)


@pytest.mark.slow
def test_the_python_of_the_readme_runs() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        names: dict[str, object] = {}
        exec(block, names)
        assert len(names["images" if "images" in names else "filled"]) in (2, 8)  # type: ignore[arg-type]


def test_every_recipe_and_file_the_readme_names_is_there() -> None:
    from maskgen.shipped import recipe_names

    for name in re.findall(r"`((?:image|text|tokenizer|classifier)/[\w-]+)`", README):
        assert name in recipe_names()
    for path in re.findall(r"\]\((docs/[\w./-]+)\)", README):
        assert (ROOT / path).is_file(), path

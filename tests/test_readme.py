"""Every command of the README runs: trainings of a few steps, scores of a few samples, the rest word by word."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from maskgen.data.image.fashion import FASHION_FOLDER, FashionMnist
from maskgen.recipes.shipped import recipe_names
from maskgen.train.experiment import read_experiment
from tests.captioned import pictures, tiny_encoder
from tests.train.test_bench import in_this_process

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUM = {"--num": "20"}
FEW = {
    "likelihood": {"--strata": "1"},
    "generative-perplexity": {"--num": "2", "--steps": "4"},
    "inpainting": {"--num": "6", "--completions": "2"},
}
"""Of `maskgen evaluate`, by the metric."""
N_TRAIN, N_TEST = 200, 60
"""Of Fashion-MNIST."""
BRIEF = ["train.steps=1", "train.batch_size=4", "train.validation_rows=4", "train.preview_every=0"]


def commands() -> list[list[str]]:
    """Those of the code blocks, and the experiments that are named between."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(maskgen bench budget --experiment [a-z]+)`", README)
    return [shlex.split(line) for line in dict.fromkeys(lines) if line and not line.startswith("#")]


def short(words: Sequence[str], steps: int) -> list[str]:
    """A command of `maskgen` as it is written, with less to do; a training takes `steps`."""
    if words[0] == "train":
        return [*words, *BRIEF, f"train.steps={steps}"]
    if words[0] == "evaluate":
        return having(words, FEW.get(next((words[i + 1] for i, w in enumerate(words) if w == "--metric"), ""), NUM))
    if words[0] == "probe":
        minutes = {"--minutes": "0.02"} if "finetune" in words else {}
        return having(words, {"--num": "100", **minutes})
    if words[:2] == ["bench", "budget"]:
        name = words[words.index("--experiment") + 1] if "--experiment" in words else "budget"
        experiment = read_experiment(name=name)
        num = NUM if experiment.evaluate is not None or experiment.metrics else {}
        arm = next(iter(experiment.arms))
        less = {"--arms": arm, "--minutes": "0.01", "--seeds": "1", "--jobs": "1", **num}
        return having([*words, f"data={{type: fashion_mnist, n_train: {N_TRAIN}, n_test: {N_TEST}}}"], less)
    if words[0] == "sample" and "--num" not in words:
        return having(words, {"--num": "4"})
    return having(words, NUM) if words[:2] == ["bench", "fid"] else list(words)


def having(words: Sequence[str], options: Mapping[str, str]) -> list[str]:
    """The words with these options, whatever they were before."""
    found = list(words)
    for option, value in options.items():
        if option in found:
            found[found.index(option) + 1] = value
        else:
            found += [option, value]
    return found


def test_the_make_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [words[1] for words in commands() if words[0] == "make"]
    assert {"quickstart", "test"} <= set(made) <= set(targets)


@pytest.mark.slow
@pytest.mark.timeout(900)
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
    monkeypatch.setattr("maskgen.train.bench.maskgen", in_this_process)
    monkeypatch.setattr(FashionMnist.__init__, "__defaults__", (None, N_TRAIN, N_TEST))
    steps = 0
    for words in commands():
        if words[0] == "maskgen":
            steps += words[1] == "train"
            code, _, error = command(*short(words[1:], steps))
            assert code == 0, (words, error)


@pytest.mark.slow
def test_the_python_of_the_readme_runs() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        names: dict[str, object] = {}
        exec(block, names)
        assert len(names["images" if "images" in names else "filled"]) in (2, 8)  # type: ignore[arg-type]


def test_every_recipe_and_file_the_readme_names_is_there() -> None:
    for name in re.findall(r"`((?:image|text|tokenizer|classifier)/[\w-]+)`", README):
        assert name in recipe_names()
    for path in re.findall(r"\]\((docs/[\w./-]+)\)", README):
        assert (ROOT / path).is_file(), path

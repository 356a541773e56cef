"""The wheel holds all that is needed: installed elsewhere, it lists, samples and trains."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_installs_one_name_and_every_file(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"maskgen"}
    for name in ("configs/image/fashion-maskgit.yaml", "zoo/fashion-vq/model.safetensors", "py.typed", "train/loop.py"):
        assert f"maskgen/{name}" in names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "maskgen").rglob("*.py")}
    assert sources <= set(names)


@pytest.mark.slow
def test_the_wheel_installed_elsewhere_samples_and_trains(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    program = (
        "import maskgen, sys\n"
        f"assert maskgen.__file__.startswith({str(site)!r}), maskgen.__file__\n"
        "from maskgen.cli.commands import main\n"
        "assert len(maskgen.load('fashion-maskgit')(num=3, steps=2).images) == 3\n"
        "main('train', 'digits-maskgit', 'train.steps=1', 'model.depth=1')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "digits-maskgit" / "checkpoint-1" / "model.safetensors").is_file()

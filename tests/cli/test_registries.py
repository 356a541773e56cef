"""A metric, a protocol, a converter and an exporter are one file each: the command line finds them in the source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
METRIC = '''
"""A metric of a test."""
from .metric import METRICS, metric

@METRICS.register("dummy-metric")
@metric("text")
def run(source, /, *, window=2, seed=0, output=None, device="auto"):
    """Number of a test."""
    return f"dummy of {source}: {window}"
'''
FEATURE = '''
"""A metric of features of a test."""
from maskgen.evaluation.metrics.scored import FEATURE_METRICS, FeatureMetric

@FEATURE_METRICS.register("dummy-feature")
class Dummy(FeatureMetric):
    """Width of the features."""

    def entries(self, scored):
        return [scored.entry("width", float(scored.features[0].shape[1]))]
'''
PROTOCOL = '''
"""A protocol of a test."""
from maskgen.evaluation.protocols.features import Extractor, Features
from maskgen.evaluation.protocols.protocol import PROTOCOLS, Protocol

@PROTOCOLS.register("dummy-protocol")
class Dummy(Protocol):
    """Mean and corner of an image."""

    def extractor(self, weights, device, batch_size=64):
        def features(images):
            x = images.float()
            return Features(x.flatten(1)[:, ::97])
        return Extractor("dummy-protocol", "none", "0" * 64, features, None)
'''
CONVERTER = '''
"""A converter of a test."""
from maskgen.checkpoints.convert.converter import CONVERTERS, Converter
from maskgen.core.errors import UserError

@CONVERTERS.register("dummy-layout")
class Dummy(Converter):
    """A network of a test."""

    licence = "licence of a test"

    def recognises(self, found):
        return "dummy.weight" in found.state
    def target(self, found):
        raise UserError("recognised")
    def tensors(self, found):
        return {}
'''
EXPORTER = '''
"""A format of a test."""
from maskgen.checkpoints.export import EXPORTERS

@EXPORTERS.register("dummy-format")
def write(checkpoint, path, dtype, facts):
    """One line."""
    path.mkdir()
    (path / "dummy.txt").write_text(facts["summary"])
'''
FILES = {
    "sample/dummy.py": METRIC,
    "evaluation/metrics/dummy.py": FEATURE,
    "evaluation/protocols/dummy.py": PROTOCOL,
    "checkpoints/convert/dummy.py": CONVERTER,
    "checkpoints/dummy.py": EXPORTER,
}
COMMANDS = (
    ("evaluate kjv-md4 --metric dummy-metric window=5", "dummy of kjv-md4: 5"),
    ("evaluate x --list-metrics", "dummy-metric"),
    ("fid a.npz b.npz --protocol dummy-protocol --metric dummy-feature", "frechet_distance[dummy-protocol]"),
    ("fid a.npz b.npz --list-protocols", "dummy-protocol"),
    ("convert --list", "licence of a test"),
    ("convert d.pt --output out", "recognised"),
    ("export kjv-md4 exported --format dummy-format", "exported"),
    ("evaluate kjv-md4 --metric dummy-metirc", "did you mean dummy-metric"),
)
PROGRAM = """
import sys
from maskgen.cli import main
for command in sys.argv[1:]:
    print("==")
    sys.argv = ["maskgen", *command.split()]
    try: main()
    except SystemExit: pass
    sys.stdout.flush()
"""


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as links to its files, with the files of a test added."""
    site = tmp_path_factory.mktemp("site")
    homes = {"": ROOT / "maskgen", **{name: ROOT / name for name in ("train", "sample", "configs")}}
    for name, home in homes.items():
        for file in home.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                target = site / "maskgen" / name / file.relative_to(home)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file)
    for path, text in FILES.items():
        (site / "maskgen" / path).write_text(text)
    return site


def test_a_part_is_one_file_and_every_command_knows_it(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        images = np.random.default_rng(ord(name)).integers(0, 256, (20, 28, 28, 1), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images)
    torch.save({"dummy.weight": torch.ones(1)}, tmp_path / "d.pt")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / "cache"))
    run = [sys.executable, "-c", PROGRAM, *(command for command, _ in COMMANDS)]
    done = subprocess.run(run, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    answers = done.stdout.split("==\n")[1:]
    for (command, wanted), answer in zip(COMMANDS, answers, strict=True):
        assert wanted in answer, f"{command}: {answer}"
    assert (tmp_path / "exported" / "dummy.txt").is_file()
    assert "width " in answers[2]

"""What one checkout gives, for equality.py: digests of samples, logged values, weights, and a run that was killed.

    python benchmarks/equality_side.py SITE WORK [--data DIR] [--wanted KIND:FAMILY ...] [--train FAMILY]

SITE is a folder with `maskgen` in it, first on PYTHONPATH. The families are those of equality.yaml; what they gave is
written to WORK/found.json. With --train a family of `resume` is trained in WORK and nothing else is done.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Values = dict[str, str]
"""What a family gave, in order: a name for each number or digest."""

TABLE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("equality.yaml").read_text(encoding="utf-8"))
TIMINGS = ("samples/s", "data_wait", "mfu", "seconds", "cpu_seconds")
FEW = ("train.steps=5", "train.checkpoint_every=5")
LONG = ("train.steps=40", "train.checkpoint_every=10")
KILLED_AT = 13
"""The step of a `LONG` run after whose log it is killed, if not some steps later."""


class Side(NamedTuple):
    """A checkout at work: its import path, the folder of its runs, and the data."""

    site: Path
    home: Path
    data: Path

    def filled(self, text: str) -> str:
        return text.replace("$DATA", str(self.data))


def use_checkout(site: Path) -> None:
    """Import maskgen out of `site` and nowhere else: an editable install would fill in modules that it lacks."""
    sys.meta_path[:] = [one for one in sys.meta_path if not getattr(one, "__module__", "").startswith("__editable__")]
    importlib.import_module("maskgen")
    require_own(site)


def require_own(site: Path) -> None:
    """Raises:
    ImportError: a module of maskgen was loaded from elsewhere.
    """
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] == "maskgen" and file and not Path(file).is_relative_to(site):
            raise ImportError(f"{name} is {file}, it should lie in {site}")


def train(of: Side, family: Mapping[str, Any], run: Path, *more: str) -> None:
    """`maskgen train` in this process.

    Raises:
        RuntimeError: it failed; the message is its own last line.
    """
    changes = [change for group in family["groups"] for change in TABLE["groups"][group]] + family.get("overrides", [])
    arguments = [family["recipe"], *map(of.filled, changes), *more, "--output", str(run), "--device", "cpu"]
    sys.argv, said = ["maskgen", "train", *arguments], io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            importlib.import_module("maskgen.cli").main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(said.getvalue().strip().rpartition("\n")[2]) from None


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def drawn(of: Side, source: str, arguments: Mapping[str, Any], num: int, name: str) -> Values:
    """Digests of `num` samples, a seed each: tokens, and what was made of them."""
    pipeline: Any = importlib.import_module("maskgen").load(source, device="cpu")
    known = {key: of.filled(value) if isinstance(value, str) else value for key, value in arguments.items()}
    made = pipeline(num=num, seed=0, **known)
    found = {}
    for row, tokens in enumerate(made.tokens):
        kind = f"{tokens.dtype}{tuple(tokens.shape)}".encode()
        found[f"{name}, seed {row}: tokens"] = digest(kind + tokens.contiguous().numpy().tobytes())
        rest = made.texts[row].encode() if hasattr(made, "texts") else made.pixels[row].contiguous().numpy().tobytes()
        found[f"{name}, seed {row}: decoded"] = digest(rest)
    return found


def logged(run: Path) -> Values:
    """All that metrics.jsonl holds but timings, with the digits that are written there."""
    found: Values = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line, parse_float=str, parse_constant=str)
        step = values.pop("step")
        found |= {f"step {step}: {k}": str(v) for k, v in values.items() if k.partition("/")[2] not in TIMINGS}
    return found


def weights(run: Path) -> Values:
    """A digest for each tensor of the last checkpoint, by file and name: the weights for use, the training state."""
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    found = {}
    for file in sorted(last.glob("*.safetensors")):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:start]).items():
            if name != "__metadata__":
                first, end = (start + offset for offset in entry["data_offsets"])
                found[f"{file.name}: {name}"] = digest(f"{entry['dtype']}{entry['shape']}".encode() + raw[first:end])
    return found


def of_samples(of: Side, name: str) -> Values:
    found: Values = {}
    for setting, arguments in TABLE["samples"][name].items():
        found |= drawn(of, name, arguments, 4, setting)
    return found


def of_losses(of: Side, name: str) -> Values:
    family, run = TABLE["losses"][name], of.home / "losses" / name
    train(of, family, run, *FEW)
    found = logged(run) | weights(run)
    if "samples" in family:
        found |= drawn(of, str(run), family["samples"], 2, "sample")
    return found


def of_resume(of: Side, name: str) -> Values:
    """What the whole run gave.

    Raises:
        RuntimeError: the resumed one gave something else.
    """
    home, family = of.home / "resume" / name, TABLE["resume"][name]
    train(of, family, home / "whole", *LONG)
    be_killed(of, name, home / "killed")
    train(of, family, home / "killed", *LONG, "--resume")
    whole, resumed = (logged(run) | weights(run) for run in (home / "whole", home / "killed"))
    differing = [key for key in whole | resumed if whole.get(key) != resumed.get(key)]
    if differing:
        raise RuntimeError(f"the resumed run differs from the whole one in {differing[0]}; {len(differing)} in all")
    return whole


def be_killed(of: Side, name: str, run: Path) -> None:
    """Train in another process, and kill that some steps after its first checkpoint.

    Raises:
        RuntimeError: it ended before.
    """
    command = [sys.executable, __file__, str(of.site), str(run), "--data", str(of.data), "--train", name]
    with subprocess.Popen(command) as process:
        file = run / "metrics.jsonl"
        while process.poll() is None and not (file.is_file() and f'"step": {KILLED_AT},' in file.read_text()):
            time.sleep(0.005)
        process.kill()
    names = [path.name for path in run.glob("checkpoint-*")]
    if process.returncode >= 0 or not names or "checkpoint-40" in names:
        raise RuntimeError(f"the run was not killed between checkpoints: exit code {process.returncode}, {names}")


def gather(of: Side, wanted: list[str]) -> dict[str, Values]:
    """KIND:FAMILY -> what it gave; for one that failed, why."""
    makers: dict[str, Callable[[Side, str], Values]] = {
        "samples": of_samples, "losses": of_losses, "resume": of_resume
    }  # fmt: skip
    found = {}
    for one in wanted:
        began, (kind, _, name) = time.perf_counter(), one.partition(":")
        try:
            found[one] = makers[kind](of, name)
        except Exception as error:
            found[one] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{of.home.name}: {one}, {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, default=Path(), metavar="DIR", help="as equality.py makes them")
    parser.add_argument("--wanted", nargs="+", default=[], metavar="KIND:FAMILY")
    parser.add_argument("--train", choices=list(TABLE["resume"]), help="to be killed")
    options = parser.parse_args()
    of = Side(options.site, options.work, options.data)
    use_checkout(of.site)
    if options.train:
        train(of, TABLE["resume"][options.train], of.home, *LONG)
    else:
        found = gather(of, options.wanted)
        (of.home / "found.json").write_text(json.dumps(found), encoding="utf-8")
    require_own(of.site)


if __name__ == "__main__":
    main()

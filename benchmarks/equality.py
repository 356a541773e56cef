"""Two checkouts on one machine, compared to the last bit: samples, losses, weights, and a run that was killed.

    python benchmarks/equality.py BEFORE AFTER [--only samples|losses|resume] [--family NAME ...] [--output FILE.json]

BEFORE and AFTER are roots of checkouts. Each runs in a process of its own (equality_side.py) with one thread. Only
`maskgen.load` and `maskgen train` are used, so a change of anything within can be checked. What is run stands in
equality.yaml:

- `samples`: tokens of the zoo's generators, and what they decode to, by sampler and seed;
- `losses`: five steps of a small recipe of every family: all that is logged but timings, the last weights and optimizer
  state by name, and samples of what was trained;
- `resume`: a training is killed and resumed; it has to end in the bits of one that was left alone, on both sides.

The data are made from a seed, so nothing has to be installed. Exit code 0 if all is equal, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from PIL import Image

HERE = Path(__file__).parent
KINDS = ("samples", "losses", "resume")
PACKAGES = ("train", "sample", "configs")
"""At the root of a checkout, installed as maskgen.train and so on."""

ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"),
    "PYTHONDONTWRITEBYTECODE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
DIGEST = 64
"""Characters of a SHA-256."""


def make_data(home: Path) -> None:
    """Grey pictures as IDX files, a text, and captioned pictures with embeddings."""
    random = np.random.default_rng(0)
    (home / "fashion").mkdir(parents=True)
    for split, n in (("train", 64), ("t10k", 16)):
        images = random.integers(0, 256, (n, 7, 7), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
        write_idx(home / "fashion" / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(home / "fashion" / f"{split}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8) % 10)
    Image.fromarray(images[0]).save(home / "picture.png")
    words = random.choice(["the", "light", "of", "day", "was", "upon", "waters;", "and", "earth,"], (500, 8))
    (home / "poem.txt").write_text("\n".join(" ".join(line) for line in words), encoding="utf-8")
    for number in range(16):
        file = home / "pictures" / ("train" if number % 2 else "test") / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
        file.with_suffix(".txt").write_text(f"picture {number}", encoding="utf-8")
    np.save(home / "captions.npy", random.standard_normal((16, 4, 8)).astype(np.float16))


def write_idx(file: Path, array: np.ndarray[Any, Any]) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(gzip.compress(head + array.tobytes(), mtime=0))


def make_site(checkout: Path, site: Path) -> None:
    """A folder of links in which `maskgen` is the checkout's, laid out as it would be installed.

    Raises:
        SystemExit: no checkout.
    """
    if not (checkout / "maskgen" / "__init__.py").is_file():
        raise SystemExit(f"{checkout} is no checkout: it has no maskgen/__init__.py")
    (site / "maskgen").mkdir(parents=True)
    entries = [entry for entry in (checkout / "maskgen").iterdir() if entry.name != "__pycache__"]
    for entry in [*entries, *(checkout / name for name in PACKAGES if (checkout / name).is_dir())]:
        (site / "maskgen" / entry.name).symlink_to(entry.resolve())


def start(checkout: Path, home: Path, data: Path, wanted: Sequence[str]) -> subprocess.Popen[bytes]:
    """A side at work in `home`."""
    site = home / "site"
    make_site(checkout, site)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "MASKGEN_CACHE": str(home / "cache")}
    command: list[str | Path] = [
        sys.executable,
        HERE / "equality_side.py",
        site,
        home,
        "--data",
        data,
        "--wanted",
        *wanted,
    ]
    return subprocess.Popen(command, env={**os.environ, **ENVIRONMENT, **own}, cwd=home)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Name -> both values, where they differ; `nothing` for one that a side lacks."""
    pairs = {name: (before.get(name, "nothing"), after.get(name, "nothing")) for name in {**before, **after}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def verdict(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """`equal`, or `DIFFERENT` with the first difference, or `FAILED` where a side has no values."""
    failures = [
        f"{name}: {side['failed']}" for name, side in (("before", before), ("after", after)) if "failed" in side
    ]
    if failures:
        return f"FAILED ({'; '.join(failures)})"
    differing = differences(before, after)
    if not differing:
        return f"equal, {len(before)} values"
    name, pair = next(iter(differing.items()))
    one, other = (value[:12] if len(value) == DIGEST else value for value in pair)
    return f"DIFFERENT ({name}: {one} != {other}; {len(differing)} of {len({**before, **after})})"


def compare(checkouts: Mapping[str, Path], wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run both sides at once; for each family the verdict, the values before, and differences.

    Raises:
        SystemExit: a side broke down.
    """
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder).resolve()
        make_data(home / "data")
        sides = {
            name: stack.enter_context(start(path, home / name, home / "data", wanted))
            for name, path in checkouts.items()
        }
        for name, process in sides.items():
            if process.wait():
                raise SystemExit(f"{name} ({checkouts[name]}) broke down, see above")
        before, after = (json.loads((home / name / "found.json").read_text(encoding="utf-8")) for name in sides)
    return {
        one: {
            "verdict": verdict(before[one], after[one]),
            "before": before[one],
            "differences": differences(before[one], after[one]),
        }
        for one in wanted
    }


def all_equal(found: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(one["verdict"].startswith("equal") for one in found.values())


def commit(checkout: Path) -> str:
    """Of a checkout under git, with "-dirty" where it was changed; else ""."""
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    table = yaml.safe_load((HERE / "equality.yaml").read_text(encoding="utf-8"))
    names = sorted({name for kind in KINDS for name in table[kind]})
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--family", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    kinds = KINDS if options.only is None else (options.only,)
    wanted = [f"{kind}:{name}" for kind in kinds for name in table[kind] if name in options.family]
    if not wanted:
        parser.error(f"--only {options.only} has none of {', '.join(options.family)}")
    began, checkouts = time.perf_counter(), {"before": options.before, "after": options.after}
    found = compare(checkouts, wanted)
    for name, one in found.items():
        print(f"{name:24} {one['verdict']}")
    is_equal = all_equal(found)
    print(f"{'all equal' if is_equal else 'NOT EQUAL'}, {time.perf_counter() - began:.0f} s")
    if options.output:
        commits = {name: commit(path) for name, path in checkouts.items()}
        report = {"is_equal": is_equal, "commits": commits, "families": found}
        options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    sys.exit(not is_equal)


if __name__ == "__main__":
    main()

"""Time from opening an image folder of many files to its first batch: find, index, fingerprint, read.

    python benchmarks/folder.py [--files 100000] [--classes 1000] [--output FILE.json]

The files are made in a temporary folder first, which is not counted: a tiny PNG each, in folders of classes. They are
then in the system's cache; a cold disk or a network takes longer by what its directory reads take.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from maskgen.core.files import write_json
from maskgen.data.image.folder import Folder
from maskgen.data.loader import CounterSampler, batches

T = TypeVar("T")


def make(home: Path, n_files: int, n_classes: int) -> None:
    out = io.BytesIO()
    Image.new("L", (8, 8), 128).save(out, "PNG")
    raw = out.getvalue()
    for label in range(n_classes):
        folder = home / f"class-{label:05d}"
        folder.mkdir()
        for index in range(label, n_files, n_classes):
            (folder / f"{index:07d}.png").write_bytes(raw)


def timed(seconds: dict[str, list[float]], name: str, work: Callable[[], T]) -> T:
    """Do some work; its wall and CPU seconds; a busy machine disturbs the latter less."""
    began, cpu_began = time.perf_counter(), time.process_time()
    answer = work()
    seconds[name] = [round(time.perf_counter() - began, 3), round(time.process_time() - cpu_began, 3)]
    return answer


def measure(home: Path) -> dict[str, list[float]]:
    """Seconds of each thing that a training does before its first step."""
    seconds: dict[str, list[float]] = {}
    source = Folder(str(home), size=8, channels=1)
    timed(seconds, "files and classes", lambda: source.classes)
    train = timed(seconds, "training split", lambda: source.split("train"))
    timed(seconds, "test split", lambda: source.split("test"))
    timed(seconds, "fingerprint", train.fingerprint)
    order = CounterSampler(len(train), 128, 0)
    timed(seconds, "first batch", lambda: next(batches(train, order)))
    return {**seconds, "all": [round(sum(values), 3) for values in zip(*seconds.values(), strict=True)]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="folder", description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), arguments.files, arguments.classes)
        found: dict[str, Any] = {"files": arguments.files, "seconds": measure(Path(folder))}
    for name, (wall, cpu) in found["seconds"].items():
        print(f"{name:20} {wall:8.2f} s, {cpu:.2f} CPU s")
    if arguments.output is not None:
        write_json(arguments.output, found)


if __name__ == "__main__":
    main()

"""Instruction tuning of a small network on a made-up task: exact match before and after.

    python benchmarks/instructions.py --output DIR [--steps 1200] [--seed 0] [--arms plain complementary cap]

2,000 rows of three kinds: two numbers to add, a word to reverse, a text to copy with a rule. The network is that of
`text/sft`, smaller, trained from scratch; `before` is its checkpoint at step 1.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import maskgen
from maskgen.sample import answers

ARMS = {
    "plain": [],
    "complementary": ["objective.complementary=true", "train.batch_size=16"],
    "cap": ["objective.confidence=0.1"],
}
LETTERS = "abcdefghij"


KINDS = ("add", "reverse", "double")
N_HELD_OUT = 100
"""Held-out rows of each kind."""


def rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of the three kinds in turn, no prompt twice."""
    draw, found = random.Random(seed), {}
    while len(found) < n:
        kind = KINDS[len(found) % 3]
        word = "".join(draw.choices(LETTERS, k=draw.randint(2, 6)))
        a, b = draw.randint(0, 99), draw.randint(0, 99)
        answers_of = {"add": str(a + b), "reverse": word[::-1], "double": "".join(2 * letter for letter in word[:4])}
        given = f"{a} {b}" if kind == "add" else word
        found.setdefault(f"{kind} {given} = ", answers_of[kind])
    return [{"prompt": prompt, "response": answer} for prompt, answer in found.items()]


def write(file: Path, some: list[dict[str, str]]) -> Path:
    """Write rows as .jsonl."""
    file.write_text("\n".join(json.dumps(row) for row in some) + "\n")
    return file


def score(checkpoint: Path, held_out: dict[str, Path], folder: Path) -> dict[str, float]:
    """Exact match by kind, and the share of answers that ended."""
    found = {}
    for kind, file in held_out.items():
        output = folder / f"score-{checkpoint.parent.name}-{kind}.json"
        answers.run(str(checkpoint), file=str(file), new_tokens=12, output=str(output), steps=12)
        report = json.loads(output.read_text())
        found[kind], found[f"{kind} ended"] = report["score"]["value"], report["others"][0]["value"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    every = rows(options.rows + len(KINDS) * N_HELD_OUT)
    data, tested = write(folder / "task.jsonl", every[: options.rows]), every[options.rows :]
    held_out = {
        kind: write(folder / f"{kind}.jsonl", [row for row in tested if row["prompt"].startswith(kind)])
        for kind in KINDS
    }
    for arm in options.arms:
        name = f"{arm}-{options.seed}"
        keys = [f"data.path={data}", "data.length=32", "data.test_fraction=0", f"train.steps={options.steps}",
                f"model.width={options.width}", f"model.depth={options.depth}", f"seed={options.seed}",
                *ARMS[arm]]  # fmt: skip
        first = maskgen.train("text/sft", [*keys, "train.steps=1"], output=folder / f"before-{name}", device="cpu")
        began = time.process_time()
        last = maskgen.train("text/sft", keys, output=folder / f"after-{name}", resume="auto", device="cpu")
        seconds = time.process_time() - began
        table = {"cpu_seconds": seconds, **{place: score(path, held_out, folder)
                                            for place, path in (("before", first), ("after", last))}}  # fmt: skip
        print(name, json.dumps(table), flush=True)
        (folder / f"table-{name}.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()

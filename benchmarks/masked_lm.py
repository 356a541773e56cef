"""Generation and ranking with a masked language model: trailing masks 1 to 4, windows 1 to 4.

    python benchmarks/masked_lm.py --output DIR [--checkpoint kjv-md4] [--scorer kjv-ar] [--num 32] [--tasks 100]

Generation: perplexity of samples under the scorer. Ranking: the 16 characters that follow 48 of a held-out verse among
those of three other verses.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from maskgen.data.base import DATASETS
from maskgen.sample import perplexity, pseudo

GIVEN, ASKED, WRONG = 48, 16, 3


def tasks(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Tasks over held-out verses of the King James Bible."""
    source: Any = DATASETS.build("kjv")
    verses = [line for text in source.documents("test") for line in text.split("\n") if len(line) > GIVEN + ASKED]
    draw = random.Random(seed)
    found = []
    for verse in draw.sample(verses, n):
        right = verse[GIVEN : GIVEN + ASKED]
        wrong = {one[GIVEN : GIVEN + ASKED] for one in draw.sample(verses, WRONG + 2)} - {right}
        choices = [right, *sorted(wrong)[:WRONG]]
        draw.shuffle(choices)
        found.append({"prompt": verse[:GIVEN], "choices": choices, "answer": choices.index(right)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--checkpoint", default="kjv-md4")
    parser.add_argument("--scorer", default="kjv-ar")
    parser.add_argument("--num", type=int, default=32)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tasks.jsonl"
    file.write_text("\n".join(json.dumps(task) for task in tasks(options.tasks)) + "\n")
    print(pseudo.run(options.checkpoint, file=str(file), windows="1,2,3,4,all", output=str(folder / "windows.json")))
    for masks in (1, 2, 3, 4, options.length):
        print(f"masks {masks}", flush=True)
        print(
            perplexity.run(
                options.checkpoint, scorer=options.scorer, num=options.num, length=options.length, device="cpu",
                output=str(folder / f"masks-{masks}.json"), sampler="masked_lm", masks=masks, top_p=0.9,
            ),
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()

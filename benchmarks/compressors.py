"""Bits per character of general compressors on a held-out text, given all the rest of it.

    python benchmarks/compressors.py text/kjv-md4 [--split test] [--output compressors.json]

Bits per character are (size of rest and part - size of rest) * 8 / characters of the part, comparable with
`maskgen evaluate --metric likelihood`. The rest is the other splits: a compressor sees the validation text too. PPMd
needs `pip install pyppmd`. bz2 restarts every 900 kB, so only text in the block of the part helps.
"""

from __future__ import annotations

import argparse
import bz2
import importlib
import json
import lzma
from collections.abc import Callable
from pathlib import Path

from maskgen.core.errors import UserError
from maskgen.data.base import TEXT_SPLITS
from maskgen.recipes.load import load_recipe

PPMD_ORDER, PPMD_MEMORY = 8, 2**28
Compress = Callable[[bytes], bytes]


def compressors() -> dict[str, Compress]:
    """Those there are, strongest setting of each."""
    found: dict[str, Compress] = {
        "xz -9e": lambda raw: lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME),
        "bz2 -9": lambda raw: bz2.compress(raw, 9),
    }
    try:
        ppmd = importlib.import_module("pyppmd")
    except ImportError:
        return found
    name = f"PPMd, order {PPMD_ORDER}"
    return found | {name: lambda raw: ppmd.compress(raw, max_order=PPMD_ORDER, mem_size=PPMD_MEMORY)}


def bits_per_char(compress: Compress, rest: str, part: str) -> float:
    """Bits that a character of `part` adds to `rest`, both as UTF-8."""
    before, whole = len(compress(rest.encode())), len(compress((rest + part).encode()))
    return (whole - before) * 8 / len(part)


def texts(recipe: str, split: str) -> tuple[str, str]:
    """All of a text but one split, in its order, and the split.

    Raises:
        UserError: a recipe of images or of many documents, or a split without text.
    """
    loaded = load_recipe(recipe)
    source = loaded.build_text() if loaded.kind == "text" else None
    if source is None or not source.is_one_text:
        raise UserError(f"{recipe} is not of one text; give a recipe such as text/kjv-md4")
    parts = {name: "".join(source.documents(name)) for name in TEXT_SPLITS}
    part = parts.pop(split)
    if not part:
        raise UserError(f"the {split} split of {recipe} has no text; choose another --split")
    return "".join(parts.values()), part


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("recipe")
    parser.add_argument("--split", choices=TEXT_SPLITS, default="test")
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args()
    rest, part = texts(options.recipe, options.split)
    print(f"{len(part):,} characters of {options.recipe} {options.split}, given {len(rest):,}")
    found = {}
    for name, compress in compressors().items():
        found[name] = bits_per_char(compress, rest, part)
        print(f"{name:16} {found[name]:.3f} bits a character")
    if options.output is not None:
        about = {"recipe": options.recipe, "split": options.split, "characters": len(part)}
        options.output.write_text(json.dumps({**about, "bits_per_char": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

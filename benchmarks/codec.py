"""Sizes of real files under a checkpoint's codec and under general programs, and the speed of both ways.

    python benchmarks/codec.py text kjv-ar [--most 200000]
    python benchmarks/codec.py images CHECKPOINT [--num 10000] [--source fashion_mnist:test]

Text: the test split of the King James Bible, coded by itself; xz and bz2 likewise. Images: bits a dimension beside
PNG (optimised) and lossless WebP of each image, and xz of all pixels. The model's size is printed and not counted.
"""

from __future__ import annotations

import argparse
import bz2
import io
import lzma
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from maskgen.data.image.opening import open_images
from maskgen.data.image.pictures import to_pil
from maskgen.recipes.load import load_recipe
from maskgen.sample import codec


def text(checkpoint: str, most: int, folder: Path) -> None:
    """Bits a character of the test split."""
    content = "".join(load_recipe("text/kjv-md4").build_text().documents("test"))[:most]
    raw, file = content.encode(), folder / "text.txt"
    file.write_bytes(raw)
    packed, seconds = both_ways(checkpoint, str(file), folder / "text.mgc", folder / "back.txt")
    assert (folder / "back.txt").read_bytes() == raw
    sizes = {"xz -9e": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)), "bz2 -9": len(bz2.compress(raw, 9))}
    for name, size in {checkpoint: packed, **sizes}.items():
        print(f"{name:20} {8 * size / len(content):.4f} bits a character")
    print(f"{len(raw):,} bytes; CPU seconds {seconds[0]:.1f} to compress, {seconds[1]:.1f} to decompress")


def images(checkpoint: str, num: int, source: str, folder: Path) -> None:
    """Bits a dimension of images."""
    found = open_images(source)
    pixels = torch.stack(found.read(range(min(num, len(found)))))
    for row, image in enumerate(to_pil(pixels)):
        (folder / "in").mkdir(exist_ok=True)
        image.save(folder / "in" / f"{row:06}.png")
    packed, seconds = both_ways(checkpoint, str(folder / "in"), folder / "x.mgc", folder / "out")
    back = torch.stack(open_images(str(folder / "out")).read(range(len(pixels))))
    print("restored exactly" if torch.equal(back, pixels) else "restored with loss")
    sizes = {"PNG": stored(pixels, "PNG", optimize=True), "WebP lossless": stored(pixels, "WEBP", lossless=True)}
    sizes["xz -9e of all"] = len(lzma.compress(pixels.numpy().tobytes(), preset=9 | lzma.PRESET_EXTREME))
    for name, size in {checkpoint: packed, **sizes}.items():
        print(f"{name:20} {8 * size / pixels.numel():.4f} bits a dimension")
    print(f"{len(pixels):,} images; CPU seconds {seconds[0]:.1f} to compress, {seconds[1]:.1f} to decompress")


def both_ways(checkpoint: str, given: str, packed: Path, back: Path) -> tuple[int, tuple[float, float]]:
    """Size of the coded file, and CPU seconds of both directions."""
    start = time.process_time()
    print(codec.compress(checkpoint, given, str(packed)))
    middle = time.process_time()
    codec.decompress(str(packed), str(back))
    return packed.stat().st_size, (middle - start, time.process_time() - middle)


def stored(pixels: torch.Tensor, kind: str, **settings: object) -> int:
    """Bytes of all images in a format of Pillow."""
    total = 0
    for image in to_pil(pixels):
        file = io.BytesIO()
        image.save(file, kind, **settings)
        total += file.tell()
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["text", "images"])
    parser.add_argument("checkpoint")
    parser.add_argument("--most", type=int, default=10**9, help="characters")
    parser.add_argument("--num", type=int, default=10_000, help="images")
    parser.add_argument("--source", default="fashion_mnist:test")
    chosen = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        if chosen.kind == "text":
            text(chosen.checkpoint, chosen.most, Path(name))
        else:
            images(chosen.checkpoint, chosen.num, chosen.source, Path(name))


if __name__ == "__main__":
    main()

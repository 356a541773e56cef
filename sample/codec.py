"""`maskgen compress` and `maskgen decompress`: text and images as the code of their tokens under a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.codec import container
from maskgen.codec.coder import Code
from maskgen.codec.container import Header
from maskgen.core.errors import UserError
from maskgen.core.files import atomic, local_path, read_regular
from maskgen.core.pixels import to_uint8
from maskgen.data.image.opening import open_images
from maskgen.data.image.pictures import to_pil
from maskgen.data.image.sets import FolderSet, read_pixels
from maskgen.pipelines.coding import Coding, RowCoder, checksum, identity
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.text.tokenizer import TextTokenizer

from .pictures import check_writable

ENDING = ".mgc"


@dataclass(frozen=True)
class Content:
    """What is coded.

    Attributes:
        rows: (N, L) int64 tokens.
        tail: (1, R) tokens after the last row, R < L; (1, 0) without.
        size: of the input in bytes.
        names: of the images, if they are files.
        images: (N, C, H, W) uint8.
    """

    rows: Tensor
    tail: Tensor
    size: int
    names: tuple[str, ...] = ()
    images: Tensor | None = None


def compress(
    source: str, given: str, output: str, /, *, order: str | None = None, steps: int | None = None, batch_size: int = 64
) -> str:
    """Code a text file, an image, or a set of images; the message about the result.

    Args:
        source: a generator of discrete tokens.
        given: a text file; an image, a folder, a `.zip` or an `.npz` of images, or `DATASET:SPLIT`.
        output: `.mgc`.
        order, steps: see `Coding`.
        batch_size: rows that are computed together; the result does not depend on it.

    Raises:
        UserError: a checkpoint that gives no probabilities, or an input that it cannot represent.
    """
    path, checkpoint = check_writable(output, (ENDING,)), read_checkpoint(source)
    coder = RowCoder(checkpoint, batch_size)
    coding = coder.coding(order, steps)
    content = _text(coder, given) if checkpoint.recipe.kind == "text" else _images(coder, given)
    n_tail = content.tail.shape[1]
    pieces: list[Code] = []
    bits = 0.0
    with tqdm(total=len(content.rows), desc="compress", unit="row", disable=None) as bar:
        for code, own in _encoded(coder, content, coding):
            pieces.append(code)
            bits += own
            bar.update(min(coding.piece, len(content.rows) - bar.n))
    kind: Literal["text", "image"] = "text" if checkpoint.recipe.kind == "text" else "image"
    header = Header(
        source, identity(checkpoint), kind, len(content.rows), coder.layout.length, n_tail, coding.piece, coding.order,
        coding.steps, checksum([content.rows, content.tail]), content.names,
    )  # fmt: skip
    packed = container.to_bytes(header, pieces)
    with atomic(path) as file:
        file.write(packed)
    return _summary(path, coder, content, len(packed), sum(code.n_bits for code in pieces), bits)


def decompress(
    given: str,
    output: str,
    /,
    *,
    checkpoint: str | None = None,
    groups: int | None = None,
    batch_size: int = 64,
) -> str:
    """Restore what `compress` coded; the path of the result.

    Args:
        given: an `.mgc` file.
        output: a text file; an image, or a folder of images if there are several.
        checkpoint: the one it was coded with, if it is not where it was.
        groups: decode the first groups of tokens only and draw the rest from the model: a preview of images.
        batch_size: see `compress`.

    Raises:
        UserError: another kind of file, an altered one, another checkpoint, or a place that cannot be written.
    """
    header, pieces = container.from_bytes(read_regular(local_path(given)), given)
    model = read_checkpoint(checkpoint or header.model)
    if identity(model) != header.identity:
        raise UserError(
            f"{given} was coded with another checkpoint than {checkpoint or header.model} is now; give the same one "
            "with --checkpoint"
        )
    coder = RowCoder(model, batch_size)
    path = _target(header, output)
    coding = Coding(header.piece, header.order, header.steps)
    rows, tail = _decoded(coder, header, pieces, coding, groups)
    if groups is None and checksum([rows, tail]) != header.checksum:
        raise UserError(f"{given} does not decode to what was coded: its probabilities differ on this machine")
    _write(path, header, coder, rows, tail)
    return str(path)


def _decoded(
    coder: RowCoder, header: Header, pieces: Sequence[Code], coding: Coding, groups: int | None
) -> tuple[Tensor, Tensor]:
    """Rows (N, L) and tail (1, R) of a file."""
    rows = [torch.zeros(0, header.length, dtype=torch.int64)]
    n_last = int(header.tail > 0)
    with tqdm(total=header.n_rows, desc="decompress", unit="row", disable=None) as bar:
        for part in coder.decode(pieces[: len(pieces) - n_last], header.n_rows, header.length, coding, groups):
            rows.append(part)
            bar.update(len(part))
    tail = torch.zeros(1, 0, dtype=torch.int64)
    if n_last:
        (tail,) = coder.decode(pieces[-1:], 1, header.tail, coding, groups)
    return torch.cat(rows), tail


def _encoded(coder: RowCoder, content: Content, coding: Coding) -> Iterator[tuple[Code, float]]:
    yield from coder.encode(content.rows, coding)
    if content.tail.shape[1]:
        yield from coder.encode(content.tail, coding)


def _text(coder: RowCoder, given: str) -> Content:
    """A text file.

    Raises:
        UserError: no UTF-8, or a text that the tokenizer changes.
    """
    tokenizer = coder.system.tokenizer
    assert isinstance(tokenizer, TextTokenizer)
    raw = read_regular(local_path(given))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{given} is not text in UTF-8; this checkpoint codes text only") from None
    tokens = tokenizer.encode(text)
    if tokenizer.decode(tokens) != text:
        raise UserError(f"{given}: the checkpoint's tokenizer changes this text (lower case, spaces); nothing is coded")
    length = coder.layout.length
    n_rows = len(tokens) // length
    whole, tail = tokens[: n_rows * length].view(n_rows, length), tokens[None, n_rows * length :]
    return Content(whole, tail, len(raw))


def _images(coder: RowCoder, given: str) -> Content:
    """An image, or a set of images, of the size and channels of the checkpoint's.

    Raises:
        UserError: an image of another shape.
    """
    tokenizer, shape = coder.system.tokenizer, coder.system.facts.image_shape
    assert isinstance(tokenizer, ImageTokenizer)
    names: tuple[str, ...] = ()
    path = local_path(given)
    if path.is_file() and path.suffix.lower() not in (".zip", ".npz"):
        images, names = [read_pixels(path, given)], (path.name,)
        size = path.stat().st_size
    else:
        found = open_images(given)
        images = found.read(range(len(found)))
        size = sum(image.numel() for image in images)
        if isinstance(found, FolderSet):
            names = tuple(file.as_posix() for file in found.files)
            size = sum((found.root / file).stat().st_size for file in found.files)
    for row, image in enumerate(images):
        if tuple(image.shape) != shape:
            name = names[row] if names else f"image {row}"
            raise UserError(f"{given}: {name} is {_size(image.shape)}, the checkpoint codes images of {_size(shape)}")
    pixels = torch.stack(images)
    rows = torch.cat([tokenizer.encode(part.float() / 255) for part in pixels.split(256)])
    return Content(rows, torch.zeros(1, 0, dtype=torch.int64), size, names, pixels)


def _size(shape: Sequence[int] | None) -> str:
    assert shape is not None
    channels, height, width = shape
    return f"{width} x {height} in {'grey' if channels == 1 else f'{channels} channels'}"


def _summary(path: Path, coder: RowCoder, content: Content, n_bytes: int, n_bits: int, own: float) -> str:
    """Sizes, and the distance from the model's own log-likelihood."""
    lines = [
        f"{path}: {n_bytes:,} bytes, {content.size / n_bytes:.2f} times smaller than {content.size:,}",
        f"code {n_bits:,} bits, -log2 p {own:,.1f} bits ({n_bits / max(own, 1e-9) - 1:+.2%}); model "
        f"{_model_bytes(coder):,} bytes",
    ]
    if content.images is None:
        lines.append(f"{8 * n_bytes / max(content.size, 1):.4f} bits a byte of text")
        return "\n".join(lines)
    tokenizer = coder.system.tokenizer
    assert isinstance(tokenizer, ImageTokenizer)
    back = torch.cat([to_uint8(tokenizer.decode(part)) for part in content.rows.split(256)])
    error = (back.double() - content.images.double()).square().mean()
    numbers = content.images.numel()
    if not float(error):
        lines.append(f"{8 * n_bytes / numbers:.4f} bits a dimension, lossless")
    else:
        psnr = 20 * torch.log10(255 / error.sqrt())
        lines.append(f"{8 * n_bytes / numbers:.4f} bits a dimension, lossy: PSNR {psnr:.2f} dB of the tokenizer")
    return "\n".join(lines)


def _model_bytes(coder: RowCoder) -> int:
    """Size of the weights in float32."""
    return sum(4 * value.numel() for value in coder.system.network.parameters())


def _target(header: Header, output: str) -> Path:
    """Where the content goes: one file, or a folder for several images.

    Raises:
        UserError: it cannot be written, or holds files already.
    """
    if header.kind == "text" or header.n_rows == 1:
        endings = (".txt", "") if header.kind == "text" else (".png",)
        return check_writable(output, endings) if header.kind == "image" else local_path(output)
    path = local_path(output)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--output {output} exists; give a new folder for {header.n_rows} images")
    return path


def _write(path: Path, header: Header, coder: RowCoder, rows: Tensor, tail: Tensor) -> None:
    tokenizer = coder.system.tokenizer
    if header.kind == "text":
        assert isinstance(tokenizer, TextTokenizer)
        with atomic(path) as file:
            file.write(tokenizer.decode(torch.cat([rows.flatten(), tail.flatten()])).encode())
        return
    assert isinstance(tokenizer, ImageTokenizer)
    images = torch.cat([to_uint8(tokenizer.decode(part)) for part in rows.split(256)])
    if len(images) == 1:
        with atomic(path) as file:
            to_pil(images)[0].save(file, "PNG")
        return
    names = header.names or tuple(f"{row:06}.png" for row in range(len(images)))
    for name, image in zip(names, to_pil(images), strict=True):
        target = (path / name).with_suffix(".png")
        if not target.resolve().is_relative_to(path.resolve()):
            raise UserError(f"the file names an image {name!r} outside of the folder; nothing more is written")
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target, is_flushed=False) as file:
            image.save(file, "PNG")

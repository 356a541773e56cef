"""Images with captions, and embeddings of the captions stored on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from maskgen.core.errors import first_line
from maskgen.core.files import local_path, parse_json, read_regular
from maskgen.core.streams import Part
from maskgen.core.terminal import first_few, printable
from maskgen.data.base import DATASETS, DataError, ImageSplit, SplitName
from maskgen.data.cache import FORMAT, cached, write_tokens
from maskgen.data.image.folder import Folder, FolderSplit
from maskgen.data.listing import list_files
from maskgen.data.loader import Rows
from maskgen.tokenizers.text.encoder import BATCH, Padding, States, TextEncoder, width_of

DTYPE = "float16"
LIST = "captions.jsonl"
MOST_BYTES = 2**30
"""Bytes of a file of captions."""


class CaptionSettings(BaseModel):
    """The key `captions` of a recipe: the text encoder.

    With `embeddings`, those of the images are read from a file, and `encoder` embeds prompts only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str | None = Field(None, description="a text encoder of transformers, folder or hub id")
    subfolder: str = ""
    length: int = Field(77, ge=1, description="tokens of a caption")
    padding: Padding = "zero"
    states: States = Field("last", description="`projected`: CLIP's projected vector, then the states (aMUSEd)")
    embeddings: str | None = Field(None, description=".npy or .safetensors (N, S, C), in the order of the images")

    @model_validator(mode="after")
    def _has_source(self) -> CaptionSettings:
        if self.encoder is None and self.embeddings is None:
            raise ValueError("give an encoder, embeddings or both")
        return self

    def shape(self) -> tuple[int, int]:
        """(S, C) of an embedded caption, without loading the encoder; C of one on the hub is assumed to be 1,024.

        Raises:
            DataError: embeddings that cannot be read.
        """
        if self.embeddings is None:
            length = self.length + (self.states == "projected")
            return length, width_of(self.encoder or "", self.subfolder)
        _, length, width = read_embeddings(local_path(self.embeddings)).shape
        return length, width

    def build_encoder(self, device: torch.device | str = "cpu") -> TextEncoder:
        """The encoder of texts.

        Raises:
            DataError: the recipe names none.
            UserError: it cannot be loaded.
        """
        if self.encoder is None:
            raise DataError(
                "this recipe's captions were embedded elsewhere; give a prompt as a file of embeddings, .npy or "
                ".safetensors, or train with captions.encoder"
            )
        return TextEncoder(self.encoder, self.length, self.padding, self.subfolder, device, self.states)


class CaptionedSplit(FolderSplit):
    """Image files with a caption each, "" for none; `rows` numbers them among all images of their folder."""

    def __init__(self, images: FolderSplit, captions: tuple[str, ...], rows: tuple[int, ...]) -> None:
        super().__init__(images.root, images.files, images.labels, images.size, images.channels, images.crop)
        self.captions, self.rows = captions, rows

    def part(self, name: str, indices: Sequence[int]) -> Part:
        if name == "caption":
            return [self.captions[index] for index in indices]
        return super().part(name, indices)


@DATASETS.register("captioned_folder")
class CaptionedFolder(Folder):
    """Pictures below a folder with a caption each; subfolders are no classes.

    The caption of `a/boat.png` is the text of `a/boat.txt`, or its line in `captions.jsonl`, beside it or in a folder
    above: `{"file_name": "a/boat.png", "text": "a red boat"}`, the name relative to the list. The arguments are those
    of `folder`. An empty caption is none.
    """

    has_captions: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("image", "caption")
    other_endings: ClassVar[frozenset[str]] = frozenset({".txt", ".jsonl"})

    def _class_of(self, file: Path) -> str:  # noqa: ARG002 - no folder is a class
        return ""

    def _load(self, split: SplitName) -> ImageSplit:
        images = super()._load(split)
        assert isinstance(images, FolderSplit)
        number = {file: row for row, file in enumerate(sorted(self._files))}
        captions = tuple(self._caption(file) for file in images.files)
        return CaptionedSplit(images, captions, tuple(number[file] for file in images.files))

    @cached_property
    def _listed(self) -> dict[Path, str]:
        """The captions of all lists, by image file relative to the root."""
        found: dict[Path, str] = {}
        for file in list_files(self.root, {".jsonl"}).files:
            if file.name.lower() != LIST:
                continue
            for number, line in enumerate(_read(self.root / file).splitlines(), 1):
                if line.strip():
                    name, text = _entry(self.root / file, number, line)
                    found[Path(os.path.normpath(file.parent / name))] = text
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        strange = [printable(file.as_posix()) for file in self._listed if file not in set(self._files)]
        lines = [f"lines of {LIST} without an image: {len(strange):,} ({first_few(strange)})"] if strange else []
        return (*super().notes, *lines)

    def _caption(self, file: Path) -> str:
        if file in self._listed:
            return self._listed[file]
        names = (file.with_suffix(ending) for ending in (".txt", ".TXT", ".Txt"))
        beside = next((self.root / name for name in names if (self.root / name).is_file()), None)
        if beside is None:
            raise DataError(
                f"{printable(str(self.root / file))} has no caption: neither {printable(file.stem)}.txt beside it nor "
                f"a line in {LIST}; write one, empty for none"
            )
        return " ".join(_read(beside).split())


def _read(file: Path) -> str:
    try:
        return read_regular(file, MOST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{printable(str(file))} is no readable text: {first_line(error)}; save it as UTF-8") from None


def _entry(file: Path, number: int, line: str) -> tuple[str, str]:
    """File name and caption of a line."""
    try:
        entry = parse_json(line)
        name, text = entry["file_name"], entry["text"]
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f'{file}, line {number}: expected {{"file_name": "boat.png", "text": "a red boat"}}, got {line[:60]!r}'
        ) from None
    return name, " ".join(text.split())


@dataclass(frozen=True)
class CaptionTable:
    """Embedded captions (N, S, C), in a memory-mapped file or any array.

    `numbers` (n,) int64 picks rows of it; `encoder` is the fingerprint of what embedded them, "" if that is not known.
    """

    array: NDArray[np.generic]
    numbers: Tensor | None = None
    encoder: str = ""

    def __len__(self) -> int:
        return len(self.array) if self.numbers is None else len(self.numbers)

    @property
    def length(self) -> int:
        return int(self.array.shape[1])

    @property
    def width(self) -> int:
        return int(self.array.shape[2])

    def rows(self, index: Tensor) -> Tensor:
        """(B, S, C) float32 of the captions `index` (B,) int64."""
        number = index.cpu() if self.numbers is None else self.numbers[index.cpu()]
        return torch.from_numpy(np.asarray(self.array[number.numpy()], dtype=np.float32))


class CaptionedRows(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a data set with, for their labels, a pair: label and number of the caption in a table."""

    def __init__(self, data: Rows, numbers: Tensor) -> None:
        self.data, self.numbers = data, numbers

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x_0 (B, ...), and (B, 2) int64."""
        x_0, labels = self.data.__getitems__(indices)
        return x_0, torch.stack([labels, self.numbers[torch.as_tensor(indices)]], 1)


def embedded(
    splits: Sequence[ImageSplit],
    settings: CaptionSettings,
    cache_dir: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> tuple[CaptionTable, list[Tensor]]:
    """The captions of all splits as one table, and for each split the numbers (N,) int64 of its captions in it.

    Each distinct text is embedded once; embeddings are stored.

    Raises:
        DataError: embeddings that cannot be read or are of other images, or a cache that cannot be written.
        DiskFull: no room for the embeddings.
        UserError: an encoder that cannot be loaded.
    """
    captioned = [split for split in splits if isinstance(split, CaptionedSplit)]
    if settings.embeddings is not None:
        table = CaptionTable(read_embeddings(local_path(settings.embeddings)))
        n_images = sum(len(split) for split in captioned)
        if len(table.array) != n_images:
            raise DataError(
                f"{settings.embeddings} holds {len(table.array)} captions, the folder {n_images} images; they are "
                "matched in the order of the images' paths"
            )
        return table, [torch.tensor(split.rows) for split in captioned]
    texts = sorted({text for split in captioned for text in split.captions})
    number = {text: row for row, text in enumerate(texts)}
    table = _table(texts, settings.build_encoder(device), cache_dir, progress)
    return table, [torch.tensor([number[text] for text in split.captions]) for split in captioned]


def _table(texts: Sequence[str], encoder: TextEncoder, cache_dir: Path | None, progress: bool) -> CaptionTable:
    known = encoder.fingerprint()
    header: dict[str, object] = {
        "format": FORMAT,
        "encoder": known,
        "texts": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        "dtype": DTYPE,
        "rows": len(texts),
    }
    shape = (encoder.length, encoder.width)

    def batches() -> Iterator[Tensor]:
        for at in tqdm(range(0, len(texts), BATCH), desc="captions", unit="batch", disable=not progress):
            yield encoder.embed(texts[at : at + BATCH])

    def make(file: Path) -> dict[str, object]:
        return {"crc32": write_tokens(file, batches(), DTYPE), "length": shape[0] * shape[1]}

    file, _ = cached(header, cache_dir, make)
    array = np.memmap(file, DTYPE, mode="r", shape=(len(texts), *shape))
    return CaptionTable(array, encoder=known)


def read_embeddings(file: Path) -> NDArray[np.generic]:
    """(N, S, C) of a .npy file, mapped, or of the one tensor of a .safetensors file; one caption (S, C) is N = 1.

    Raises:
        DataError: no such file, another format or another shape.
    """
    try:
        if file.suffix == ".npy":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt") as stored:
                (name,) = stored.keys()
                array = stored.get_tensor(name).float().numpy()
        else:
            raise ValueError("it is neither .npy nor .safetensors")
        if array.ndim not in (2, 3) or array.dtype.kind != "f" or not array.size:
            raise ValueError(f"it holds {array.dtype} {array.shape}, not floats (N, S, C)")
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{file} holds no embedded captions: {first_line(error)}") from None
    captions: NDArray[np.generic] = array if array.ndim == 3 else array[None]
    return captions

"""The file format `.mgc`: a header that names content and model, and the code in pieces.

    b"MGC1" | CRC-32 of all that follows, 4 bytes | length of the header | header, JSON in zlib | pieces

Each piece is the code of some rows: the lengths of its words and of its exceptions, and both. Lengths are packed as
`coder.pack` does.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from maskgen.codec.coder import Code, number_at, pack
from maskgen.core.errors import UserError

MAGIC = b"MGC1"
MOST_HEADER = 2**24
"""Bytes of a header when it is unpacked."""


@dataclass(frozen=True)
class Header:
    """Description of a file's content.

    Attributes:
        model: name or path of the checkpoint, as the user gave it.
        identity: of the checkpoint's weights, recipe and tokenizer.
        kind: text or images.
        n_rows: rows of tokens.
        length: tokens in a row.
        tail: tokens in the last row, if it is shorter; 0 if it is not.
        piece: rows in a piece.
        order, steps: of the decoding; see `RowCoder`.
        checksum: CRC-32 of all tokens.
        names: of the images, or none.
    """

    model: str
    identity: str
    kind: Literal["text", "image"]
    n_rows: int
    length: int
    tail: int
    piece: int
    order: str
    steps: int
    checksum: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = (self.n_rows + 1, self.length, self.piece, self.steps, self.tail + 1)
        if self.kind not in ("text", "image") or not all(isinstance(n, int) and 0 < n < 2**40 for n in counts):
            raise ValueError("a count or the kind is impossible")


def to_bytes(header: Header, pieces: Sequence[Code]) -> bytes:
    """The content of a file."""
    described = zlib.compress(json.dumps(list(asdict(header).values()), separators=(",", ":")).encode(), 9)
    body = pack([len(described)]) + described
    for code in pieces:
        body += pack([len(code.words), len(code.exceptions)]) + code.words + code.exceptions
    return MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def from_bytes(content: bytes, name: str) -> tuple[Header, list[Code]]:
    """Header and pieces of a file.

    Raises:
        UserError: another kind of file, a truncated or an altered one.
    """
    if content[:4] != MAGIC:
        raise UserError(f"{name} is no file of maskgen compress")
    body = content[8:]
    if zlib.crc32(body) != int.from_bytes(content[4:8], "little"):
        raise UserError(f"{name} is truncated or altered: its checksum does not match")
    try:
        return _parse(body)
    except (ValueError, TypeError, IndexError, zlib.error) as error:
        raise UserError(f"{name} is damaged, or of another version of maskgen ({error})") from None


def _parse(body: bytes) -> tuple[Header, list[Code]]:
    length, at = number_at(body, 0)
    values: Any = json.loads(zlib.decompressobj().decompress(body[at : at + length], MOST_HEADER))
    keys: dict[str, Any] = dict(zip((field.name for field in fields(Header)), values, strict=True))
    header = Header(**keys | {"names": tuple(str(name) for name in keys["names"])})
    at, pieces = at + length, []
    while at < len(body):
        n_words, at = number_at(body, at)
        n_exceptions, at = number_at(body, at)
        end = at + n_words + n_exceptions
        pieces.append(Code(body[at : at + n_words], body[at + n_words : end]))
        at = end
    return header, pieces

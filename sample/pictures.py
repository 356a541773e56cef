"""Outputs of the programs: checked before the work begins."""

from __future__ import annotations

from pathlib import Path

from maskgen.core.errors import UserError
from maskgen.core.files import local_path, require_writable
from maskgen.evaluation.report import require_no_bench


def check_writable(name: str, endings: tuple[str, ...]) -> Path:
    """The path of an output that can be written; `""` among the endings allows a folder.

    Raises:
        UserError: another ending, a directory without write permission, or a folder that holds pictures.
    """
    path = local_path(name)
    if path.suffix.lower() not in endings:
        shown = ", ".join(ending or "none for a folder" for ending in endings)
        raise UserError(f"cannot write {name!r}: the ending must be one of: {shown}")
    if path.suffix and path.is_dir():
        raise UserError(f"cannot write {name!r}: it is a directory")
    require_writable(path.parent if path.suffix else path, name)
    if path.suffix == ".json":
        require_no_bench(path)
    if not path.suffix and any(path.glob("*.png")):
        raise UserError(f"cannot write {name!r}: it holds pictures already; choose an empty folder")
    return path

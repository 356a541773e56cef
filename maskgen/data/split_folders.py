"""Folders named after splits (`train/`, `Validation/`, `seg_test/`), recognised by their usual names in any case."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maskgen.core.terminal import printable
from maskgen.data.base import DataError
from maskgen.data.listing import folders_in

Role = Literal["train", "validation", "test"]

_WORDS: dict[Role, str] = {
    "train": "train|training|trainval|trn",
    "validation": "val|valid|validation|validate|dev|devel|development|eval|evaluation|hold[-_ .]?out|held[-_ .]?out",
    "test": "test|testing|tst",
}
_NAMES = {
    role: re.compile(
        rf"(?:\d{{1,3}}[-_ .]+)?(?P<prefix>.+[-_ .])?(?:{words})(?:[-_ .]*(?:set|split|data|images?|imgs?|files?|\d))*",
        re.IGNORECASE,
    )
    for role, words in _WORDS.items()
}


@dataclass(frozen=True)
class SplitFolders:
    """Names of the folders of the splits, "" for one that is not there; `others` are folders of no split."""

    train: str
    validation: str
    test: str
    others: tuple[str, ...] = ()

    @property
    def held_out(self) -> str:
        """The folder of images that are not trained on: `test/`, or `validation/` if there is no other."""
        return self.test or self.validation

    @property
    def used(self) -> tuple[str, str]:
        """The folders of training and held-out images."""
        return self.train, self.held_out

    @property
    def unused(self) -> list[str]:
        """The other folders beside them."""
        return sorted({*self.others, self.validation} - {"", *self.used})


def find_splits(root: Path, *, has_loose: bool = False) -> SplitFolders | None:
    """The splits among the top folders of `root`; None if these are no splits.

    Args:
        root: a folder.
        has_loose: data lie in `root` itself.

    Raises:
        DataError: every top folder is named like a split, but they make no training and held-out set; or two folders
            could be the same split.
    """
    names = folders_in(root)
    for prefix in sorted({prefix for name in names for prefix in _prefixes(name)}):  # "" comes first
        roles = {role: [name for name in names if _has(name, role, prefix)] for role in _NAMES}
        if roles["train"] and (roles["test"] or roles["validation"]):
            return _chosen(root, names, roles)
    plain = [name for name in names if any(_has(name, role, "") for role in _NAMES)]
    if names and plain == names and not has_loose:
        raise DataError(
            f"{printable(str(root))} holds only {_listed(names)}, named like splits, but not one for training and one "
            "held out (train/ and test/, val/, validation/ or dev/): add the other, or give the folder inside to have "
            "it divided; folders of classes need other names"
        )
    if len(names) == 1 and not has_loose:
        _refuse_a_folder_above(root, names[0])
    return None


def _chosen(root: Path, names: Collection[str], roles: dict[Role, list[str]]) -> SplitFolders:
    if len(roles["validation"]) > 1 and roles["test"]:
        roles["validation"] = []  # which one does not matter
    for role, found in roles.items():
        if len(found) > 1:
            raise DataError(
                f"{printable(str(root))} holds {_listed(found)}, which could each be its {role} split; rename or move "
                "all but one"
            )
    used = {role: found[0] if found else "" for role, found in roles.items()}
    others = tuple(name for name in names if name not in used.values())
    return SplitFolders(used["train"], used["validation"], used["test"], others)


def _refuse_a_folder_above(root: Path, name: str) -> None:
    """A folder whose only folder has the splits would be a data set of one class."""
    try:
        inner = find_splits(root / name)
    except DataError:
        return
    if inner is not None:
        place = printable(str(root / name))
        raise DataError(
            f"{printable(str(root))} holds only {printable(name)}/, whose folders are splits ({_listed(inner.used)}); "
            f"give {place} as path"
        )


def _prefixes(name: str) -> set[str]:
    """Prefixes with which a name is that of a split: `seg_` of `seg_train`."""
    matches = (pattern.fullmatch(name) for pattern in _NAMES.values())
    return {found["prefix"] or "" for found in matches if found}


def _has(name: str, role: Role, prefix: str) -> bool:
    found = _NAMES[role].fullmatch(name)
    return found is not None and (found["prefix"] or "") == prefix


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"{printable(name)}/" for name in names)

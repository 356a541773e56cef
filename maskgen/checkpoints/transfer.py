"""Weights of one network as the start of another: equal parts are taken, tables row by row, positions interpolated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.errors import UserError
from maskgen.core.terminal import first_few
from maskgen.models.tables import RowKind, tables_of

Grid = tuple[int, ...]
NEW = -1
"""The source of a row that the other network has not."""


@dataclass(frozen=True)
class RowSources:
    """Where the rows of a kind come from.

    Attributes:
        sources: for each row of the network its row in the other one, or `NEW`.
        n_before: rows that the other network has.
        names: of the rows, for messages.
    """

    sources: Sequence[int] = ()
    n_before: int = 0
    names: Sequence[str] = ()

    @classmethod
    def by_name(cls, before: Sequence[str], after: Sequence[str]) -> RowSources:
        """Rows with the same names."""
        index = {name: row for row, name in enumerate(before)}
        return cls([index.get(name, NEW) for name in after], len(before), after)

    @property
    def new(self) -> list[str]:
        """Names of the rows that are new."""
        return [name for name, source in zip(self.names, self.sources, strict=True) if source == NEW]


@dataclass(frozen=True)
class Match:
    """How the data of two networks correspond.

    Attributes:
        tokens, classes: rows of tables.
        grids: of the tokens, before and after; None without one.
        skip: patterns of tensors that are not taken.
    """

    tokens: RowSources = RowSources()
    classes: RowSources = RowSources()
    grids: tuple[Grid, Grid] | None = None
    skip: tuple[str, ...] = ()


@dataclass
class Transfer:
    """A filled state, and what of it is not as it was in the other network.

    Attributes:
        state: every tensor of the network by name.
        changed: names of tensors with rows or values of their own.
        notes: one line about each kind of change.
    """

    state: dict[str, Tensor]
    changed: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def transfer(network: nn.Module, tensors: Mapping[str, Tensor], match: Match, source: str) -> Transfer:
    """Fill a network from the tensors of another one; the network itself is not changed.

    Args:
        network: as built, its values are those of new parts.
        tensors: of the other network.
        match: how rows and grids correspond.
        source: name of the other network in messages.

    Raises:
        UserError: a part that is missing, left over or of another shape, and not named by `match.skip`.
    """
    own, tables = network.state_dict(), tables_of(network)
    done = Transfer(dict(own))
    faults = []
    for name, value in own.items():
        if _is_skipped(name, match.skip):
            done.changed.add(name)
        elif name not in tensors:
            faults.append(f"{name} is missing")
        else:
            given = tensors[name].to(value)
            filled = _fitted(name, given, value, tables.get(name), match)
            if filled is None:
                faults.append(f"{name} is {_shape(given)}, here {_shape(value)}")
                continue
            done.state[name] = filled
            if filled.shape != given.shape or not torch.equal(filled, given):
                done.changed.add(name)
    faults += [f"{name} is left over" for name in tensors if name not in own and not _is_skipped(name, match.skip)]
    if faults:
        raise UserError(_refusal(network, source, faults, len(own)))
    done.notes = _notes(done, tables, match)
    return done


def _is_skipped(name: str, skip: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in skip)


def _fitted(name: str, given: Tensor, own: Tensor, kinds: tuple[RowKind, ...] | None, match: Match) -> Tensor | None:
    """A tensor of the other network in the shape of the network's own; None where that has no meaning."""
    if kinds is not None:
        return _rows(given, own, kinds, match)
    if match.grids is not None and name.endswith("positions") and given.ndim == 2 and match.grids[0] != match.grids[1]:
        return _interpolated(given, own, *match.grids)
    return given if given.shape == own.shape else None


def _rows(given: Tensor, own: Tensor, kinds: tuple[RowKind, ...], match: Match) -> Tensor | None:
    """A table, row by row: known rows are taken, new classes begin as "no class", other new rows as initialised."""
    n_before = {"token": match.tokens.n_before, "class": match.classes.n_before, "mask": 1, "null": 1}
    n_after = {"token": len(match.tokens.sources), "class": len(match.classes.sources), "mask": 1, "null": 1}
    before, after = _starts(kinds, n_before, len(given)), _starts(kinds, n_after, len(own))
    if before is None or after is None or given.shape[1:] != own.shape[1:]:
        return None
    rows = own.clone()
    for kind in kinds:
        first, start = before[kind], after[kind]
        if kind in ("token", "class"):
            if kind == "class" and "null" in kinds:
                rows[start : start + n_after[kind]] = given[before["null"]]
            sources = torch.tensor((match.tokens if kind == "token" else match.classes).sources, dtype=torch.long)
            places = (sources != NEW).nonzero()[:, 0]
            rows[start + places] = given[first + sources[places]]
        elif kind in n_before:
            rows[start] = given[first]
    return rows


def _starts(kinds: tuple[RowKind, ...], counts: Mapping[str, int], n_rows: int) -> dict[RowKind, int] | None:
    """The first row of each kind, where `unused` are the rows that are left; None for another number of rows."""
    n_unused = n_rows - sum(counts.get(kind, 0) for kind in kinds)
    if n_unused < 0 or (n_unused and "unused" not in kinds):
        return None
    starts: dict[RowKind, int] = {}
    at = 0
    for kind in kinds:
        starts[kind] = at
        at += counts.get(kind, n_unused)
    return starts


def _interpolated(given: Tensor, own: Tensor, before: Grid, after: Grid) -> Tensor | None:
    """Learned positions (n + L, D) of another grid, bicubic; the n in front are kept (ViT, arXiv 2010.11929)."""
    n_before, n_after = torch.Size(before).numel(), torch.Size(after).numel()
    n_front = len(given) - n_before
    if len(before) != 2 or n_front < 0 or len(own) - n_after != n_front or given.shape[1] != own.shape[1]:
        return None
    image = given[n_front:].T.unflatten(1, before)[None].float()
    resized = F.interpolate(image, after, mode="bicubic", align_corners=False)[0].flatten(1).T
    return torch.cat([given[:n_front], resized.to(given)])


def _refusal(network: nn.Module, source: str, faults: list[str], n_tensors: int) -> str:
    name = type(network).__name__
    if len(faults) > n_tensors:
        return f"{source} holds the weights of another network than {name}; start from one of the same model"
    rest = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return (
        f"{source} does not fill the {name}: {'; '.join(faults[:3])}{rest}. Take the sizes of its recipe, or name what "
        "is initialised instead: start.skip=[PATTERN, ...]"
    )


def _notes(done: Transfer, tables: Mapping[str, tuple[RowKind, ...]], match: Match) -> list[str]:
    notes = []
    used = {kind for kinds in tables.values() for kind in kinds}
    for kind, rows, word in (("class", match.classes, "classes"), ("token", match.tokens, "tokens")):
        if kind in used and rows.new:
            n_kept = len(rows.names) - len(rows.new)
            notes.append(f"{word}: {n_kept:,} of {len(rows.names):,} taken, new rows for {first_few(rows.new)}")
    if match.grids is not None and match.grids[0] != match.grids[1]:
        before, after = (" x ".join(map(str, grid)) for grid in match.grids)
        notes.append(f"positions: interpolated from a grid {before} to {after}")
    skipped = sorted(name for name in done.changed if _is_skipped(name, match.skip))
    if skipped:
        notes.append(f"initialised, not taken: {first_few(skipped)}")
    return notes


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"

"""From what a user writes for a class to its id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskgen.core.errors import UserError, closest
from maskgen.core.predictions import NULL
from maskgen.pipelines.arguments import wrong_type

Classes = Sequence[str | int] | str | int
"""Names or ids of classes; `id:N` and `name:TEXT` where a number could be either."""


@dataclass(frozen=True)
class ClassNames:
    """The classes of a checkpoint.

    Attributes:
        names: in the order of their ids.
        has_null: whether the network also generates without a class.
    """

    names: tuple[str, ...]
    has_null: bool = True

    def ids(self, classes: Classes | None) -> list[int]:
        """The ids of some classes in order; all of them for None or `all`.

        Raises:
            UserError: an unknown or ambiguous class, or a wrong type.
        """
        if isinstance(classes, bool) or not isinstance(classes, str | int | Sequence | None):
            raise wrong_type("classes", classes, "a class name, an id, or a list of these")
        chosen = [classes] if isinstance(classes, str | int) else list(classes or ["all"])
        return [label for one in chosen for label in self._ids_of(one)]

    def _ids_of(self, one: str | int) -> list[int]:
        """The id of a name or a number; several for `all`."""
        if isinstance(one, bool) or not isinstance(one, str | int):
            raise wrong_type("classes", one, "a class name, an id, or a list of these")
        if isinstance(one, int):
            return [NULL] if one == NULL and self.has_null else [self._by_id(str(one))]
        text = one.strip()
        named = self._by_name(text)
        if text.isdecimal() and int(text) < len(self.names):
            return [self._number(text, named)]
        if named is not None:
            return [named]
        kind, _, rest = text.partition(":")
        if kind == "id":
            return [self._by_id(rest)]
        if kind == "name" and (label := self._by_name(rest)) is not None:
            return [label]
        if text.lower() == "all":
            return list(range(len(self.names)))
        if text.lower() in ("none", "null") and self.has_null:
            return [NULL]
        raise self._unknown(one)

    def _number(self, text: str, named: int | None) -> int:
        """The id of a number that is an id and may be a name as well.

        Raises:
            UserError: it is the id of one class and the name of another.
        """
        number = int(text)
        if named is not None and named != number:
            raise UserError(
                f"class {text!r} is ambiguous: it names class {named} and is the id of class {self.names[number]!r}; "
                f"write name:{text} or id:{number}"
            )
        return number

    def _by_name(self, text: str) -> int | None:
        """The id of a name, spelled exactly or in another case."""
        if text in self.names:
            return self.names.index(text)
        lower = [name.lower() for name in self.names]
        return lower.index(text.lower()) if text.lower() in lower else None

    def _by_id(self, text: str) -> int:
        if not text.isdecimal() or int(text) >= len(self.names):
            raise self._unknown(text)
        return int(text)

    def _unknown(self, name: str | int) -> UserError:
        shown = ", ".join(f"{index} {known}" for index, known in enumerate(self.names[:20]))
        more = f", ... {len(self.names) - 1}" if len(self.names) > 20 else ""
        return UserError(f"unknown class {str(name)!r}; {closest(str(name), self.names)}choose from all, {shown}{more}")

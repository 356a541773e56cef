"""The one reader of YAML: plain values only, and bounded, so that no text from outside can hang or exhaust the program.

Aliases are allowed, but what they expand to counts: a few hundred bytes of nested aliases can stand for billions of
values.
"""

from __future__ import annotations

from typing import Any

import yaml

from maskgen.core.errors import UserError

MOST_CHARACTERS = 2**20
MOST_VALUES = 10_000
DEEPEST = 50

_FAULTS = (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError)
"""Errors of PyYAML: besides its own those of constructors (a date with month 13, an integer of 5,000 digits)."""


class YamlError(UserError):
    """A text that is not YAML, or more than is read."""


def read_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        YamlError: not YAML, not plain values, or beyond the limits of size, depth or expanded aliases.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"{len(text):,} characters of YAML; at most {MOST_CHARACTERS:,} are read")
    try:
        return yaml.load(text, _Bounded)
    except YamlError:
        raise
    except _FAULTS as error:
        said = " ".join(str(error).split())
        raise YamlError(said if isinstance(error, yaml.YAMLError) else f"a value cannot be read: {said}") from None


class _Bounded(yaml.SafeLoader):
    """PyYAML's safe loader with limits on depth and on the number of values, aliases expanded."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._count = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._count += 1
        if self._depth > DEEPEST:
            raise YamlError(f"YAML nested more than {DEEPEST} levels deep")
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and not is_alias:
            self._sizes[id(node)] = size = 1 + sum(self._sizes[id(child)] for child in _children(node))
            if max(size, self._count) > MOST_VALUES:
                raise YamlError(f"YAML of more than {MOST_VALUES:,} values, aliases expanded")
        elif is_alias and id(node) not in self._sizes:
            raise YamlError("a YAML alias that contains itself")
        return node


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []

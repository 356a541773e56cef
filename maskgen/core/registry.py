"""Names in a recipe -> what they build, with every argument checked before anything is built."""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from maskgen.core import catalogue
from maskgen.core.errors import UserError, closest, unknown
from maskgen.core.renamed import with_new_names

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
Spec = str | Mapping[str, object]
"""What a recipe says of one part: ``cosine`` or ``{type: polynomial, power: 2}``."""


class SpecError(UserError):
    """A part of a recipe that cannot be built; the message names the key, the value and the choices."""


class Registry(Generic[T]):
    """The named classes (or functions) of one kind.

    Args:
        kind: what an entry is called in messages, ``"schedule"``.
        base: the type that parameters of this kind are annotated with, or with a required subclass: they then
            accept a nested spec.
        derived: constructor arguments that are computed from other parts (a vocabulary size); never keys.
        home: folder and variable of the registry, ``maskgen.models:MODELS``. Entries of the folder are found by
            `catalogue.entries` and imported when they are used. None has only what is registered at run time.
        shared: keys that every entry accepts and no constructor takes, with their types; None where they are left out.
    """

    _by_base: typing.ClassVar[dict[type, Registry[Any]]] = {}

    def __init__(
        self,
        kind: str,
        base: type | None = None,
        derived: tuple[str, ...] = (),
        home: str | None = None,
        shared: Mapping[str, type] | None = None,
    ) -> None:
        self.kind = kind
        self.shared = shared or {}
        self.derived = derived
        self.home = home
        self._entries: dict[str, Callable[..., T]] = {}
        self._renamed: dict[str, Mapping[str, str]] = {}
        self._schemas: dict[str, type[BaseModel]] = {}
        if base is not None:
            Registry._by_base[base] = self

    def register(self, name: str, renamed: Mapping[str, str] | None = None) -> Callable[[C], C]:
        """Decorator: the class or function is called ``name`` in recipes.

        Args:
            name: of the entry.
            renamed: former keys that are still accepted, with a notice, and their new names.
        """

        def add(entry: C) -> C:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            self._renamed[name] = renamed or {}
            return entry

        return add

    def names(self, required: type | None = None) -> list[str]:
        """Sorted; only classes of the type `required` (and functions), if given."""
        names = sorted({*self._shipped, *self._entries})
        return names if required is None else [name for name in names if _is_a(self.get(name), required)]

    def get(self, name: str) -> Callable[..., T]:
        """The class or function of an entry, imported if it has not been.

        Raises:
            SpecError: no such entry.
        """
        if name not in self._entries and name in self._shipped:
            importlib.import_module(self._shipped[name].module)
        if name not in self._entries:
            raise SpecError(unknown(self.kind, name, self.names()))
        return self._entries[name]

    @property
    def _shipped(self) -> Mapping[str, catalogue.Entry]:
        """What the package's own files register, imported or not."""
        return {} if self.home is None else catalogue.entries(self.home)

    def summary(self, name: str) -> str:
        """First line of the entry's docstring."""
        return (inspect.getdoc(self.get(name)) or "").split("\n", 1)[0]

    def arguments(self, name: str) -> list[str]:
        """The keys an entry accepts."""
        return list(self._schema(name).model_fields)

    def hints(self, name: str) -> dict[str, object]:
        """The types of the keys an entry accepts."""
        return {key: field.annotation for key, field in self._schema(name).model_fields.items()}

    @staticmethod
    def of(hint: object) -> Registry[Any] | None:
        """The registry whose entries are built for parameters of a type; None for other types."""
        base = next((base for base in getattr(hint, "__mro__", ()) if base in Registry._by_base), None)
        return None if base is None else Registry._by_base[base]

    def check(self, spec: Spec, path: str = "", required: type | None = None) -> tuple[str, dict[str, Any]]:
        """The entry's name and its validated arguments (defaults left out, nested parts built).

        Raises:
            SpecError: unknown entry or key, wrong type, impossible value; an entry of another type than `required`.
        """
        name, arguments = self._split(spec, path, required)
        if name not in self.names(required):
            raise SpecError(f"{_at(path)}a {self.kind} here is {' or '.join(self.names(required))}")
        self.get(name)  # an entry that is imported has said which keys are renamed
        try:
            arguments = with_new_names(arguments, self._renamed.get(name, {}), path or self.kind)
        except ValueError as error:
            raise SpecError(str(error)) from None
        try:
            checked = self._schema(name)(**arguments)
        except ValidationError as error:
            schema = self._schema(name)
            lines = [explain([fault], path, _keys_at(schema, fault["loc"])) for fault in error.errors()]
            raise SpecError("\n".join(lines)) from None
        return name, {key: getattr(checked, key) for key in checked.model_fields_set}

    def build(self, spec: Spec, path: str = "", **derived: object) -> T:
        """Build from a spec.

        Raises:
            SpecError: see `check`; also a value that the constructor refuses.
        """
        name, arguments = self.check(spec, path)
        entry = self.get(name)
        parameters = inspect.signature(entry).parameters
        arguments = {key: value for key, value in arguments.items() if key not in self.shared}
        try:
            return entry(**arguments, **{key: value for key, value in derived.items() if key in parameters})
        except ValueError as error:
            raise SpecError(f"{_at(path)}{error}") from error

    def _split(self, spec: Spec, path: str, required: type | None) -> tuple[str, dict[str, object]]:
        choices = ", ".join(self.names(required))
        name: object
        arguments: dict[str, object]
        if isinstance(spec, str):
            name, arguments = spec, {}
        elif isinstance(spec, Mapping):
            arguments = {str(key): value for key, value in spec.items()}
            name = arguments.pop("type", None)
            if not isinstance(name, str):
                raise SpecError(f"{_at(path)}a {self.kind} needs `type:`; choose from {choices}")
        else:
            raise SpecError(f"{_at(path)}a {self.kind} is a name or a mapping with `type:`, got {spec!r}")
        if name not in self._entries and name not in self._shipped:
            raise SpecError(_at(path) + unknown(self.kind, name, self.names(required)))
        return name, arguments

    def _schema(self, name: str) -> type[BaseModel]:
        if name not in self._schemas:
            self._schemas[name] = _schema_of(self.get(name), f"{self.kind}:{name}", self.derived, self.shared)
        return self._schemas[name]


def _is_a(entry: Callable[..., object], required: type) -> bool:
    """Whether an entry is a class of a type, or a function."""
    return not inspect.isclass(entry) or issubclass(entry, required)


def explain(faults: Sequence[ErrorDetails], path: str, accepted: list[str]) -> str:
    """One line a fault: key path, what is wrong, what is accepted."""
    lines = []
    for fault in faults:
        key = ".".join([path, *map(str, fault["loc"])] if path else map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            hint = closest(str(fault["loc"][-1]), accepted)
            lines.append(f"{key}: unknown key; {hint}accepted here: {', '.join(sorted(accepted)) or 'none'}")
        elif fault["type"] == "missing":
            lines.append(f"{key}: missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            is_told = fault["type"] == "value_error" and ", got " in message  # a part's own words, of its own argument
            got = "" if is_told else f", got {_short(fault['input'])}"
            hint = (
                closest(str(fault["input"]), re.findall("'([^']+)'", message))
                if fault["type"] == "literal_error"
                else ""
            )
            lines.append(f"{key}: {message[0].lower()}{message[1:]}{got}{'; ' + hint.strip() if hint else ''}")
    return "\n".join(lines)


def _keys_at(schema: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The keys accepted beside a faulty one: an argument may be settings with keys of their own."""
    for key in loc[:-1]:
        field = schema.model_fields.get(str(key))
        hints = () if field is None else (field.annotation, *get_args(field.annotation))
        inner = [hint for hint in hints if isinstance(hint, type) and issubclass(hint, BaseModel)]
        if not inner:
            break
        schema = inner[0]
    return list(schema.model_fields)


def _schema_of(
    entry: Callable[..., object], title: str, derived: tuple[str, ...], shared: Mapping[str, type]
) -> type[BaseModel]:
    hints = typing.get_type_hints(entry.__init__ if inspect.isclass(entry) else entry)
    fields: dict[str, Any] = {key: (hint | None, None) for key, hint in shared.items()}
    for key, parameter in inspect.signature(entry).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:  # **sizes: Unpack[Sizes], keys that several entries share
            (shared,) = get_args(hints[key])
            fields |= {name: (_nested(hint), None) for name, hint in typing.get_type_hints(shared).items()}
        elif key not in derived:
            required = parameter.default is inspect.Parameter.empty
            fields[key] = (_nested(hints[key]), ... if required else parameter.default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(), allow_inf_nan=False)
    schema: type[BaseModel] = create_model(title, __config__=config, **fields)
    return schema


def _nested(hint: Any) -> Any:
    """The annotation, with types that have a registry made buildable from a spec."""
    registry = Registry.of(hint)
    if registry is not None:
        return Annotated[
            hint, BeforeValidator(lambda spec: spec if isinstance(spec, hint) else _part(registry, spec, hint))
        ]
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(_nested(part) for part in get_args(hint))]  # noqa: UP007 - built at run time
    return hint


def _part(registry: Registry[Any], spec: Spec, required: type) -> object:
    """Build a nested part, which must be of a type."""
    registry.check(spec, required=required)
    return registry.build(spec)


def _at(path: str) -> str:
    return f"{path}: " if path else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

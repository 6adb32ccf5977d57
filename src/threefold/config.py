"""Settings: frozen dataclasses read from plain dictionaries. An unknown key is an error that names its path.

The same dictionaries are accepted by the library, the command line and HTTP.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, Union, get_args, get_origin

from threefold.errors import ConfigError


class Settings:
    """Mixin for frozen dataclasses: strict reading from and writing to JSON-able dictionaries."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], path: str = "") -> Self:
        """Build from a dictionary. `path` is where it stands in a larger file, for error messages."""
        built: Self = _build(cls, data, path)
        return built

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        plain: dict[str, Any] = _plain(self)
        return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _build(cls: Any, data: Any, path: str) -> Any:
    """An instance of the dataclass `cls`."""
    where = path or cls.__name__
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a table of settings, got {data!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields), key=str)
    if unknown:
        raise ConfigError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(fields))}")
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: setting {missing[0]!r} is required")
    try:
        return cls(**values)
    except ConfigError as error:  # a check of __post_init__: say where
        raise ConfigError(f"{where}: {error}" if path else str(error)) from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type, or an error. Only the types that settings use."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, path)
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(repr, get_args(hint)))}")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _convert(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    if origin is not None:
        raise ConfigError(f"{path}: {value!r} has the wrong type")
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, path)
    return _convert_scalar(hint, value, path)


def _convert_union(hint: Any, value: Any, path: str) -> Any:
    if value is None and type(None) in get_args(hint):
        return None
    choices = [choice for choice in get_args(hint) if choice is not type(None)]
    if len(choices) == 1:
        return _convert(choices[0], value, path)
    for choice in choices:
        try:
            return _convert(choice, value, path)
        except ConfigError:
            continue
    raise ConfigError(f"{path}: {value!r} has the wrong type")


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{path}: a whole number of {value.bit_length()} bits is too large") from None
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Chunking(Settings):
    """How documents are cut. Sizes in tokens of the collection's model.

    max_tokens  no chunk has more (specials included)
    overlap     tokens that neighbouring chunks share at most, rounded to sentences
    """

    max_tokens: int = 256
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 8:
            raise ConfigError(f"max_tokens must be at least 8; got {self.max_tokens}")
        if not 0 <= self.overlap < self.max_tokens:
            raise ConfigError(f"overlap must be from 0 to max_tokens - 1; got {self.overlap}")


#: How the token vectors of a collection are kept. `none` stores no multi vectors.
MultiStorage = Literal["float16", "int8", "int4", "none"]

#: Most token vectors that become one.
MOST_POOLED = 16


@dataclass(frozen=True, slots=True)
class Manifest(Settings):
    """What a collection was built with. Opening it with anything else is refused by name.

    model           name or path of the model, for messages
    model_hash      fingerprint of its weights
    tokenizer_hash  fingerprint of its tokenizer
    dense_dim       dimensions of dense vectors, 0 when not stored
    multi_dim       dimensions of token vectors, 0 when not stored
    vocab           size of the vocabulary, 0 when sparse weights are not stored
    multi_pool      of so many token vectors of a chunk one is kept, see `threefold.score.pool`
    """

    model: str
    model_hash: str
    tokenizer_hash: str
    dense_dim: int
    multi_dim: int
    vocab: int
    revision: str = ""
    precision: str = "float32"
    multi_storage: MultiStorage = "int8"
    multi_pool: int = 1
    chunking: Chunking = field(default_factory=Chunking)
    format_version: int = 1
    engine: str = ""

    def __post_init__(self) -> None:
        whole = isinstance(self.multi_pool, int) and not isinstance(self.multi_pool, bool)
        if not whole or not 1 <= self.multi_pool <= MOST_POOLED:
            raise ConfigError(f"multi_pool must be a whole number from 1 to {MOST_POOLED}; got {self.multi_pool!r}")


#: Conditions inside conditions: more than a person writes, and less than Python recurses.
DEEPEST = 64

Operator = Literal["eq", "in", "gt", "gte", "lt", "lte", "and", "or", "not"]


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on the payload of a chunk. Every engine translates this tree.

    Leaves have `field` and `value`; `and`, `or`, `not` have `parts`. Fields are `document_id`, `source`,
    `title`, `language`, `number`, `content_hash`, or any key of the metadata, which may be nested: `author.name`.
    """

    operator: Operator
    field: str = ""
    value: Any = None
    parts: tuple[Filter, ...] = ()

    @classmethod
    def parse(cls, data: Mapping[str, Any] | None) -> Filter | None:
        """From the dictionary form: `{"language": "de", "year": {"gte": 2020}, "tag": {"in": ["a", "b"]}}`.

        Keys are joined by `and`; `{"or": [..]}`, `{"and": [..]}`, `{"not": {..}}` combine. None or {} is no filter.
        """
        return cls._parse(data, 0)

    @classmethod
    def _parse(cls, data: Mapping[str, Any] | None, depth: int) -> Filter | None:
        if not data:
            return None
        if depth > DEEPEST:
            raise ConfigError(f"filter: conditions are nested more than {DEEPEST} deep")
        if not isinstance(data, Mapping):
            raise ConfigError(f"filter: expected a table of conditions, got {data!r}")
        if unnamed := [key for key in data if not isinstance(key, str) or not key]:
            raise ConfigError(f"filter: a condition needs the name of a field; got {unnamed[0]!r}")
        parts = [cls._condition(key, value, depth + 1) for key, value in data.items()]
        return parts[0] if len(parts) == 1 else cls("and", parts=tuple(parts))

    @classmethod
    def _condition(cls, key: str, value: Any, depth: int) -> Filter:
        if key in ("and", "or"):
            if not isinstance(value, list | tuple) or not value:
                raise ConfigError(f"filter.{key}: expected a list of conditions, got {value!r}")
            parts = [cls._parse(item, depth) for item in value]
            if any(part is None for part in parts):
                raise ConfigError(f"filter.{key}: empty condition")
            return cls("and" if key == "and" else "or", parts=tuple(part for part in parts if part))
        if key == "not":
            inner = cls._parse(value, depth)
            if inner is None:
                raise ConfigError("filter.not: empty condition")
            return cls("not", parts=(inner,))
        if not isinstance(value, Mapping):
            return cls("eq", key, _scalar(key, value))
        if not value:
            raise ConfigError(f"filter.{key}: empty condition")
        leaves = [cls._comparison(key, operator, operand) for operator, operand in value.items()]
        return leaves[0] if len(leaves) == 1 else cls("and", parts=tuple(leaves))

    @classmethod
    def _comparison(cls, key: str, operator: str, operand: Any) -> Filter:
        if operator not in ("eq", "in", "gt", "gte", "lt", "lte"):
            raise ConfigError(f"filter.{key}: unknown operator {operator!r}; known are eq, in, gt, gte, lt, lte")
        if operator == "in":
            if not isinstance(operand, list | tuple):
                raise ConfigError(f"filter.{key}.in: expected a list, got {operand!r}")
            return cls("in", key, tuple(_scalar(key, item) for item in operand))
        if operator != "eq" and (isinstance(operand, bool) or not isinstance(operand, int | float)):
            raise ConfigError(f"filter.{key}.{operator}: expected a number, got {operand!r}")
        return cls(typing.cast(Operator, operator), key, _scalar(key, operand))


def _scalar(key: str, value: Any) -> str | int | float | bool:
    if isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(f"filter.{key}: expected text, a number or a truth value, got {value!r}")

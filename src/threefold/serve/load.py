"""Settings from a TOML file, the environment and flags, in this order: what comes later wins.

Before all of them come the variables that every command knows: `THREEFOLD_MODEL`, `_DEVICE`, `_PRECISION`.

An empty variable is as if it were not set: composing tools write `PORT=` for what nobody has given.

Every setting of `ServeConfig` has one name in all three: `max_inputs`, `THREEFOLD_SERVE_MAX_INPUTS`,
`--set max_inputs=64`; those of the queue are `limits.queued_tokens`, `THREEFOLD_SERVE_LIMITS_QUEUED_TOKENS`.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from threefold.errors import ConfigError
from threefold.serve.queue import Limits
from threefold.serve.settings import ServeConfig

PREFIX = "THREEFOLD_SERVE_"
#: Variables of every command, the weakest of all.
SHARED = {"THREEFOLD_MODEL": "model", "THREEFOLD_DEVICE": "device", "THREEFOLD_PRECISION": "precision"}
#: Names the file, so it is no setting of the file.
FILE_VARIABLE = PREFIX + "CONFIG"


def load_config(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> ServeConfig:
    """The settings of a server.

    flags  dotted names; a value that is text is read as the setting's type, None is not given
    """
    shared = {name: environment[variable] for variable, name in SHARED.items() if environment.get(variable)}
    table = shared | (_read(file) if file else {})
    for variable, text in sorted(environment.items()):
        if text and variable.startswith(PREFIX) and variable != FILE_VARIABLE:
            _put(table, _name_of(variable), text, variable)
    for name, value in flags.items():
        if value is not None:
            _put(table, name, value, name)
    return ServeConfig.from_dict(table, "serve")


def _read(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not a TOML file: {error}") from error
    inner = table.get("serve", table)
    if not isinstance(inner, dict):
        raise ConfigError(f"{file}: serve must be a table")
    return inner


def _name_of(variable: str) -> str:
    name = variable.removeprefix(PREFIX).lower()
    return f"limits.{name.removeprefix('limits_')}" if name.startswith("limits_") else name


def _put(table: dict[str, Any], name: str, value: Any, source: str) -> None:
    section, _, field = name.rpartition(".")
    if section not in ("", "limits"):
        raise ConfigError(f"{source}: there is no section {section!r}; known is limits")
    owner = Limits if section else ServeConfig
    hints = typing.get_type_hints(owner)
    if field not in hints or field == "limits":
        known = ", ".join(one.name for one in dataclasses.fields(owner))
        raise ConfigError(f"{source}: unknown setting {name!r}; known are {known}")
    target = table.setdefault(section, {}) if section else table
    target[field] = _value(hints[field], value, source) if isinstance(value, str) else value


def _value(hint: Any, text: str, source: str) -> Any:
    """Text as the type of a setting; lists are separated by commas."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    if get_origin(hint) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    kind = kinds[0] if type(None) in get_args(hint) else hint
    if kind is bool:
        if text.lower() in ("true", "1", "yes", "on", "false", "0", "no", "off"):
            return text.lower() in ("true", "1", "yes", "on")
        raise ConfigError(f"{source}: expected true or false, got {text!r}")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"{source}: expected a number, got {text!r}") from None
    return text

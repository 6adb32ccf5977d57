"""Options that were typed and would do nothing: refused, because whoever typed them expects something of them.

Only what was typed: defaults, and variables of the environment, are there for every command.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer

from threefold.errors import InputError


def needs(context: typer.Context, other: str, there: object, *names: str) -> None:
    """Refuse options that do nothing without another one.

    other  that one, as a person types it
    there  whether it is given, or nothing is to be refused
    names  parameters of the command
    """
    if not there and (idle := typed(context, names)):
        raise InputError(f"{_do_nothing(idle)} without {other}; give that as well, or leave {_them(idle)} out")


def excludes(context: typer.Context, other: str, there: object, *names: str) -> None:
    """Refuse options that do nothing beside another one; the parameters are those of `needs`."""
    if there and (idle := typed(context, names)):
        raise InputError(f"{_do_nothing(idle)} with {other}; leave one of them out")


def typed(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of the options that were typed, as a person types them."""
    return [_flag(context, name) for name in names if _source(context, name) == "COMMANDLINE"]


def _source(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    return source.name if source is not None else ""


def _flag(context: typer.Context, name: str) -> str:
    parameters: Iterable[Any] = context.command.params
    one = next(parameter for parameter in parameters if parameter.name == name)
    off = one.secondary_opts and not context.params[name]  # as --averages is of --per-set
    return str(next(option for option in (one.secondary_opts if off else one.opts) if option.startswith("--")))


def _do_nothing(flags: list[str]) -> str:
    return f"{' and '.join(flags)} {'does' if len(flags) == 1 else 'do'} nothing"


def _them(flags: list[str]) -> str:
    return "it" if len(flags) == 1 else "them"

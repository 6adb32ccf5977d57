"""How a command ends that something ended: one place for the exit status of an error and the words that are said."""

from __future__ import annotations

from typing import NamedTuple

import typer

from threefold.cli import interrupts
from threefold.cli.show import of_system
from threefold.errors import InputError, ThreefoldError

#: Whether the command that runs keeps what it finished, however it ends.
_keeping = False


def keeping(kept: bool = True) -> None:
    """Said by a command that keeps what it finished: who interrupts it may want to know."""
    global _keeping
    _keeping = kept


def interrupted() -> str:
    """What is said after Ctrl-C."""
    return "interrupted; what was finished before is kept" if _keeping else "interrupted"


class Ending(NamedTuple):
    """The exit status, and what is said about it."""

    status: int
    said: str


def ending_of(error: BaseException) -> Ending | None:
    """How a command ends with this error; None: it is nobody's deliberate error, but one in the program."""
    if isinstance(error, ThreefoldError):
        return Ending(error.exit_code, str(error))
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return Ending(interrupts.STATUS, interrupted())
    if isinstance(error, OSError):  # what no part has made an error of its own
        return Ending(InputError.exit_code, of_system(error))
    return None

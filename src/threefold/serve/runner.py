"""What the worker thread runs, and what becomes of a batch that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from threefold.encoder.transfer import is_lost
from threefold.errors import ThreefoldError
from threefold.serve.schedule import Item
from threefold.types import Ints

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

log = logging.getLogger(__name__)


class Runner(Protocol[R_co]):
    """A model as the worker thread sees it."""

    def run(
        self, rows: Sequence[Ints], wanted: Sequence[Any], between: Callable[[], None] | None = None
    ) -> Sequence[R_co]:
        """One result per row of token ids.

        between  called in this thread, whenever that is possible on the way; it may call `run`
        """
        ...

    def samples(self) -> tuple[Sequence[Ints], Sequence[Any]]:
        """A typical batch, for warming up and for the first measurement of speed."""
        ...


class BrokenWorker(BaseException):
    """The model is unusable and must be loaded again."""


class DeviceLost(BrokenWorker):
    """No model will ever run on this device again, in this process."""


def outcomes_of(
    runner: Runner[R], batch: Sequence[Item], between: Callable[[], None] | None = None
) -> list[R | Exception]:
    """A result or an error per text. What fails is halved, so that one bad text, or too large a batch, fails alone."""
    try:
        results = list(runner.run([item.ids for item in batch], [item.wanted for item in batch], between))
    except Exception as error:  # a model may raise anything
        if is_lost(error):  # whatever runs next would fail too, and be blamed
            raise DeviceLost(str(error)) from error
        if len(batch) == 1:
            log.error("the model failed on a text of %d tokens", batch[0].tokens, exc_info=error)
            return [error]
        log.warning("a batch of %d texts failed: %r; it is halved", len(batch), error)
        results = None
    if results is None:
        middle = len(batch) // 2
        return outcomes_of(runner, batch[:middle], between) + outcomes_of(runner, batch[middle:], between)
    if len(results) != len(batch):
        raise BrokenWorker(f"{len(batch)} texts gave {len(results)} results")
    return list(results)


def unexpected(outcome: object) -> bool:
    """Whether it is an error that threefold did not raise on purpose."""
    return isinstance(outcome, Exception) and not isinstance(outcome, ThreefoldError)

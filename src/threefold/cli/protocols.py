"""How `threefold evaluate` runs a set: what its benchmark says, and the options instead of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threefold.cli import judged, options
from threefold.errors import InputError

if TYPE_CHECKING:
    from threefold.evaluate.task import Task
    from threefold.retrieve.modes import Protocol
    from threefold.text.protocol import ModelCard


class Protocols:
    """What the options say about every set, on top of what its benchmark says."""

    def __init__(
        self,
        card: ModelCard,
        modes: str,
        measures: tuple[str, ...],
        weights: str,
        multi_depth: int | None,
        max_tokens: int | None,
    ) -> None:
        self._card = card
        self._weights = judged.weights_of(weights, card)
        self._given: dict[str, Any] = judged.settings_of(self._weights, card)
        if modes:
            self._given["modes"] = _modes(modes)
        if measures:
            self._given["measures"] = measures
        if multi_depth is not None:
            self._given["multi_depth"] = multi_depth or None
        if max_tokens is not None:
            self._given["max_tokens"] = max_tokens

    def of(self, source: judged.Source) -> Protocol:
        """The protocol of a set."""
        from threefold.retrieve.modes import Protocol, available_modes
        from threefold.retrieve.papers import paper_protocol
        from threefold.retrieve.tune import Tuned
        from threefold.score import Weights

        if source.benchmark is not None:
            protocol = paper_protocol(source.benchmark, self._card, **self._given)
        else:
            usual = {"modes": available_modes(self._card), "weights": Weights(*self._card.fusion)}
            protocol = Protocol(**{**usual, **self._given})
        if isinstance(self._weights, Tuned) and self._weights.mode not in protocol.modes:
            raise InputError(
                f"--weights: they were tuned for the mode {self._weights.mode!r}, which is not run; "
                f"there are {', '.join(protocol.modes)}"
            )
        return protocol

    def unseen(self, task: Task) -> Task:
        """Without the queries that the weights were tuned on."""
        from threefold.retrieve.tune import Tuned

        return self._weights.unseen(task) if isinstance(self._weights, Tuned) else task


def _modes(text: str) -> tuple[str, ...]:
    from threefold.retrieve.modes import MODES, cut_of

    names = options.names_in(text)
    unknown = [name for name in names if name not in MODES and cut_of(name) is None]
    if unknown:
        raise InputError(f"unknown mode {unknown[0]!r}; known are {', '.join(MODES)}, dense@N")
    return names


def measures_in(text: str) -> tuple[str, ...]:
    """The measures of a list with commas, if results are kept so deep; empty for no list."""
    from threefold.evaluate.measures import Measure
    from threefold.retrieve.modes import Protocol

    names, depth = options.names_in(text), Protocol().depth
    if text and not names:
        raise InputError(f"--measures {text!r} names none; give some, such as nDCG@10,Recall@100")
    for one in map(Measure.parse, names):
        if one.cutoff > depth:
            raise InputError(f"{one} looks at more than the {depth:,} results that are kept; use at most @{depth}")
    return names

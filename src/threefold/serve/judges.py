"""Scores of pairs of texts, for rerank and score routes: what a judge is asked, and what it says.

Two stand behind this protocol, each behind its own queue: the encoder's own heads (`heads.py`), and a cross-encoder
(`cross.py`). None of them knows HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from threefold.serve.schedule import Lane
from threefold.text.tokenizer import Truncate
from threefold.types import Output

Pair = tuple[str, str]
#: Told how many tokens are to be read, and for which outputs; raises where that is too much.
Check = Callable[[int, Sequence[Output]], None]


class Cutting(NamedTuple):
    """What is read of texts that are long.

    truncate         their beginning (end), their end (start), or nothing: they are an error (none)
    max_tokens       of a text, or of a pair that is read together, specials included; None: what the model reads
    max_text_tokens  of a text that is not a query, without specials
    """

    truncate: Truncate = "end"
    max_tokens: int | None = None
    max_text_tokens: int | None = None


#: As much as the model reads.
WHOLE = Cutting()


def any_size(tokens: int, outputs: Sequence[Output]) -> None:
    """For callers inside the server, which ask for no more than they can hold."""


class Judgement(NamedTuple):
    """One score per pair.

    raw              as the model gives it: a logit, or the weighted sum of the heads' scores
    unit             from 0 to 1, in the same order
    truncated        whether the text was cut; of pairs that are read together, whether the pair was
    tokens           that were read for all pairs together
    query_truncated  whether a query that is read alone was cut
    """

    raw: list[float]
    unit: list[float]
    truncated: list[bool]
    tokens: int
    characters: int
    tokenize_s: float
    queue_s: float
    run_s: float
    query_truncated: bool = False


class Judge(Protocol):
    """Scores pairs (query, text)."""

    @property
    def name(self) -> str:
        """The model."""
        ...

    @property
    def is_cross_encoder(self) -> bool:
        """Whether query and text are read together."""
        ...

    async def judge(
        self,
        pairs: Sequence[Pair],
        *,
        cutting: Cutting = WHOLE,
        check: Check = any_size,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Judgement:
        """One score per pair. `check` is asked before anything waits for the model."""
        ...

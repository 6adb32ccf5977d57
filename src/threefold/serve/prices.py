"""What a million tokens cost, by model and kind of work."""

from __future__ import annotations

from dataclasses import dataclass

from threefold.config import Settings
from threefold.errors import ConfigError
from threefold.serve.ledger import UNIT, Work

#: The number of tokens that a price is for.
PRICED_TOKENS = 1_000_000
#: The highest price: at it, what is written in one go may have nine million tokens before 64 bits are full.
MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Price(Settings):
    """Prices of one model, per million tokens, in the currency of the server.

    embed   texts that become vectors, also those of collections
    rerank  queries and texts that are scored
    """

    embed: float = 0.0
    rerank: float = 0.0

    def __post_init__(self) -> None:
        for name in ("embed", "rerank"):
            if not 0 <= getattr(self, name) <= MOST:  # true for NaN
                raise ConfigError(
                    f"{name} must be a price from 0 to {MOST:,} per million tokens; got {getattr(self, name)}"
                )

    def picos(self, kind: Work, tokens: int) -> int:
        """The cost of so many tokens: a whole number, exact to a millionth of the currency per million tokens."""
        per_token = round((self.embed if kind == "embed" else self.rerank) * UNIT / PRICED_TOKENS)
        return tokens * per_token

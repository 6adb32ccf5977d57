"""Numbers of settings that mean nothing, refused when a recipe is read: TOML has `nan` and `inf` too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from threefold.errors import ConfigError


def check_numbers(settings: Any, *, positive: Sequence[str] = (), not_negative: Sequence[str] = ()) -> None:
    """Refuse what is not finite, what of `positive` is not above 0, and what of `not_negative` is below 0, by name."""
    for name in (*positive, *not_negative):
        value = getattr(settings, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number; got {value}")
        if value < 0 or (value == 0 and name in positive):
            raise ConfigError(f"{name} must {'be positive' if name in positive else 'not be negative'}; got {value}")

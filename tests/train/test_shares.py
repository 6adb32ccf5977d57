from __future__ import annotations

import math

import pytest

from threefold.errors import ConfigError
from threefold.train.shares import temperature_shares


def test_worked_by_hand() -> None:
    # n = 90 and 10, T = 2: roots 9.49 and 3.16, so 3/4 and 1/4 of 100 pairs: 75 of 90 and 25 of 10
    assert temperature_shares({0: 90, 1: 10}, 2) == pytest.approx({0: 75 / 90, 1: 2.5})
    assert temperature_shares({0: 90, 1: 10}, 1) == pytest.approx({0: 1, 1: 1})
    assert temperature_shares({0: 90, 1: 10}, math.inf) == pytest.approx({0: 50 / 90, 1: 5})
    assert temperature_shares({0: 90, 1: 10}, math.inf, most=3) == pytest.approx({0: 50 / 90, 1: 3})


def test_the_published_probabilities() -> None:
    """XLM-R: q = p^0.3 / sum p^0.3, with p the part of a language in all (arXiv 1911.02116, section 3.1)."""
    counts = {0: 5000, 1: 300, 2: 7}
    total = sum(counts.values())
    powers = {i: (n / total) ** 0.3 for i, n in counts.items()}
    taken = {i: share * counts[i] / total for i, share in temperature_shares(counts, 1 / 0.3).items()}
    assert taken == pytest.approx({i: power / sum(powers.values()) for i, power in powers.items()})


def test_groups_of_one_class_are_taken_alike() -> None:
    shares = temperature_shares({0: 60, 1: 30, 2: 10}, 2, classes={0: "en", 1: "en", 2: "de"})
    assert shares == pytest.approx({0: 75 / 90, 1: 75 / 90, 2: 2.5})


def test_nothing_of_nothing() -> None:
    assert temperature_shares({0: 4, 1: 0}, 3) == {0: 1.0, 1: 0.0}
    assert temperature_shares({}, 3) == {}


@pytest.mark.parametrize(
    ("temperature", "most", "message"), [(0.5, 1, "got 0.5"), (math.nan, 1, "nan"), (2, 0, "got 0")]
)
def test_what_means_nothing_is_refused(temperature: float, most: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        temperature_shares({0: 1}, temperature, most=most)

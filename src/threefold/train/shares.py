"""How often each group of pairs is taken, so that large sources and languages do not drown small ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping

from threefold.errors import ConfigError


def temperature_shares(
    counts: Mapping[int, int],
    temperature: float,
    *,
    classes: Mapping[int, Hashable] | None = None,
    most: float = float("inf"),
) -> dict[int, float]:
    """How often each pair of a group is taken in one pass, for `threefold.train.batches.plan`.

        p_c = n_c^(1/T) / sum over classes of n^(1/T),   share = min(p_c * N / n_c, most)

    Arivazhagan et al. 2019 (arXiv 1907.05019), section 4.2; the exponent 1/T is the alpha of XLM-R (Conneau et al.
    2020, arXiv 1911.02116) and of mC4 (Xue et al. 2021, arXiv 2010.11934), both 0.3. N is the number of all pairs: a
    pass is as long as without temperature, but for `most`.

    counts       {group: its pairs}
    temperature  1 takes every pair once; infinity takes as many of every class
    classes      {group: class}, such as its language: classes are weighed, and the groups of one are taken alike;
                 None: every group is a class
    most         no pair is taken more often
    """
    if not temperature >= 1:
        raise ConfigError(f"temperature must be at least 1; got {temperature}")
    if not most > 0:
        raise ConfigError(f"most must be positive; got {most}")
    sizes: defaultdict[Hashable, int] = defaultdict(int)
    for group, count in counts.items():
        sizes[_class(group, classes)] += count
    weights = {one: size ** (1 / temperature) if size else 0.0 for one, size in sizes.items()}
    total, whole = sum(sizes.values()), sum(weights.values())
    shares = {one: min(weights[one] / whole * total / size, most) for one, size in sizes.items() if size}
    return {group: shares.get(_class(group, classes), 0.0) for group in counts}


def _class(group: int, classes: Mapping[int, Hashable] | None) -> Hashable:
    return group if classes is None else classes[group]

"""Groups of similar items: Ward's tree on centred vectors, cut where the silhouette is worth most, with words for each.

With the number of groups known, it finds the known ones better than k-means and average linkage in all four sets of
`results/analyze.json`; HDBSCAN, with and without UMAP, and EVoC leave texts out and were behind in three of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from threefold.analyze.corpus import ROUNDING, Corpus, centred
from threefold.analyze.keywords import TOP, keywords
from threefold.analyze.neighbours import BLOCK
from threefold.errors import InputError
from threefold.retrieve.documents import units
from threefold.text.tokenizer import Tokenizer
from threefold.types import Floats, Ints, Sparse

#: Items that the tree is built of; it needs their distances, 400 MB. Further items join the nearest group.
MOST_IN_TREE = 10_000
#: Most groups that are made unless a number is given, and items per group at least.
MOST_GROUPS, LEAST_PER_GROUP = 100, 4
#: Numbers of groups that are compared.
TRIED = 16
#: Texts of a group that its keywords are taken from: those nearest to its centre.
READ = 50
#: Items that are nearer than this to each other say the same, and are not parted unless a number of groups is given.
SAME = 1e-3
#: Items that stand for a group.
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Group:
    """One cluster.

    number    its place by size, from 0; the label of its items
    keywords  what sets it apart; empty where no tokenizer was given
    examples  numbers of the items nearest to its centre
    cohesion  mean cosine of its items to its centre, on centred vectors: 1 where all are equal
    """

    number: int
    size: int
    keywords: tuple[str, ...]
    examples: tuple[int, ...]
    cohesion: float


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Labels (n,) of all items, the groups, largest first, and the mean silhouette (-1 to 1; None with one group)."""

    labels: Ints
    groups: tuple[Group, ...]
    silhouette: float | None


def cluster(
    corpus: Corpus, count: int | None = None, *, tokenizer: Tokenizer | None = None, seed: int = 0
) -> Clustering:
    """Put every item into one of `count` groups; None: as many as are worth most.

    tokenizer  of the model, for keywords; the corpus must then have been gathered with `sparse=True`
    seed       which items build the tree where there are more than it holds
    """
    n = len(corpus)
    if n == 0:
        raise InputError("there is nothing to cluster")
    if count is not None and not 1 <= count <= n:
        raise InputError(f"{count} groups of {n} items: give a number from 1 to {n}")
    if tokenizer is not None and corpus.sparse is None:
        raise InputError("keywords come from sparse weights; gather the corpus with sparse=True")
    rows = centred(corpus.dense)
    chosen = _chosen(n, seed)
    if count is not None and count > len(chosen):
        raise InputError(f"more than {len(chosen):,} groups cannot be made; got {count:,}")
    tree = _tree(rows[chosen])
    counts = [count] if count is not None else _candidates(len(chosen), _distinct(tree))
    labels, silhouette = _best(rows[chosen], tree, counts)
    if len(chosen) < n:
        labels = _nearest(rows, _centres(rows[chosen], labels))
    labels = _by_size(labels)
    return Clustering(labels, _described(corpus, rows, labels, tokenizer), silhouette)


# ---- the tree -----------------------------------------------------------------------------------------------


def _chosen(n: int, seed: int) -> Ints:
    """(at most MOST_IN_TREE,) the items that build the tree, ascending."""
    if n <= MOST_IN_TREE:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MOST_IN_TREE, replace=False))


def _tree(rows: Floats) -> Any:
    """Ward's tree (Ward 1963): each step joins the two groups whose union spreads least."""
    if len(rows) < 2:
        return None
    from scipy.cluster.hierarchy import linkage  # late: half a second

    return linkage(rows.astype(np.float64), "ward")


def _cut(tree: Any, count: int) -> Ints:
    """(n,) labels of exactly `count` groups, as numbers of which only the difference counts."""
    n = 1 if tree is None else len(tree) + 1
    parent = list(range(n + max(n - count, 0)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for step in range(n - count):
        left, right = int(tree[step, 0]), int(tree[step, 1])
        parent[root(left)] = parent[root(right)] = n + step
    labels: Ints = np.unique([root(i) for i in range(n)], return_inverse=True)[1]
    return labels


def _distinct(tree: Any) -> int:
    """How many groups there are of items that say the same."""
    return 1 if tree is None else 1 + int((tree[:, 2] > SAME).sum())


def _candidates(n: int, distinct: int) -> list[int]:
    """Numbers of groups worth a look, in equal ratios from half the root of n: two groups of all say nothing."""
    most = min(MOST_GROUPS, n // LEAST_PER_GROUP, distinct)
    if most < 2:
        return [1]
    least = min(max(2.0, n**0.5 / 2), most)
    return sorted({round(float(count)) for count in np.geomspace(least, most, TRIED)})


def _best(rows: Floats, tree: Any, counts: Sequence[int]) -> tuple[Ints, float | None]:
    """The cut whose silhouette is best for its number of groups, and that silhouette."""
    judged = [(labels := _cut(tree, count), count, _silhouette(rows, labels)) for count in counts]
    labels, count, score = max(judged, key=lambda one: (_worth(one[2], one[1]), -one[1]))
    return labels, score if count > 1 and np.isfinite(score) else None


def _worth(silhouette: float, count: int) -> float:
    """A silhouette (Rousseeuw 1987) for each bit that says in which group an item is, and one bit more.

    The silhouette alone likes the finest groups that are there: this finds groups that are as good, in numbers that
    are nearer to the known ones (docs/log.md, 2026-11-29, has the sets and the other rules that were tried).
    """
    bits = 1.0 + np.log2(count)
    return float(silhouette / bits if silhouette > 0 else silhouette * bits)


def _silhouette(rows: Floats, labels: Ints) -> float:
    """Mean silhouette by cosine distance; -inf where it has no meaning.

    The mean distance of an item to a group is 1 less its product with the mean of the group's rows, which are units:
    items need not be compared in pairs.
    """
    sizes = np.bincount(labels)  # (groups,)
    if not 1 < len(sizes) < len(labels):
        return -np.inf
    sums, step = _sums(rows, labels), max(1, BLOCK // len(sizes))
    parts = [slice(start, start + step) for start in range(0, len(rows), step)]
    return float(np.concatenate([_widths(rows[part], labels[part], sums, sizes) for part in parts]).mean())


def _widths(rows: Floats, labels: Ints, sums: Floats, sizes: Ints) -> Floats:
    """(n,) how much nearer each item is to its own group than to the next, as a share of the larger distance; an item
    alone has 0. `sums` (groups, d) and `sizes` (groups,) are those of all items.
    """
    each, own = np.arange(len(rows)), sizes[labels]
    near = rows @ sums.T  # (n, groups), of cosines
    inside = near[each, labels] - np.einsum("nd,nd->n", rows, rows)  # an item is at no distance to itself
    inside = 1.0 - inside / np.maximum(own - 1, 1)
    near /= sizes
    near[each, labels] = -np.inf
    outside = 1.0 - near.max(axis=1)
    larger = np.maximum(np.maximum(inside, outside), ROUNDING)
    widths: Floats = np.where(own > 1, (outside - inside) / larger, 0.0)
    return widths


# ---- the groups ---------------------------------------------------------------------------------------------


def _centres(rows: Floats, labels: Ints) -> Floats:
    """(groups, d) unit means."""
    return units(_sums(rows, labels))


def _sums(rows: Floats, labels: Ints) -> Floats:
    """(groups, d), of the rows of each."""
    sums = np.zeros((int(labels.max()) + 1, rows.shape[1]), np.float32)
    np.add.at(sums, labels, rows)
    return sums


def _nearest(rows: Floats, centres: Floats) -> Ints:
    """(n,) the group whose centre is nearest; numbered anew, since a group may lose all its items."""
    step = max(1, BLOCK // len(centres))
    parts = [(rows[start : start + step] @ centres.T).argmax(axis=1) for start in range(0, len(rows), step)]
    labels: Ints = np.unique(np.concatenate(parts), return_inverse=True)[1]
    return labels


def _by_size(labels: Ints) -> Ints:
    """The same groups, numbered from the largest; of equal ones, that of the first item comes first."""
    found, firsts, sizes = np.unique(labels, return_index=True, return_counts=True)
    number = np.empty(len(found), np.int64)
    number[np.lexsort((firsts, -sizes))] = np.arange(len(found))
    renumbered: Ints = number[labels]
    return renumbered


def _described(corpus: Corpus, rows: Floats, labels: Ints, tokenizer: Tokenizer | None) -> tuple[Group, ...]:
    centres = _centres(rows, labels)
    near = np.einsum("nd,nd->n", rows, centres[labels])
    lost = np.linalg.norm(rows, axis=1) + np.linalg.norm(centres, axis=1)[labels] == 0
    near[lost] = 1.0  # no direction, like its centre: equal to it
    groups, read = [], []
    for number in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == number)
        members = members[np.argsort(-near[members], kind="stable")]
        read.append(members[:READ])
        examples = tuple(members[:EXAMPLES].tolist())
        groups.append(Group(number, len(members), (), examples, float(near[members].mean())))
    if tokenizer is None or corpus.sparse is None:
        return tuple(groups)
    said = _keywords(corpus, corpus.sparse, tokenizer, read)
    return tuple(replace(group, keywords=words) for group, words in zip(groups, said, strict=True))


def _keywords(corpus: Corpus, sparse: Sparse, tokenizer: Tokenizer, read: Sequence[Ints]) -> list[tuple[str, ...]]:
    texts = [[corpus.items[i].text for i in members] for members in read]
    return keywords(tokenizer, texts, [sparse.take(members) for members in read], TOP)

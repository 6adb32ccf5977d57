"""More like these, less like those: chunks by examples instead of a query.

The profile is Rocchio's (Rocchio 1971; Manning, Raghavan and Schuetze, "Introduction to Information Retrieval", 9.1.1):

    mean of what is liked - 0.2 * mean of what is not         (their 0.75 and 0.15)

once for dense vectors and once for term weights. Both bring candidates, which are ordered by

    (cosine of dense vectors + 0.5 * cosine of term weights) / 1.5

Term weights need the cosine: texts share more terms with longer ones. 0.5 is the most that costs nothing where texts
are in several languages (`results/analyze.json`); joined by rank, the two lists find less there than the dense one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from threefold.errors import InputError
from threefold.retrieve.asked import check_count, condition_of
from threefold.retrieve.documents import Named, named, row_lengths, units
from threefold.retrieve.stages import (
    DEPTH,
    Candidates,
    Diversify,
    Group,
    Ranked,
    Retriever,
    arrange,
    candidates,
    ranks_in,
    summed,
)
from threefold.score.fuse import Weights
from threefold.store.protocol import Scored, Store
from threefold.types import Encoded, Floats, Representation, Sparse

#: Weight of what is not liked, beside 1 for what is.
AGAINST: Final = 0.2
#: What the cosines count.
WEIGHTS: Final = Weights(dense=1.0, sparse=0.5, multi=0.0)
#: Terms of a profile: the weights of the rest are small, and engines read every one.
TERMS: Final = 256


def recommend(
    store: Store,
    like: Sequence[str],
    unlike: Sequence[str] = (),
    *,
    k: int = 10,
    where: Mapping[str, Any] | None = None,
    half_life: float | None = None,
    diversify: Diversify | None = None,
    group: Group | None = None,
) -> list[Ranked]:
    """The k best chunks by these examples; see `Collection.recommend`."""
    if isinstance(like, str) or isinstance(unlike, str):
        raise InputError("like and unlike are lists of ids; got a text")
    if not like:
        raise InputError("recommendations need something that is liked; give at least one id")
    if odd := [id for id in (*like, *unlike) if not isinstance(id, str)]:
        raise InputError(f"an id is a text; got {odd[0]!r}")
    if both := sorted(set(like) & set(unlike)):
        raise InputError(f"{both[0]!r} is both liked and not; name it once")
    if half_life is not None and not half_life > 0:
        raise InputError(f"half_life must be above 0; got {half_life}")
    check_count("k", k)
    condition_of(where)  # refused before anything is read
    known = named(store, [*like, *unlike])
    shares = np.concatenate([_decayed(len(like), half_life), np.full(len(unlike), -AGAINST / max(len(unlike), 1))])
    used: list[Representation] = ["dense"] if known.sparse is None else ["dense", "sparse"]
    retriever = Retriever(
        tuple(Candidates(name, max(DEPTH, k)) for name in used),
        diversify=diversify,
        group=group or Group(),
        where=_others(known.documents, where),
        k=k,
    )
    profile = _profile(known, shares)
    return arrange(store, profile, _scored(store, profile, candidates(store, profile, retriever)), retriever)


def _scored(store: Store, profile: Encoded, lists: Mapping[Representation, list[Scored]]) -> list[Ranked]:
    """The candidates in order, with the cosine of each representation."""
    ranks = ranks_in(lists)
    if not ranks:
        return []
    cosines = dict(store.score(profile, list(ranks)))
    if "sparse" in lists:
        terms = store.vectors(list(ranks), ["sparse"]).sparse
        cosines["sparse"] = cosines["sparse"] / (1.0 if terms is None else row_lengths(terms))
    return summed(cosines, WEIGHTS.only(*lists), ranks)


def _decayed(count: int, half_life: float | None) -> Floats:
    """(count,) shares that add up to 1, the last the largest."""
    ages = np.arange(count - 1, -1, -1)
    with np.errstate(over="ignore"):  # infinitely many half-lives: a share of 0
        shares = np.ones(count) if half_life is None else 0.5 ** (ages / half_life)
    normalised: Floats = shares / shares.sum()
    return normalised


def _others(documents: Iterable[str], where: Mapping[str, Any] | None) -> dict[str, Any]:
    """Chunks of documents that were not named, and that match."""
    others = {"not": {"document_id": {"in": sorted(documents)}}}
    return {"and": [others, where]} if where else others


def _profile(known: Named, shares: Floats) -> Encoded:
    """One text's worth of vectors: the examples, each with its share (n,), which may be negative."""
    dense = units((shares @ known.dense)[np.newaxis])
    sparse = None if known.sparse is None else _terms(known.sparse, shares)
    return Encoded(dense, sparse, None, np.ones(1, np.int32), np.zeros(1, bool))


def _terms(sparse: Sparse, shares: Floats) -> Sparse:
    """The heaviest terms of a row of length 1; what is more disliked than liked is none."""
    weights = np.zeros(sparse.vocab)
    np.add.at(weights, sparse.indices, sparse.values * np.repeat(shares, np.diff(sparse.offsets)))
    best = np.argsort(-weights, kind="stable")[:TERMS]
    length = float(np.linalg.norm(np.maximum(weights, 0.0))) or 1.0
    return Sparse.of([{int(id): weights[id] / length for id in best if weights[id] > 0}], sparse.vocab)

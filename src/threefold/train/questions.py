"""Rows of a pair table -> what one device reads in a step, and what it is asked: which passage belongs to which query.

A batch is shared among W devices as `batches.part` says. Each reads its own queries and passages and scores its
queries against the passages of all; every device knows the whole table, so it knows all their ids and lengths.
Letters: B pairs of the whole batch, b of this device, P passages of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threefold.train.batches import PairTable
from threefold.train.masks import FalseNegatives
from threefold.train.packed import Packed, texts_of
from threefold.types import Bools, Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Questions:
    """One step of one device.

    queries    its b queries, shortest first
    passages   of every device, its passages, shortest first: positives and hard negatives
    rank       which of them are its own
    pairs      (b,) its pairs, rows of the table, in the order of the batch
    query_at   (b,) place in `queries` of each pair's query
    passage_at (b,) place in its own passages of each pair's positive
    targets    (b,) column of the positive of each query
    forbidden  (b, P) passages that are no negatives of the query
    scores     (b, P) a teacher's scores, NaN where there are none; None: none of the batch has two
    swapped    queries and positives are exchanged
    """

    queries: Packed
    passages: tuple[Packed, ...]
    rank: int
    pairs: Ints
    query_at: Ints
    passage_at: Ints
    targets: Ints
    forbidden: Bools
    scores: Floats | None
    swapped: bool

    @property
    def own(self) -> Packed:
        return self.passages[self.rank]


def ask(
    table: PairTable, masks: FalseNegatives, rows: Ints, *, swapped: bool = False, rank: int = 0, world: int = 1
) -> Questions:
    """What device `rank` does with the pairs (B,) of a batch.

    Columns before sorting: the passages of the pairs, then all their hard negatives.
    """
    asked, said = (table.positive, table.query) if swapped else (table.query, table.positive)
    owner = np.repeat(np.arange(len(rows)), table.negatives_in(rows))  # (M,) pair of each hard negative
    texts = texts_of(said, rows) + texts_of(table.negative, table.negatives_of(rows))
    lengths = np.array([len(text) for text in texts])
    pair_of = np.concatenate([np.arange(len(rows)), owner])
    parts = [_by_length(np.flatnonzero(pair_of % world == device), lengths) for device in range(world)]
    columns = np.concatenate(parts)  # (P,)
    mine = np.arange(rank, len(rows), world)
    order = _by_length(mine, asked.lengths[rows])  # (b,) places in `rows`
    scores = None if swapped else _teacher(table, rows, owner)
    return Questions(
        queries=Packed.of(texts_of(asked, rows[order])),
        passages=tuple(Packed.of([texts[i] for i in part]) for part in parts),
        rank=rank,
        pairs=rows[mine],
        query_at=_places(mine, order),
        passage_at=_places(mine, parts[rank]),
        targets=_places(order, columns),
        forbidden=masks(rows, swapped=swapped)[order][:, columns],
        scores=None if scores is None else scores[order][:, columns],
        swapped=swapped,
    )


def _by_length(places: Ints, lengths: Ints) -> Ints:
    ordered: Ints = places[np.argsort(lengths[places], kind="stable")]
    return ordered


def _places(wanted: Ints, order: Ints) -> Ints:
    """Where each of `wanted` stands in `order`, which has all of them, each once."""
    sorter = np.argsort(order, kind="stable")
    places: Ints = sorter[np.searchsorted(order, wanted, sorter=sorter)]
    return places


def _teacher(table: PairTable, rows: Ints, owner: Ints) -> Floats | None:
    """(B, B + M) scores of each query's own positive and hard negatives, NaN elsewhere.

    One score alone says nothing, and is left out.
    """
    hard = table.negatives_of(rows)
    scores = np.full((len(rows), len(rows) + len(hard)), np.nan, np.float32)
    scores[np.arange(len(rows)), np.arange(len(rows))] = table.positive_score[rows]
    scores[owner, len(rows) + np.arange(len(hard))] = table.negative_score[hard]
    scores[np.isfinite(scores).sum(axis=1) < 2] = np.nan
    return None if np.isnan(scores).all() else scores

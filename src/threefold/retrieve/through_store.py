"""The same task through a store: what its index, its compact vectors and its ties lose against exact scores.

Rows are named `dense (store)` and so on. Besides the usual measures they have `kept@10` and `kept@100`: the share of
the exact best k that the store found among its best k, mean over the queries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from threefold.config import Manifest
from threefold.errors import InputError
from threefold.evaluate.answers import judge_task
from threefold.evaluate.report import Row
from threefold.evaluate.task import Task
from threefold.retrieve.encoded import Unique
from threefold.retrieve.exact import Exact
from threefold.retrieve.experiment import encode_task
from threefold.retrieve.modes import Mode, Protocol
from threefold.store.protocol import Store
from threefold.text.protocol import TextEncoder
from threefold.types import REPRESENTATIONS, Chunk, Representation

KEPT: Final = (10, 100)
#: Chunks that are sent to the store at a time.
_BATCH: Final = 1_000


def run_through_store(
    task: Task, encoder: TextEncoder, protocol: Protocol, manifest: Manifest, make: Callable[[Manifest], Store]
) -> tuple[tuple[Row, ...], dict[Mode, dict[str, dict[str, float]]]]:
    """Rows and runs of `dense`, `sparse` and `multi` as far as the protocol has them, from an empty store.

    manifest  of a collection of this encoder; vectors that no mode needs are left out of it
    make      opens the empty store; it is closed at the end
    """
    modes = tuple(name for name in REPRESENTATIONS if name in protocol.modes)
    if not modes:
        raise InputError("a store is compared in the modes dense, sparse and multi; the protocol has none of them")
    whole = Protocol.from_dict(protocol.to_dict() | {"modes": list(modes), "multi_depth": None})
    documents, queries = encode_task(task, encoder, whole)
    assert documents is not None
    assert queries is not None
    exact = Exact(task, whole, documents, queries).runs()
    store = make(_narrow(manifest, whole))
    try:
        start = time.perf_counter()
        _fill(store, task, documents)
        filled = time.perf_counter() - start
        rows, runs = [], {}
        for mode in modes:
            start = time.perf_counter()
            run = _search(store, mode, task, queries, protocol.depth)
            seconds = {"fill": filled, "search": time.perf_counter() - start}
            kept = {f"kept@{k}": _kept(exact[mode], run, k) for k in KEPT}
            name = f"{mode} (store)"
            runs[name] = run
            values = judge_task(task, run, protocol.measures).means | kept
            rows.append(_row(task, name, values, f"{type(store).__name__}, depth {protocol.depth:,}", seconds))
    finally:
        store.close()
    return tuple(rows), runs


def _narrow(manifest: Manifest, protocol: Protocol) -> Manifest:
    needed = {name for mode in protocol.modes for name in protocol.needs(mode)}
    return replace(
        manifest,
        dense_dim=manifest.dense_dim if "dense" in needed else 0,
        vocab=manifest.vocab if "sparse" in needed else 0,
        multi_dim=manifest.multi_dim if "multi" in needed else 0,
        multi_storage=manifest.multi_storage if "multi" in needed else "none",
    )


def _row(task: Task, mode: str, values: Mapping[str, float], protocol: str, seconds: Mapping[str, float]) -> Row:
    return Row(
        task=task.name,
        mode=mode,
        values=values,
        documents=len(task.documents),
        queries=len(task.qrels),
        protocol=protocol,
        warnings=dict(task.warnings),
        seconds=seconds,
    )


def _fill(store: Store, task: Task, documents: Unique) -> None:
    chunks = [Chunk(id, 0, 0, len(text), text) for id, text in task.documents.items()]
    for first in range(0, len(chunks), _BATCH):
        rows = documents.rows[first : first + _BATCH]
        store.upsert(chunks[first : first + _BATCH], documents.encoded.take(rows))
    store.optimize()


def _search(
    store: Store, representation: Representation, task: Task, queries: Unique, depth: int
) -> dict[str, dict[str, float]]:
    run: dict[str, dict[str, float]] = {}
    for i, query in enumerate(task.qrels):
        own = task.ignore_identical_ids and query in task.documents
        one = queries.encoded.take(queries.rows[i : i + 1])
        found = store.search(representation, one, depth + own)
        named = {hit.id.removesuffix("#0"): hit.score for hit in found}
        if own:
            named.pop(query, None)
        run[query] = dict(list(named.items())[:depth])
    return run


def _kept(exact: Mapping[str, Mapping[str, float]], run: Mapping[str, Mapping[str, float]], k: int) -> float:
    """Mean share of the exact best k among the best k of the run; a query that finds nothing exactly keeps all."""
    shares = []
    for query, scores in exact.items():
        best, found = set(list(scores)[:k]), set(list(run[query])[:k])
        shares.append(len(best & found) / len(best) if best else 1.0)
    return float(np.mean(shares))

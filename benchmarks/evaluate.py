"""How long exact evaluation takes once texts are encoded: dense + sparse, 1,000 queries against 100,000 chunks.

    python benchmarks/evaluate.py [--documents 100000] [--queries 1000] [--dim 1024] [--output results/evaluate.json]

Synthetic vectors in the sizes of bge-m3: dense unit vectors, sparse weights over the vocabulary of XLM-R with term
frequencies after Zipf (60 terms a chunk, 12 a query). Beside it the same job by plain tools: one matrix product, one
product of scipy's sparse arrays and pytrec_eval for all queries at once. Bar: under 60 s and 3 GiB on two cores.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import pytrec_eval
from machine import machine

from threefold.evaluate.answers import judge_task
from threefold.evaluate.task import Task
from threefold.retrieve.encoded import Unique
from threefold.retrieve.exact import Exact
from threefold.retrieve.modes import Protocol
from threefold.types import Encoded, Floats, Sparse, offsets_of

VOCAB = 250_002  # XLM-R
TERMS_PER_CHUNK, TERMS_PER_QUERY = 60, 12
WEIGHTS = (1.0, 0.3)
BAR_S, BAR_GIB = 60.0, 3.0


def unit(rng: np.random.Generator, n: int, dim: int) -> Floats:
    rows = rng.standard_normal((n, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def terms(rng: np.random.Generator, n: int, per_text: int) -> Sparse:
    ids = [np.unique(np.minimum(row, VOCAB - 1)) for row in rng.zipf(1.3, (n, per_text))]
    flat = np.concatenate(ids).astype(np.int32)
    return Sparse(
        flat, rng.uniform(0.02, 0.4, len(flat)).astype(np.float32), offsets_of([len(row) for row in ids]), VOCAB
    )


def encoded(rng: np.random.Generator, n: int, dim: int, per_text: int) -> Unique:
    sizes = np.full(n, per_text, np.int32)
    vectors = Encoded(unit(rng, n, dim), terms(rng, n, per_text), None, sizes, np.zeros(n, np.bool_))
    return Unique(vectors, np.arange(n))


def ours(task: Task, documents: Unique, queries: Unique) -> tuple[float, float]:
    start = time.perf_counter()
    protocol = Protocol(modes=("dense", "sparse", "dense+sparse"))
    runs = Exact(task, protocol, documents, queries).runs()
    scored = time.perf_counter()
    for run in runs.values():
        judge_task(task, run)
    return scored - start, time.perf_counter() - scored


def plain(task: Task, documents: Unique, queries: Unique) -> float:
    """Dense + sparse only, everything at once, ties left to chance."""
    start = time.perf_counter()
    docs, asked = documents.encoded, queries.encoded
    assert docs.dense is not None and asked.dense is not None  # noqa: PT018
    assert docs.sparse is not None and asked.sparse is not None  # noqa: PT018
    scores = WEIGHTS[0] * (asked.dense @ docs.dense.T)
    scores += WEIGHTS[1] * (asked.sparse.to_scipy() @ docs.sparse.to_scipy().T.tocsr()).toarray()
    best = np.argpartition(-scores, 1_000, axis=1)[:, :1_000]
    ids = list(task.documents)
    run = {
        query: {ids[place]: float(scores[i, place]) for place in best[i].tolist()} for i, query in enumerate(task.qrels)
    }
    qrels = {query: dict(grades) for query, grades in task.qrels.items()}
    pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(run)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=1_024)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    documents = encoded(rng, given.documents, given.dim, TERMS_PER_CHUNK)
    queries = encoded(rng, given.queries, given.dim, TERMS_PER_QUERY)
    task = Task(
        "synthetic",
        {f"d{i}": "x" for i in range(given.documents)},
        {f"q{i}": "x" for i in range(given.queries)},
        {f"q{i}": {f"d{i}": 1} for i in range(given.queries)},
    )
    score_s, judge_s = ours(task, documents, queries)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    plain_s = plain(task, documents, queries)
    plain_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{given.queries:,} queries, {given.documents:,} chunks, {given.dim} dimensions")
    print(f"  threefold, three modes: {score_s:.1f} s to score, {judge_s:.1f} s to judge, peak {peak_gib:.2f} GiB")
    print(f"  plain tools, one mode:  {plain_s:.1f} s, peak {plain_gib:.2f} GiB")
    result = machine() | {
        "benchmark": "evaluate",
        "documents": given.documents,
        "queries": given.queries,
        "dim": given.dim,
        "score_s": round(score_s, 2),
        "judge_s": round(judge_s, 2),
        "peak_gib": round(peak_gib, 3),
        "plain_s": round(plain_s, 2),
        "plain_peak_gib": round(plain_gib, 3),
        "bar_met": score_s + judge_s < BAR_S and peak_gib < BAR_GIB,
    }
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

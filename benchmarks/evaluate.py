"""How long exact evaluation takes once texts are encoded: 1,000 queries against 100,000 chunks, beside other tools.

    python benchmarks/evaluate.py [--documents 100000] [--queries 1000] [--dim 1024] [--output results/evaluate.json]

Synthetic vectors in the sizes of bge-m3: dense unit vectors, sparse weights over the vocabulary of XLM-R with term
frequencies after Zipf (60 terms a chunk, 12 a query); query i leans towards chunk i, its only relevant one. The jobs:

    threefold            dense, sparse and dense+sparse, each to depth 1,000 and judged. Bar: under 60 s and 3 GiB
    threefold, dense     only dense
    FlagEmbedding        only dense, by its evaluator as it is: faiss, results to JSON and back, pytrec_eval
    numpy, scipy         only dense+sparse: two products for all queries at once, pytrec_eval

Each job has a process of its own, so that peaks are its own; they hold the vectors (0.5 GiB) and the imports too.
Jobs with the same mode must agree on the figures. Prints a table, then one line of JSON. Needs the extra `peers`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from machine import machine

from threefold.encoder.memory import peak_bytes
from threefold.evaluate.answers import judge_task
from threefold.evaluate.task import Task
from threefold.retrieve.encoded import Unique
from threefold.retrieve.exact import Exact
from threefold.retrieve.modes import Protocol
from threefold.types import Encoded, Floats, Sparse, offsets_of

VOCAB = 250_002  # XLM-R
TERMS_PER_CHUNK, TERMS_PER_QUERY = 60, 12
#: How far a query leans towards its chunk: about the largest inner product with any of 100,000 random chunks.
LEAN = 0.13
WEIGHTS = (1.0, 0.3)
DEPTH = 1_000
BAR_S, BAR_GIB = 60.0, 3.0
#: FlagEmbedding rounds to five digits, and ties may be ordered otherwise.
AGREE = 2e-5
MEASURES = ("nDCG@10", "Recall@100")

#: {mode: {measure: mean}}
Figures = dict[str, dict[str, float]]


# ---- data ---------------------------------------------------------------------------------------------------


def unit(rows: Floats) -> Floats:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def terms(rng: np.random.Generator, n: int, per_text: int) -> Sparse:
    ids = [np.unique(np.minimum(row, VOCAB - 1)) for row in rng.zipf(1.3, (n, per_text))]
    flat = np.concatenate(ids).astype(np.int32)
    return Sparse(
        flat, rng.uniform(0.02, 0.4, len(flat)).astype(np.float32), offsets_of([len(row) for row in ids]), VOCAB
    )


def encoded(dense: Floats, sparse: Sparse) -> Unique:
    n = len(dense)
    return Unique(Encoded(dense, sparse, None, np.full(n, 1, np.int32), np.zeros(n, np.bool_)), np.arange(n))


def synthetic(n: int, q: int, dim: int) -> tuple[Task, Unique, Unique]:
    rng = np.random.default_rng(0)
    chunks = unit(rng.standard_normal((n, dim), dtype=np.float32))
    queries = unit(LEAN * chunks[:q] + unit(rng.standard_normal((q, dim), dtype=np.float32)))
    task = Task(
        "synthetic",
        {f"d{i}": "x" for i in range(n)},
        {f"q{i}": "x" for i in range(q)},
        {f"q{i}": {f"d{i}": 1} for i in range(q)},
    )
    return task, encoded(chunks, terms(rng, n, TERMS_PER_CHUNK)), encoded(queries, terms(rng, q, TERMS_PER_QUERY))


# ---- jobs ---------------------------------------------------------------------------------------------------


def threefold(task: Task, documents: Unique, queries: Unique, modes: tuple[str, ...]) -> Figures:
    runs = Exact(task, Protocol(modes=modes, depth=DEPTH), documents, queries).runs()
    return {mode: judge_task(task, run, MEASURES).means for mode, run in runs.items()}


def flag_embedding(task: Task, documents: Unique, queries: Unique) -> Figures:
    """Its evaluator with vectors in place of a model, and texts in place of a downloaded set."""
    from FlagEmbedding.abc.evaluation import AbsEvaluator, EvalDenseRetriever

    embedder = SimpleNamespace(
        encode_corpus=lambda texts, **_: documents.encoded.dense,
        encode_queries=lambda texts, **_: queries.encoded.dense,
        stop_self_pool=lambda: None,
        model=SimpleNamespace(config=SimpleNamespace(_name_or_path="vectors")),
    )
    corpus = {id: {"text": text} for id, text in task.documents.items()}
    qrels = {query: dict(grades) for query, grades in task.qrels.items()}
    loader = SimpleNamespace(
        check_splits=lambda splits, dataset_name: [splits],
        load_corpus=lambda dataset_name: corpus,
        load_queries=lambda dataset_name, split: dict(task.queries),
        load_qrels=lambda dataset_name, split: qrels,
    )
    with tempfile.TemporaryDirectory() as folder:
        retriever = EvalDenseRetriever(embedder, search_top_k=DEPTH)
        AbsEvaluator("synthetic", loader)("test", folder, retriever, k_values=[10, 100])
        found = json.loads((Path(folder) / "vectors/NoReranker/EVAL/eval_results.json").read_text())["test"]
    return {"dense": {"nDCG@10": found["ndcg_at_10"], "Recall@100": found["recall_at_100"]}}


def plain(task: Task, documents: Unique, queries: Unique) -> Figures:
    """Everything at once, ties left to chance."""
    import pytrec_eval

    docs, asked = documents.encoded, queries.encoded
    assert docs.dense is not None and asked.dense is not None  # noqa: PT018
    assert docs.sparse is not None and asked.sparse is not None  # noqa: PT018
    scores = WEIGHTS[0] * (asked.dense @ docs.dense.T)
    scores += WEIGHTS[1] * (asked.sparse.to_scipy() @ docs.sparse.to_scipy().T.tocsr()).toarray()
    best = np.argpartition(-scores, DEPTH, axis=1)[:, :DEPTH]
    ids = list(task.documents)
    run = {
        query: {ids[place]: float(scores[i, place]) for place in best[i].tolist()} for i, query in enumerate(task.qrels)
    }
    qrels = {query: dict(grades) for query, grades in task.qrels.items()}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(run).values()
    means = {name: float(np.mean([one[name] for one in found])) for name in ("ndcg_cut_10", "recall_100")}
    return {"dense+sparse": {"nDCG@10": means["ndcg_cut_10"], "Recall@100": means["recall_100"]}}


JOBS: dict[str, Callable[[Task, Unique, Unique], Figures]] = {
    "threefold": lambda *given: threefold(*given, ("dense", "sparse", "dense+sparse")),
    "threefold, dense": lambda *given: threefold(*given, ("dense",)),
    "FlagEmbedding": flag_embedding,
    "numpy, scipy": plain,
}


def measured(job: str, n: int, q: int, dim: int) -> dict[str, Any]:
    """One job in this process; vectors and imports are there before the clock starts, and count as memory."""
    given = synthetic(n, q, dim)
    if job == "FlagEmbedding":
        import FlagEmbedding.abc.evaluation  # noqa: F401
    before = peak_bytes() / 2**30
    start = time.perf_counter()
    figures = JOBS[job](*given)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "start_gib": round(before, 3),
        "peak_gib": round(peak_bytes() / 2**30, 3),
        "figures": {mode: {name: round(by[name], 6) for name in MEASURES} for mode, by in figures.items()},
    }


def agree(jobs: dict[str, dict[str, Any]]) -> bool:
    """Whether jobs that ran the same mode have the same figures."""
    by_mode: dict[str, list[dict[str, float]]] = {}
    for job in jobs.values():
        for mode, figures in job["figures"].items():
            by_mode.setdefault(mode, []).append(figures)
    return all(
        abs(one[name] - found[0][name]) <= AGREE for found in by_mode.values() for one in found for name in MEASURES
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=1_024)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--job", choices=JOBS, help="run only this one, in this process")
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measured(given.job, given.documents, given.queries, given.dim)))
        return
    sizes = [f"--documents={given.documents}", f"--queries={given.queries}", f"--dim={given.dim}"]
    jobs: dict[str, dict[str, Any]] = {}
    print(f"{given.queries:,} queries, {given.documents:,} chunks, {given.dim} dimensions, two figures of each mode")
    for job in JOBS:
        command = [sys.executable, __file__, f"--job={job}", *sizes]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        jobs[job] = json.loads(run.stdout.splitlines()[-1])
        modes = ", ".join(jobs[job]["figures"])
        print(f"  {job:<18}{jobs[job]['seconds']:6.1f} s   peak {jobs[job]['peak_gib']:.2f} GiB   {modes}")
    ours = jobs["threefold"]
    result = machine() | {
        "benchmark": "evaluate",
        "documents": given.documents,
        "queries": given.queries,
        "dim": given.dim,
        "depth": DEPTH,
        "jobs": jobs,
        "figures_agree": agree(jobs),
        "bar_met": ours["seconds"] < BAR_S and ours["peak_gib"] < BAR_GIB,
    }
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

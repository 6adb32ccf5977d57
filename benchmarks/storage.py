"""What it costs to keep token vectors in fewer bits, and fewer of them: quality, bytes and the time of a search.

    python benchmarks/storage.py XQUAD [--model MODEL] [--output results/storage.json]

XQUAD  the archive or folder of XQuAD in BEIR layout

Collections of the embedded engine, one for each way to keep token vectors (`multi_storage`, `multi_pool`); passages are
chunks of 512 tokens at most, most of them one. nDCG@10 by token vectors alone and hybrid with the weights of the model;
bytes are those that the file system gave to the engine's segments (its log, of 32 MB at most, is left out), less those
of a collection without token vectors; time is the median of a search by token vectors over all passages, every way once
per round. Texts are encoded once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from machine import write

from threefold import Collection, Document, Encoder
from threefold.config import Chunking, MultiStorage
from threefold.evaluate.beir import iter_tasks
from threefold.evaluate.measures import judge
from threefold.evaluate.task import Task
from threefold.types import Encoded

#: Passages and questions in one language, and questions in another one.
TASKS = ("en", "zh", "de", "ar", "de-en", "zh-en")
WAYS: tuple[tuple[MultiStorage, int], ...] = (
    ("float16", 1), ("int8", 1), ("int4", 1),
    ("int8", 2), ("int4", 2), ("int8", 3), ("int4", 3), ("int8", 4), ("int4", 4),
)  # fmt: skip
CHUNKS = Chunking(512)
#: Questions of a set, evenly from all.
QUESTIONS = 300
ROUNDS, TIMED = 3, 100


class Once:
    """An encoder that encodes the same list of texts once."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._kept = encoder, dict[Any, Encoded]()
        self.card, self.tokenizer = encoder.card, encoder.tokenizer
        self.encode = encoder.encode

    def encode_queries(self, texts: Sequence[str], **options: Any) -> Encoded:
        return self._once(self._encoder.encode_queries, texts, options)

    def encode_documents(self, texts: Sequence[str], **options: Any) -> Encoded:
        return self._once(self._encoder.encode_documents, texts, options)

    def _once(self, encode: Any, texts: Sequence[str], options: dict[str, Any]) -> Encoded:
        key = (encode.__name__, tuple(texts), tuple(options.pop("outputs", None) or self.card.representations))
        if key not in self._kept:
            self._kept[key] = encode(texts, outputs=key[2], **options)
        return self._kept[key]


def taken(folder: Path) -> int:
    """Bytes of the segments on the disk."""
    return sum(path.stat().st_blocks * 512 for path in (folder / "shard" / "segments").rglob("*") if path.is_file())


def found(collection: Collection, task: Task, mode: Any) -> float:
    run: dict[str, dict[str, float]] = {}
    for query in task.qrels:
        scores: dict[str, float] = {}
        for hit in collection.search(task.queries[query], mode=mode, k=20):
            scores.setdefault(hit.chunk.document_id, hit.score)
        run[query] = scores
    return 100 * judge(task.qrels, run, ["nDCG@10"]).means["nDCG@10"]


def seconds(collection: Collection, queries: Sequence[str]) -> float:
    times = []
    for query in queries:
        began = time.perf_counter()
        collection.search(query, mode="multi", k=10)
        times.append(time.perf_counter() - began)
    return median(times)


def measured(task: Task, encoder: Once) -> dict[str, dict[str, float]]:
    """Every way to keep the token vectors of one set of passages."""
    with tempfile.TemporaryDirectory() as folder:

        def filled(storage: MultiStorage, pool: int) -> Collection:
            place = Path(folder) / f"{storage}-{pool}"
            made = Collection(place, encoder, chunking=CHUNKS, multi_storage=storage, multi_pool=pool)
            made.add(Document(id, text) for id, text in task.documents.items())
            return made

        bare = filled("none", 1)
        bare.close()
        without = taken(Path(folder) / "none-1")
        ways = {f"{storage}, 1 in {pool}": filled(storage, pool) for storage, pool in WAYS}
        rows = {name: {mode: found(one, task, mode) for mode in ("multi", "hybrid")} for name, one in ways.items()}
        queries = [task.queries[query] for query in list(task.qrels)[:TIMED]]
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, one in ways.items():
                times[name].append(seconds(one, queries))
        for name, one in ways.items():
            chunks, place = one.count(), one.folder
            assert place is not None
            one.close()  # writes what is in memory
            rows[name]["bytes_per_chunk"] = (taken(place) - without) / chunks
            rows[name]["search_ms"] = 1e3 * median(times[name])
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("xquad", type=Path)
    options.add_argument("--model", default=None)
    options.add_argument("--output", type=Path, default=None)
    given = options.parse_args()
    encoder = Encoder(given.model, device="cpu")
    sets: dict[str, dict[str, dict[str, float]]] = {}
    for task in iter_tasks(given.xquad):
        name = task.name.rpartition("/")[2]
        if name in TASKS:
            queries = list(task.qrels)
            sets[name] = measured(task.only(queries[:: len(queries) // QUESTIONS][:QUESTIONS]), Once(encoder))
            print(name, json.dumps(sets[name]), flush=True)
    ways = next(iter(sets.values()))
    means = {way: {what: mean(one[way][what] for one in sets.values()) for what in ways[way]} for way in ways}
    print(json.dumps(means, indent=2))
    write({"model": encoder.card.name, "precision": encoder.precision, "mean": means, "sets": sets}, given.output, 2)


if __name__ == "__main__":
    main()

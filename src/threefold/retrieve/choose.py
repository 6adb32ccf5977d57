"""One model on a user's own data: the criteria by which embeddings are chosen, side by side.

The folder may hold any of these; what is not there is not reported:

    corpus.jsonl, queries.jsonl, qrels.tsv   retrieval, in BEIR layout; in folders below: one source each
    pairs.jsonl                              {"a": text, "b": text, "score": number} per line: similarity
    labels.jsonl                             {"text": ..., "label": ..., "source": ...} per line: classification and
                                             clustering; the source may be missing
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from threefold.errors import EvaluationError
from threefold.evaluate.beir import iter_tasks
from threefold.evaluate.embeddings import accuracy, clustering, similarity, train_and_test
from threefold.evaluate.rows import field as text_of
from threefold.evaluate.rows import json_rows, optional
from threefold.evaluate.task import Task
from threefold.retrieve.experiment import run_task
from threefold.retrieve.modes import Protocol, available_modes
from threefold.score import Weights
from threefold.text.protocol import TextEncoder
from threefold.types import Encoded, Floats

MEASURE: Final = "nDCG@10"
#: Texts whose encoding is timed, and single queries whose median is reported.
TIMED_TEXTS: Final = 256
TIMED_QUERIES: Final = 20


@dataclass(frozen=True, slots=True)
class OwnData:
    """What a folder holds."""

    tasks: tuple[Task, ...]
    pairs: tuple[tuple[str, str, float], ...]
    labelled: tuple[tuple[str, str, str], ...]  # text, label, source

    @classmethod
    def load(cls, folder: Path) -> OwnData:
        if not folder.is_dir():
            raise EvaluationError(f"{folder} is not a folder")
        tasks = tuple(iter_tasks(folder)) if any(folder.rglob("corpus.jsonl")) else ()
        pairs, labels = folder / "pairs.jsonl", folder / "labels.jsonl"
        found = cls(
            tasks,
            tuple(_pair(row, where) for where, row in json_rows(pairs)) if pairs.is_file() else (),
            tuple(
                (text_of(row, "text", where), text_of(row, "label", where), optional(row, "source", where))
                for where, row in json_rows(labels)
            )
            if labels.is_file()
            else (),
        )
        if not (found.tasks or found.pairs or found.labelled):
            raise EvaluationError(f"{folder}: none of corpus.jsonl, pairs.jsonl, labels.jsonl in it")
        if found.pairs and len({score for _, _, score in found.pairs}) < 2:
            raise EvaluationError(f"{pairs}: a correlation needs at least two pairs with different scores")
        if found.labelled and not _can_be_learnt(found.labelled):
            raise EvaluationError(f"{labels}: classification needs at least two labels, and two texts of one")
        return found

    def sample(self) -> list[str]:
        """Texts of the user to measure speed and size on."""
        texts = [text for task in self.tasks for text in task.documents.values()]
        texts += [text for a, b, _ in self.pairs for text in (a, b)] + [text for text, _, _ in self.labelled]
        step = max(len(texts) // TIMED_TEXTS, 1)
        return texts[::step][:TIMED_TEXTS]


@dataclass(frozen=True, slots=True)
class Portrait:
    """What one model reached. A criterion without data is missing.

    retrieval   {set: {mode: nDCG@10}}; queries: {set: {query: nDCG@10}} in the best mode
    criteria    {criterion: figure}; shares of 1 except where the name has a unit
    """

    model: str
    precision: str
    retrieval: Mapping[str, Mapping[str, float]]
    criteria: Mapping[str, float]
    mode: str = ""
    queries: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "precision": self.precision,
            "best_mode": self.mode,
            "criteria": {name: round(value, 6) for name, value in self.criteria.items()},
            "retrieval": {
                name: {mode: round(value, 6) for mode, value in by.items()} for name, by in self.retrieval.items()
            },
        }


def portray(encoder: TextEncoder, data: OwnData, *, cache: Path | None = None) -> Portrait:
    """Judge one model by everything that the data has."""
    criteria: dict[str, float] = {}
    retrieval, mode, queries = _retrieval(encoder, data.tasks, cache)
    if retrieval:
        means = [by[mode] for by in retrieval.values()]
        criteria[f"retrieval, {MEASURE}"] = float(np.mean(means))
        if len(means) > 1:
            criteria["retrieval on the worst source"] = min(means)
    if encoder.card.dense_dim:
        criteria |= _similarity(encoder, data.pairs) | _labels(encoder, data.labelled)
    criteria |= _costs(encoder, data)
    return Portrait(encoder.card.name, encoder.card.precision, retrieval, criteria, mode, queries)


def _retrieval(
    encoder: TextEncoder, tasks: Sequence[Task], cache: Path | None
) -> tuple[dict[str, dict[str, float]], str, dict[str, Mapping[str, float]]]:
    """Figures by set and mode, the mode of the model with the best mean, and its figures by query."""
    modes = tuple(mode for mode in available_modes(encoder.card) if mode != "bm25")
    protocol = Protocol(modes=modes, measures=(MEASURE,), weights=Weights(*encoder.card.fusion))
    outcomes = {task.name: run_task(task, encoder, protocol, cache=cache).judgements for task in tasks}
    if not outcomes:
        return {}, "", {}
    figures = {name: {mode: one.means[MEASURE] for mode, one in by.items()} for name, by in outcomes.items()}
    best = max(modes, key=lambda mode: np.mean([by[mode] for by in figures.values()]))
    return figures, best, {name: by[best].values[MEASURE] for name, by in outcomes.items()}


def _similarity(encoder: TextEncoder, pairs: Sequence[tuple[str, str, float]]) -> dict[str, float]:
    if not pairs:
        return {}
    first, second = _dense(encoder, [a for a, _, _ in pairs]), _dense(encoder, [b for _, b, _ in pairs])
    return {"similarity, Spearman": similarity(first, second, [score for _, _, score in pairs])}


def _labels(encoder: TextEncoder, labelled: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    if not labelled:
        return {}
    texts, labels, sources = map(list, zip(*labelled, strict=True))
    vectors = _dense(encoder, texts)
    found = {
        "classification, accuracy": accuracy(vectors, labels, train_and_test(texts, labels)),
        "clustering, V-measure": clustering(vectors, labels),
    }
    parts = [np.array([one != source for one in sources]) for source in sorted(set(sources))]
    parts = [part for part in parts if len({label for label, on in zip(labels, part, strict=True) if on}) > 1]
    if parts:  # without one source, the others still have two labels to tell apart
        found["classification of unseen sources"] = float(
            np.average([accuracy(vectors, labels, part) for part in parts], weights=[(~part).sum() for part in parts])
        )
    return found


def _costs(encoder: TextEncoder, data: OwnData) -> dict[str, float]:
    """Speed on this machine, and bytes that the vectors of a text take."""
    texts = data.sample()
    encoder.encode_documents(texts[:1])  # what is loaded once is not timed
    start = time.perf_counter()
    encoded = encoder.encode_documents(texts)
    seconds = time.perf_counter() - start
    single = []
    for text in texts[:TIMED_QUERIES]:
        start = time.perf_counter()
        encoder.encode_queries([text[:200]])
        single.append(time.perf_counter() - start)
    costs = {"texts/s": len(texts) / seconds, "query, ms": 1000 * float(np.median(single))}
    if encoded.tokens.any():
        costs["tokens/s"] = float(encoded.tokens.sum()) / seconds
        costs["texts truncated"] = float(encoded.truncated.mean())
    return costs | _sizes(encoded)


def _sizes(encoded: Encoded) -> dict[str, float]:
    sizes: dict[str, float] = {}
    if encoded.dense is not None:
        sizes["dense, bytes/text"] = 4.0 * encoded.dense.shape[1]
    if encoded.sparse is not None:
        sizes["sparse, bytes/text"] = 8.0 * len(encoded.sparse.indices) / len(encoded)
    if encoded.multi is not None:
        sizes["multi in int8, bytes/text"] = float(encoded.multi.rows.size) / len(encoded)
    return sizes


def _dense(encoder: TextEncoder, texts: Sequence[str]) -> Floats:
    dense = encoder.encode(texts, outputs=("dense",)).dense
    assert dense is not None
    return dense


def _can_be_learnt(labelled: Sequence[tuple[str, str, str]]) -> bool:
    """Whether there are labels to tell apart, and texts to test on."""
    labels = [label for _, label, _ in labelled]
    training = train_and_test([text for text, _, _ in labelled], labels)
    return not training.all() and len({label for label, on in zip(labels, training, strict=True) if on}) > 1


def _pair(row: Any, where: str) -> tuple[str, str, float]:
    a, b = text_of(row, "a", where), text_of(row, "b", where)
    score = row.get("score")
    try:
        value = math.nan if isinstance(score, bool) or not isinstance(score, int | float) else float(score)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise EvaluationError(f'{where}: "score" must be a finite number, got {str(score)[:60]}')
    return a, b, value

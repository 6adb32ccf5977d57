"""What a model retrieves when nothing stands between it and the figures: exact scores by brute force.

Texts are encoded once for all modes. Runs are judged by `threefold.evaluate`, which never sees the model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from threefold.errors import ConfigError, InputError
from threefold.evaluate.answers import judge_task
from threefold.evaluate.measures import Judgement, Run
from threefold.evaluate.report import Row
from threefold.evaluate.task import Task
from threefold.retrieve.blocks import encode_blocks
from threefold.retrieve.encoded import Recent, Unique, encode_unique
from threefold.retrieve.exact import Exact
from threefold.retrieve.modes import DEFAULT_MODES, LEXICAL, MODES, Mode, Protocol, available_modes, cut_of
from threefold.text.protocol import ModelCard, TextEncoder
from threefold.types import REPRESENTATIONS

__all__ = ["DEFAULT_MODES", "MODES", "Mode", "Outcome", "Protocol", "available_modes", "encode_task", "run_task"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out for one task: a row of figures, a run and a judgement per mode."""

    rows: tuple[Row, ...]
    runs: Mapping[Mode, Run]
    judgements: Mapping[Mode, Judgement]


def run_task(
    task: Task,
    encoder: TextEncoder,
    protocol: Protocol | None = None,
    *,
    cache: Path | None = None,
    stream: bool = False,
    recent: Recent | None = None,
) -> Outcome:
    """Encode the task once, score it exactly in every mode, and judge the runs.

    cache   a folder that keeps the encoded texts between calls
    stream  keep the vectors of the documents in files of the cache and read them block by block: for a corpus whose
            vectors do not fit in memory. An interrupted call goes on where it stopped
    recent  one for all calls with this encoder: texts that several tasks share are encoded once
    """
    protocol = protocol or Protocol()
    tokenizer = encoder.tokenizer if "bm25" in protocol.modes else None  # an error, if there is none, before any work
    clock = time.perf_counter
    start = clock()
    documents, queries = encode_task(task, encoder, protocol, cache=cache, stream=stream, recent=recent)
    encoded = clock()
    runs = Exact(task, protocol, documents, queries).runs(tokenizer)
    scored = clock()
    judgements = {mode: judge_task(task, runs[mode], protocol.measures) for mode in protocol.modes}
    seconds = {"encode": encoded - start, "score": scored - encoded, "judge": clock() - scored}
    rows = tuple(
        Row(
            task=task.name,
            mode=mode,
            values=judgements[mode].means,
            documents=len(task.documents),
            queries=len(task.qrels),
            protocol=protocol.describe(mode, task.language),
            warnings=dict(task.warnings) | ({} if mode in LEXICAL else truncations(documents, queries)),
            seconds=seconds,
        )
        for mode in protocol.modes
    )
    return Outcome(rows, runs, judgements)


def encode_task(
    task: Task,
    encoder: TextEncoder,
    protocol: Protocol,
    *,
    cache: Path | None = None,
    stream: bool = False,
    recent: Recent | None = None,
) -> tuple[Unique | None, Unique | None]:
    """Documents and judged queries as the modes of the protocol need them; None where no mode needs the model."""
    _check_modes(encoder.card, protocol)
    wanted = {name for mode in protocol.modes for name in protocol.needs(mode)}
    outputs = [name for name in REPRESENTATIONS if name in wanted]
    if not outputs:
        return None, None
    if stream and cache is None:
        raise InputError("streaming keeps the vectors in files: give a cache folder")
    texts, tokens = task.documents.values(), protocol.max_tokens
    if stream and cache is not None:
        documents = encode_blocks(encoder, texts, outputs, max_tokens=tokens, cache=cache)
    else:
        documents = encode_unique(
            encoder, list(texts), "documents", outputs, max_tokens=tokens, cache=cache, recent=recent
        )
    asked, tokens = [task.queries[id] for id in task.qrels], protocol.max_query_tokens
    queries = encode_unique(encoder, asked, "queries", outputs, max_tokens=tokens, cache=cache, recent=recent)
    return documents, queries


def _check_modes(card: ModelCard, protocol: Protocol) -> None:
    for mode in protocol.modes:
        missing = sorted(set(protocol.needs(mode)) - set(card.representations))
        if missing:
            possible = ", ".join(available_modes(card))
            raise InputError(
                f"mode {mode!r} needs {' and '.join(missing)}, which the model {card.name} does not make. "
                f"It can be evaluated in the modes {possible}"
            )
        if (dim := cut_of(mode)) is not None and dim >= card.dense_dim:
            raise ConfigError(f"mode {mode!r}: the dense vectors of {card.name} have {card.dense_dim} dimensions")


def truncations(documents: Unique | None, queries: Unique | None) -> dict[str, int]:
    """{what was longer than the protocol reads: how many}."""
    counts = {
        "documents truncated": documents.truncated if documents else 0,
        "queries truncated": queries.truncated if queries else 0,
    }
    return {what: count for what, count in counts.items() if count}

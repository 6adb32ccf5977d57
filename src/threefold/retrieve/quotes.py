"""The sentence of a hit that answers best: what a person reads first, and what is quoted.

A sentence is scored by the token vectors of the whole chunk, so it is read in its context ("It was built in 1889"):

    s(q, sentence) = 1/t * sum over i of max over the tokens j of the sentence of <q_i, p_j>

the multi-vector score (see `score/multi.py`) with its maximum over the sentence instead of the chunk, and without the
end tokens. The vectors are those that the collection keeps, so nothing is encoded for it; where it keeps none, or
pooled ones, chunks are encoded again. A model without a multi-vector head compares its dense vectors of query and
sentences, each read by itself. Measured against other ways in results/quotes.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from threefold.retrieve.tokens import Read, of_documents, of_queries
from threefold.score import dense_scores
from threefold.store.check import stored
from threefold.store.protocol import Store
from threefold.text.borders import is_code
from threefold.text.chunks import Span
from threefold.text.protocol import TextEncoder
from threefold.text.sentences import is_heading, sentence_spans
from threefold.types import Chunk, Encoded, Floats, Hit, Quote, Representation

#: Hits whose token vectors are in memory at a time: 13 MB of chunks of 256 tokens and the embedded model.
BATCH: Final = 100


def quoted_by(encoder: TextEncoder) -> Representation:
    """The representation of the query that quotes are found by."""
    return "multi" if "multi" in encoder.card.representations else "dense"


def quoted(store: Store, encoder: TextEncoder, text: str, query: Encoded, hits: Sequence[Hit]) -> list[Hit]:
    """Each hit with the sentence that answers best, the first of equals; without one where none with words was read.

    text   the query as it was typed
    query  its vectors, at least those that it is `quoted_by`
    """
    found: list[Hit] = []
    for start in range(0, len(hits), BATCH):
        part = hits[start : start + BATCH]
        best = _quotes(store, encoder, text, query, [hit.chunk for hit in part])
        found += [replace(hit, quote=quote) for hit, quote in zip(part, best, strict=True)]
    return found


def _quotes(
    store: Store, encoder: TextEncoder, text: str, query: Encoded, chunks: Sequence[Chunk]
) -> list[Quote | None]:
    spans = [_quotable(chunk, encoder) for chunk in chunks]
    if quoted_by(encoder) == "multi":
        scores = _in_context(store, encoder, text, query, chunks, spans)
    else:
        scores = _alone(encoder, query, chunks, spans)
    return [_best(*one) for one in zip(chunks, spans, scores, strict=True)]


def _quotable(chunk: Chunk, encoder: TextEncoder) -> list[Span]:
    """Its sentences. A heading names what is asked for, and says nothing of it: only where there is nothing else."""
    code = is_code(chunk.source)
    spans = sentence_spans(chunk.text, encoder.tokenizer, code=code)
    return spans if code else [span for span in spans if not is_heading(chunk.text, span)] or spans


def _in_context(
    store: Store, encoder: TextEncoder, text: str, query: Encoded, chunks: Sequence[Chunk], spans: Sequence[list[Span]]
) -> list[Floats]:
    """For each chunk the scores of its sentences by token vectors."""
    texts = [chunk.text for chunk in chunks]
    if "multi" in stored(store.manifest) and store.manifest.multi_pool == 1:
        kept = store.vectors([chunk.id for chunk in chunks], ["multi"])
    else:
        kept = encoder.encode_documents(texts, outputs=["multi"])
    (asked,) = of_queries(encoder, query, [text])
    said = of_documents(encoder, kept, texts)
    return [_sentence_scores(asked, one, sentences) for one, sentences in zip(said, spans, strict=True)]


def _sentence_scores(asked: Read, said: Read, sentences: Sequence[Span]) -> Floats:
    """(n,) the score of each sentence; -inf for one that was not read, and for all if the query has no tokens.

    A token belongs to every sentence that it has a character of: a border may lie inside a token.
    """
    scores = np.full(len(sentences), -np.inf)
    if not asked.pieces:
        return scores
    similarity = asked.rows[:-1] @ said.rows[:-1].T  # (query tokens, text tokens)
    starts = np.array([piece.start for piece in said.pieces])
    ends = np.array([piece.end for piece in said.pieces])
    for i, (start, end) in enumerate(sentences):
        inside = (starts < end) & (ends > start)
        if inside.any():
            scores[i] = similarity[:, inside].max(axis=1).mean()
    return scores


def _alone(encoder: TextEncoder, query: Encoded, chunks: Sequence[Chunk], spans: Sequence[list[Span]]) -> list[Floats]:
    """For each chunk the scores of its sentences by dense vectors."""
    texts = [chunk.text[start:end] for chunk, sentences in zip(chunks, spans, strict=True) for start, end in sentences]
    if not texts:
        return [np.zeros(0, np.float32)] * len(chunks)
    vectors = encoder.encode_documents(texts, outputs=["dense"])
    assert query.dense is not None  # both were asked for
    assert vectors.dense is not None
    scores = dense_scores(query.dense[0], vectors.dense)
    return np.split(scores, np.cumsum([len(sentences) for sentences in spans])[:-1])


def _best(chunk: Chunk, sentences: Sequence[Span], scores: Floats) -> Quote | None:
    if not sentences or np.isneginf(scores.max()):
        return None
    at = int(scores.argmax())
    start, end = sentences[at]
    return Quote(chunk.text[start:end], chunk.start + start, chunk.start + end, float(scores[at]))

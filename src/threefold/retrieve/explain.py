"""Why a chunk was found: raw scores, contributions, ranks, shared terms, and the token pairs that match best.

Token vectors are made anew from the query and from the text of the hit, so a collection that stores them compactly,
or not at all, is explained with the full ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from threefold.retrieve.stages import Ranked, Scorer
from threefold.retrieve.tokens import Read, of_documents, of_queries
from threefold.store.protocol import Store
from threefold.text.protocol import TextEncoder
from threefold.text.tokenizer import Piece, Tokenizer
from threefold.types import REPRESENTATIONS, Chunk, Encoded, Representation, TermMatch, TokenMatch, Why

T = TypeVar("T")

#: Token pairs and terms that an explanation names at most.
TOP = 10


def explain(
    store: Store,
    encoder: TextEncoder,
    text: str,
    query: Encoded,
    found: Sequence[Ranked],
    chunks: Sequence[Chunk],
    *,
    top: int = TOP,
) -> list[Why]:
    """The reason for each hit.

    text    the query as it was typed
    query   its representations, all that the collection keeps
    found   the hits, with their chunks in `chunks`
    """
    if not found:
        return []
    ids = [one.id for one in found]
    scores = store.score(query, ids)
    terms = shared_terms(query, store.vectors(ids, ["sparse"]), encoder.tokenizer, top)
    tokens = best_token_pairs(encoder, text, [chunk.text for chunk in chunks], top)
    return [
        Why(
            scores=_named({name: float(values[i]) for name, values in scores.items()}) | _named(one.scores),
            contributions=_named(one.contributions),
            ranks=_named(one.ranks),
            terms=terms[i],
            tokens=tokens[i],
        )
        for i, one in enumerate(found)
    ]


def _named(values: Mapping[Scorer, T] | Mapping[Representation, T]) -> dict[str, T]:
    """In the usual order, the cross-encoder last."""
    by_name: dict[str, T] = {str(name): value for name, value in values.items()}
    return {name: by_name[name] for name in (*REPRESENTATIONS, "cross") if name in by_name}


def shared_terms(query: Encoded, docs: Encoded, tokenizer: Tokenizer, top: int) -> list[tuple[TermMatch, ...]]:
    """Terms that query and text share, the largest product first."""
    if query.sparse is None or docs.sparse is None:
        return [()] * len(docs)
    asked = query.sparse.row(0)
    matches = []
    for i in range(len(docs)):
        said = docs.sparse.row(i)
        shared = [TermMatch(tokenizer.token(id), asked[id], said[id]) for id in asked if id in said]
        matches.append(tuple(sorted(shared, key=lambda term: (-term.product, term.term))[:top]))
    return matches


def best_token_pairs(encoder: TextEncoder, query: str, texts: Sequence[str], top: int) -> list[tuple[TokenMatch, ...]]:
    """For each text the best match of every query token, the most similar first."""
    if "multi" not in encoder.card.representations:
        return [()] * len(texts)
    tokenizer = encoder.tokenizer
    query_vectors = encoder.encode_queries([query], outputs=("multi",))
    text_vectors = encoder.encode_documents(texts, outputs=("multi",))
    (asked,) = of_queries(encoder, query_vectors, [query])
    said = of_documents(encoder, text_vectors, texts)
    return [_best_pairs(asked, one, tokenizer, len(text), top) for text, one in zip(texts, said, strict=True)]


def _best_pairs(asked: Read, said: Read, tokenizer: Tokenizer, text_length: int, top: int) -> tuple[TokenMatch, ...]:
    """The end token of the query is left out; that of the text has an empty span after its last character."""
    end = Piece(tokenizer.sep_id, tokenizer.token(tokenizer.sep_id), text_length, text_length)
    targets = [*said.pieces, end]
    similarity = asked.rows[:-1] @ said.rows.T  # (query tokens, text tokens + 1)
    best = similarity.argmax(axis=1).tolist()
    matches = [
        TokenMatch(
            piece.text, (piece.start, piece.end), targets[j].text, (targets[j].start, targets[j].end), float(row[j])
        )
        for piece, row, j in zip(asked.pieces, similarity, best, strict=True)
    ]
    return tuple(sorted(matches, key=lambda match: (-match.similarity, match.query_span))[:top])

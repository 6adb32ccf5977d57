"""Where hard negatives come from: the different texts of a data set or a corpus, and who must not be whose negative."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from threefold.errors import DataError
from threefold.evaluate.beir import titled
from threefold.train.examples import Example
from threefold.train.lines import records, text_lines


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Different texts and different queries, numbered in order of first appearance.

    texts, queries  {text: number}
    answers         of each query: numbers of its positives
    barred          of each query: numbers of texts that must not be its negatives, its positives among them
    """

    texts: dict[str, int]
    queries: dict[str, int]
    answers: tuple[frozenset[int], ...]
    barred: tuple[frozenset[int], ...]

    @classmethod
    def of(cls, examples: Sequence[Example], corpus: Iterable[str] = ()) -> Pool:
        """All positives and negatives of the examples, and the texts of the corpus.

        Barred for a query are its positives, the positives of its groups, and every text that differs from one of
        these, or from the query, only in case, spaces or compatible characters (NFKC).
        """
        texts: dict[str, int] = {}
        for text in (*_texts(examples), *corpus):
            texts.setdefault(text, len(texts))
        queries: dict[str, int] = {}
        for example in examples:
            queries.setdefault(example.asked, len(queries))
        alike: defaultdict[str, set[int]] = defaultdict(set)
        for text, number in texts.items():
            alike[_plain(text)].add(number)
        groups: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for example in examples:
            if example.group:
                groups[example.source, example.group].update(*(alike[_plain(text)] for text in example.positives))
        answers: list[set[int]] = [set() for _ in queries]
        barred: list[set[int]] = [set() for _ in queries]
        for example in examples:
            number = queries[example.asked]
            answers[number].update(texts[text] for text in example.positives)
            for text in (example.query, *example.positives):
                barred[number] |= alike.get(_plain(text), set())
            if example.group:
                barred[number] |= groups[example.source, example.group]
        return cls(texts, queries, tuple(map(frozenset, answers)), tuple(map(frozenset, barred)))


def read_corpus(path: Path) -> Iterator[str]:
    """The texts of a corpus: a folder in BEIR layout, JSON lines with `text` and perhaps `title`, or lines of text.

    Title and text are joined as in evaluation.
    """
    file = path / "corpus.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file; a corpus is .jsonl, .txt, or a folder with corpus.jsonl")
    if ".txt" in file.suffixes:
        yield from (text for _, text in text_lines(file))
        return
    for where, row in records(file, ("text", "title")):
        text, title = row.get("text"), row.get("title") or ""
        if not isinstance(text, str) or not isinstance(title, str):
            raise DataError(f'{where}: expected "text", and perhaps "title", as texts; got {str(dict(row))[:80]}')
        joined = titled(title, text)
        if joined.strip():
            yield joined


def _texts(examples: Iterable[Example]) -> Iterator[str]:
    for example in examples:
        yield from example.positives
        yield from example.negatives


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

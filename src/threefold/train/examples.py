"""Training data: a query, what answers it and what does not. Checked line by line before anything is trained on.

Two forms of record, which one file may mix:

    {"query": str, "pos": [str], "neg": [str], "pos_scores": [number], "neg_scores": [number], "prompt": str,
     "type": str}
    {"query": str, "positive": str, "negative": str or [str]}

The first is the community's (FlagEmbedding 1.4, `abc/finetune/embedder/AbsDataset.py`); only `query` and `pos` must be
there. Both may have `query_lang`, `positive_lang`, `group`, `source`, `kind`, `in_batch_negatives`. Other fields are
counted and not used. Knows texts, not tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from threefold.characters import clean
from threefold.errors import DataError
from threefold.train.lines import is_data, records, stem

#: Kinds whose query and positive are of one sort and may be exchanged: FlagEmbedding's types, and translations.
SYMMETRIC: Final = frozenset({"symmetric_sts", "symmetric_clustering", "parallel", "lexicon"})
#: Types whose prompt belongs in front of the passages too (FlagEmbedding `_create_batch_data`).
_PROMPTED: Final = frozenset({"symmetric_sts", "symmetric_clustering"})
#: FlagEmbedding's way to say that a file's pairs must not be negatives of each other: the end of its name.
_ALONE: Final = "no_in_batch_neg"

_COMMUNITY: Final = ("pos", "neg", "pos_scores", "neg_scores")
_PAIR: Final = ("positive", "negative", "negatives")
_WORDS: Final = ("prompt", "type", "kind", "query_lang", "positive_lang", "group", "source")
FIELDS: Final = ("query", *_COMMUNITY, *_PAIR, *_WORDS, "in_batch_negatives")


@dataclass(frozen=True, slots=True)
class Example:
    """One record.

    positive_scores, negative_scores  a teacher's, one per text; empty: unknown
    prompt    goes in front of the query, nothing between them
    kind      `type` or `kind` of the record; a batch holds one kind
    group     with `source`: records of one group are not negatives of each other
    alone     only its own negatives are negatives
    where     file and line, for messages
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    prompt: str = ""
    kind: str = ""
    query_lang: str = ""
    positive_lang: str = ""
    group: str = ""
    source: str = ""
    alone: bool = False
    where: str = field(default="", compare=False)

    @property
    def asked(self) -> str:
        """The query as the model reads it."""
        return self.prompt + self.query

    @property
    def symmetric(self) -> bool:
        """Whether query and positive may be exchanged."""
        return self.kind in SYMMETRIC

    def said(self, passage: str) -> str:
        """A passage as the model reads it."""
        return self.prompt + passage if self.kind in _PROMPTED else passage

    def to_row(self) -> dict[str, Any]:
        """The community's record; what is empty is left out, but for `neg`, which its readers ask for."""
        row: dict[str, Any] = {"query": self.query, "pos": list(self.positives), "neg": list(self.negatives)}
        if self.positive_scores:
            row["pos_scores"] = list(self.positive_scores)
        if self.negative_scores or (self.positive_scores and not self.negatives):
            row["neg_scores"] = list(self.negative_scores)
        words = {"prompt": self.prompt, "type": self.kind, "query_lang": self.query_lang}
        words |= {"positive_lang": self.positive_lang, "group": self.group, "source": self.source}
        row |= {name: word for name, word in words.items() if word}
        return row | ({"in_batch_negatives": False} if self.alone else {})


# ---- files ------------------------------------------------------------------------------------------------


def data_files(paths: Iterable[Path]) -> list[Path]:
    """The files that are named, and those of the folders that are named, by name.

    In a folder, what begins with a dot is not data: drafts of a run that was killed, checkpoints of notebooks.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(_inside(path)) if path.is_dir() else []
        if not inside and not path.is_file():
            raise DataError(f"{path}: " + ("no training data in this folder" if path.is_dir() else "no such file"))
        found += inside or [path]
    if not found:
        raise DataError("no files of training data were named")
    return found


def _inside(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and is_data(path) and path.is_file():
            yield path


def read_examples(paths: Iterable[Path], found: Counter[str] | None = None) -> Iterator[Example]:
    """Every record of the files, in order. `found` counts what is odd and yet no error."""
    counts = Counter[str]() if found is None else found
    for path in data_files(paths):
        empty = True
        for where, row in records(path, FIELDS):
            empty = False
            yield read_example(row, where, stem(path), counts)
        if empty:
            raise DataError(f"{path}: is empty")


def read_all(paths: Iterable[Path], found: Counter[str]) -> list[Example]:
    """`read_examples` as a list; equal pairs of query and positive are counted."""
    examples = list(read_examples(paths, found))
    pairs = Counter((one.asked, positive) for one in examples for positive in one.positives)
    if repeated := pairs.total() - len(pairs):
        found["pairs that were there before"] += repeated
    return examples


# ---- one record -------------------------------------------------------------------------------------------


def read_example(row: Mapping[str, Any], where: str, name: str, found: Counter[str]) -> Example:
    """One record, checked. `name` is its source where it names none."""
    for key in row.keys() - set(FIELDS):
        found[f"field {key!r}, not used"] += 1
    community = "pos" in row
    if community == ("positive" in row):
        raise DataError(f'{where}: a record has either "pos", a list, or "positive", a text; got {", ".join(row)}')
    for key in _PAIR if community else ("neg",):
        if key in row:
            raise DataError(
                f'{where}: "{key}" does not go with "{"pos" if community else "positive"}"; see the two forms'
            )
    words = {key: _word(row, key, where) for key in _WORDS}
    example = Example(
        query=_text(row.get("query"), "query", where),
        positives=_texts(row["pos"], "pos", where) if community else (_text(row["positive"], "positive", where),),
        negatives=_texts(row.get("neg"), "neg", where) if community else _pair_negatives(row, where),
        prompt=words["prompt"],
        kind=words["type"] or words["kind"],
        query_lang=words["query_lang"],
        positive_lang=words["positive_lang"],
        group=words["group"],
        source=words["source"] or name,
        alone=not _truth(row, "in_batch_negatives", where) or name.endswith(_ALONE),
        where=where,
    )
    if not example.positives:
        raise DataError(f'{where}: "pos" is empty; a query needs at least one text that answers it')
    example = replace(
        example,
        positive_scores=_scores(row, "pos_scores", len(example.positives), where),
        negative_scores=_scores(row, "neg_scores", len(example.negatives), where),
    )
    return _consistent(example, found)


def _consistent(example: Example, found: Counter[str]) -> Example:
    """Without negatives that are positives as well."""
    kept = [i for i, text in enumerate(example.negatives) if text not in example.positives]
    if left_out := len(example.negatives) - len(kept):
        found["negatives that are positives too, left out"] += left_out
        example = replace(
            example,
            negatives=tuple(example.negatives[i] for i in kept),
            negative_scores=tuple(example.negative_scores[i] for i in kept if example.negative_scores),
        )
    if example.alone and not example.negatives:
        raise DataError(
            f"{example.where}: no negatives, and those of other records must not be taken: it teaches nothing"
        )
    return example


def _pair_negatives(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if "negative" in row and "negatives" in row:
        raise DataError(f'{where}: "negative" and "negatives" mean the same; give one of them')
    key = "negatives" if "negatives" in row else "negative"
    value = row.get(key)
    return (_text(value, key, where),) if isinstance(value, str) else _texts(value, key, where)


def _text(value: Any, key: str, where: str) -> str:
    if value is None:
        raise DataError(f'{where}: "{key}" is missing')
    if not isinstance(value, str):
        raise DataError(f'{where}: "{key}" must be text, got {_shown(value)}')
    if not value.strip():
        raise DataError(f'{where}: "{key}" is blank')
    return clean(value)


def _texts(value: Any, key: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f'{where}: "{key}" must be a list of texts, got {_shown(value)}')
    return tuple(_text("" if one is None else one, f"{key}[{i}]", where) for i, one in enumerate(value))


def _scores(row: Mapping[str, Any], key: str, count: int, where: str) -> tuple[float, ...]:
    value = row.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f'{where}: "{key}" must be a list of numbers, got {_shown(value)}')
    if len(value) != count:
        raise DataError(f'{where}: "{key}" has {len(value)} numbers for {count} texts')
    for i, score in enumerate(value):
        if isinstance(score, bool) or not isinstance(score, int | float) or not _finite(score):
            raise DataError(f'{where}: "{key}[{i}]" must be a finite number, got {_shown(score)}')
    return tuple(map(float, value))


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _word(row: Mapping[str, Any], key: str, where: str) -> str:
    """An optional short text; groups are often numbers."""
    value = row.get(key)
    if value is None:
        return ""
    if key == "group" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f'{where}: "{key}" must be text, got {_shown(value)}')
    return clean(value)


def _truth(row: Mapping[str, Any], key: str, where: str) -> bool:
    value = row.get(key)
    if value is None or isinstance(value, bool):
        return value is not False
    raise DataError(f'{where}: "{key}" must be true or false, got {_shown(value)}')


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"

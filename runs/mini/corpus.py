"""The training data of threefold-mini, read in place: pairs, monolingual lines, normalisation.

Knows the files of the data folder (see its README); knows nothing of models. Shared by the steps of
`runs/mini/`, each of which is one script that can be run alone.
"""

from __future__ import annotations

import json
import lzma
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Long-document pairs are not used by the first recipe: positions end at 512.
LEFT_OUT = {"long"}
#: Kinds of pairs whose sides say the same.
SAME_MEANING = {"parallel", "lexicon"}
#: Sentences that `paragraphs` joins.
JOINED = (2, 7)


class Pair(NamedTuple):
    """One row of a training file; `group` and `source` together identify the meaning of the positive."""

    query: str
    positive: str
    query_lang: str
    positive_lang: str
    kind: str
    source: str
    group: str


def read_pairs(data: Path, source: str = "*") -> Iterator[Pair]:
    """Every training pair, or those of one source; file by file in sorted order."""
    for path in sorted((data / "train").glob(f"{source}.jsonl.xz")):
        source = path.name.split(".")[0]
        if source in LEFT_OUT:
            continue
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield Pair(
                    row["query"], row["positive"], row["query_lang"], row["positive_lang"], row["kind"], source,
                    row["group"],
                )  # fmt: skip


def read_mono(data: Path) -> Iterator[tuple[str, str]]:
    """(language, line) of the monolingual files."""
    for path in sorted((data / "mono").glob("*.txt.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield path.name.split(".")[0], line.rstrip("\n")


def held_out(english: str) -> bool:
    """A fiftieth of all English sentences, in no language trained on: `devset.py` asks for them."""
    return zlib.crc32(english.encode()) % 50 == 0


def kept_back(pair: Pair) -> bool:
    """Whether a pair has one of these sentences."""
    return pair.kind in SAME_MEANING and any(
        held_out(text) for text, language in ((pair.query, pair.query_lang), (pair.positive, pair.positive_lang))
        if language == "en"
    )  # fmt: skip


def paragraphs(sentences: Sequence[tuple[str, str]], rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Runs of `JOINED` sentences (foreign, English), each sentence in one of them."""
    ends = np.cumsum(rng.integers(*JOINED, size=len(sentences)))
    for start, end in pairwise([0, *ends[ends < len(sentences)].tolist(), len(sentences)]):
        foreign, english = zip(*sentences[start:end], strict=True)
        yield " ".join(foreign), " ".join(english)


def normalise(text: str) -> str:
    """What the tokenizer's own normaliser does: NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())

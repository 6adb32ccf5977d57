"""The training data of threefold-mini, read in place: pairs, monolingual lines, normalisation.

Knows the files of the data folder (see its README); knows nothing of models. Shared by the steps of
`runs/mini/`, each of which is one script that can be run alone.
"""

from __future__ import annotations

import json
import lzma
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: Long-document pairs are not used by the first recipe: positions end at 512.
LEFT_OUT = {"long"}


class Pair(NamedTuple):
    """One row of a training file; `group` and `source` together identify the meaning of the positive."""

    query: str
    positive: str
    query_lang: str
    positive_lang: str
    kind: str
    source: str
    group: str


def read_pairs(data: Path) -> Iterator[Pair]:
    """Every training pair, file by file in sorted order."""
    for path in sorted((data / "train").glob("*.jsonl.xz")):
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


def normalise(text: str) -> str:
    """What the tokenizer's own normaliser does: NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())

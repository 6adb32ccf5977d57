"""Benchmarks by name: `miracl:sw`, `mldr:ar,hi`, `mkqa:th`, `narrativeqa`, `beir:scifact`; a bare name is all of one.

Each states its protocol: how a document is made of its fields, lengths, what is ignored, measures, the published
weights of fusion (by their name in `threefold.score.PUBLISHED`), and the figures to compare with (`published`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from threefold.errors import EvaluationError
from threefold.evaluate import longdoc, miracl, mkqa
from threefold.evaluate.answers import ANSWER_MEASURES
from threefold.evaluate.beir import load_task
from threefold.evaluate.hub import HubFiles, fetch
from threefold.evaluate.task import Task

#: (subset, split, folder of copies or None for the hub) -> task
Load = Callable[[str, str, Path | None], Task]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A family of tasks with one protocol.

    subsets           languages or sets
    splits            the first is the one of the papers
    protocol          fields and their joining, what is ignored, in words
    measures          what the papers report
    max_tokens        of a document; models that read less read less
    max_query_tokens  of a query
    multi_depth       `multi` and `hybrid` rerank so many of dense
    weights           name of the published weights of `hybrid`; dense_sparse: of `dense+sparse`
    """

    name: str
    subsets: tuple[str, ...]
    splits: tuple[str, ...]
    load: Load
    protocol: str
    measures: tuple[str, ...]
    max_tokens: int
    max_query_tokens: int
    multi_depth: int
    weights: str
    dense_sparse: str


@dataclass(frozen=True, slots=True)
class NamedTask:
    """A task that is not loaded yet."""

    benchmark: Benchmark
    subset: str

    @property
    def name(self) -> str:
        """As in reports: `miracl/sw`."""
        return f"{self.benchmark.name}/{self.subset}" if self.subset else self.benchmark.name

    @property
    def by_answers(self) -> bool:
        """Whether it is judged by answer strings."""
        return self.benchmark.measures == ANSWER_MEASURES

    def split(self, wanted: str | None = None) -> str:
        """The split that is meant, if there is one of that name; without a name, that of the papers."""
        splits = self.benchmark.splits
        if wanted and wanted not in splits:
            raise EvaluationError(f"{self.name} has no split {wanted!r}; it has {', '.join(splits)}")
        return wanted or splits[0]

    def load(self, split: str | None = None, data: Path | None = None) -> Task:
        """From the hub, or from a folder of copies."""
        return self.benchmark.load(self.subset, self.split(split), data)


# ---- BEIR ---------------------------------------------------------------------------------------------------

#: The 15 public sets of BEIR in mteb's copies (`corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv` or `.jsonl`), each at
#: the revision of mteb 2.26. CQADupStack is 12 sets; papers report their mean as one.
_BEIR: Final[Mapping[str, str]] = {
    "arguana": "c22ab2a51041ffd869aaddef7af8d8215647e41a",
    "climate-fever": "47f2ac6acb640fc46020b02a5b59fdda04d39380",
    "dbpedia": "c0f706b76e590d620bd6618b3ca8efdd34e2d659",
    "fever": "bea83ef9e8fb933d90a2f1d5515737465d613e12",
    "fiqa": "27a168819829fe9bcd655c2df245fb19452e8e06",
    "hotpotqa": "ab518f4d6fcca38d87c25209f94beba119d02014",
    "msmarco": "c5a29a104738b98a9e76336939199e264163d4a0",
    "nfcorpus": "ec0fa4fe99da2ff19ca1214b7966684033a58814",
    "nq": "b774495ed302d8c44a3a7ea25c90dbce03968f31",
    "quora": "e4e08e0b7dbe3c8700f0daef558ff32256715259",
    "scidocs": "f8c2fcf00f625baaa80f62ec5bd9e1fff3b8ae88",
    "scifact": "d56462d0e63a25450459c4f213e49ffdb866f7f9",
    "touche2020": "a34f9a33db75fa0cbb21bb5cfc3dae8dc8bec93f",
    "trec-covid": "bb9466bac8153a0349341eb1b22e06409e78ef4e",
    "cqadupstack-android": "9be4c0e46342e8e3aff577a89b9a1ec9bc6b4af3",
    "cqadupstack-english": "ad9991cb51e31e31e430383c75ffb2885547b5f0",
    "cqadupstack-gaming": "4885aa143210c98657558c04aaf3dc47cfb54340",
    "cqadupstack-gis": "5003b3064772da1887988e05400cf3806fe491f2",
    "cqadupstack-mathematica": "90fceea13679c63fe563ded68f3b6f06e50061de",
    "cqadupstack-physics": "79531abbd1fb92d06c6d6315a0cbbbf5bb247ea4",
    "cqadupstack-programmers": "6184bc1440d2dbc7612be22b50686b8826d22b32",
    "cqadupstack-stats": "65ac3a16b8e91f9cee4c9828cc7c335575432a2a",
    "cqadupstack-tex": "46989137a86843e03a6195de44b09deda022eec7",
    "cqadupstack-unix": "6c6430d3a6d36f8d2a829195bc5dc94d7e063e53",
    "cqadupstack-webmasters": "160c094312a0e1facb97e55eeddb698c0abe3571",
    "cqadupstack-wordpress": "4ffe81d471b1924886b33c7567bfb200e9eec5c4",
}
#: Sets whose queries are documents of the corpus.
_OWN_IDS: Final = ("arguana", "quora")
#: BEIR reports MS MARCO on its dev split.
_DEV: Final = ("msmarco",)


def _load_beir(name: str, split: str, data: Path | None) -> Task:
    split = "dev" if name in _DEV and split == "test" else split
    files = HubFiles(f"mteb/{name}", _BEIR[name], ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.*"))
    return load_task(
        fetch(files, data),
        name=f"beir/{name}",
        split=split,
        strict=False,
        template="{title} {text}",
        ignore_identical_ids=name in _OWN_IDS,
        language="en",
    )


# ---- all of them --------------------------------------------------------------------------------------------

_miracl = partial(
    Benchmark,
    measures=("nDCG@10", "Recall@100"),
    max_tokens=512,
    max_query_tokens=512,
    multi_depth=200,
    weights="miracl",
    dense_sparse="miracl-dense+sparse",
)
BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    one.name: one
    for one in (
        _miracl(
            name="miracl",
            subsets=miracl.LANGUAGES,
            splits=("dev", "train"),
            load=miracl.load,
            protocol="title, newline, text; no id is ignored",
        ),
        Benchmark(
            name="mldr",
            subsets=longdoc.MLDR_LANGUAGES,
            splits=("test", "dev", "train"),
            load=longdoc.load_mldr,
            protocol="text; queries to 512 tokens, documents to 8,192",
            measures=("nDCG@10", "Recall@100"),
            max_tokens=8_192,
            max_query_tokens=512,
            multi_depth=200,
            weights="mldr",
            dense_sparse="mldr-dense+sparse",
        ),
        Benchmark(
            name="mkqa",
            subsets=mkqa.LANGUAGES,
            splits=("test",),
            load=mkqa.load,
            protocol="normalised, lower-cased title, newline, text of English passages; a hit holds an answer string",
            measures=ANSWER_MEASURES,
            max_tokens=512,
            max_query_tokens=512,
            multi_depth=100,
            weights="mkqa",
            dense_sparse="mkqa-dense+sparse",
        ),
        Benchmark(
            name="narrativeqa",
            subsets=("",),
            splits=("test",),
            load=longdoc.load_narrativeqa,
            protocol="whole stories as documents; documents to 8,192 tokens; weights of MLDR (the paper names none)",
            measures=("nDCG@10", "Recall@100"),
            max_tokens=8_192,
            max_query_tokens=512,
            multi_depth=200,
            weights="mldr",
            dense_sparse="mldr-dense+sparse",
        ),
        _miracl(
            name="beir",
            subsets=tuple(_BEIR),
            splits=("test", "dev", "train"),
            load=_load_beir,
            protocol="title, space, text; own ids ignored in ArguAna and Quora; MS MARCO on dev; weights of MIRACL",
        ),
    )
}


def is_name(text: str) -> bool:
    """Whether a text names benchmarks: its part before the colon is known."""
    return text.partition(":")[0] in BENCHMARKS


def named_tasks(text: str) -> Iterator[NamedTask]:
    """The tasks that a text names: `miracl`, `miracl:sw`, `beir:scifact,nfcorpus`."""
    name, _, rest = text.partition(":")
    if name not in BENCHMARKS:
        raise EvaluationError(f"{name!r} is not a benchmark; known are {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    for subset in [part.strip() for part in rest.split(",")] if rest else benchmark.subsets:
        if subset not in benchmark.subsets:
            raise EvaluationError(f"{name} has no {subset!r}; it has {', '.join(filter(None, benchmark.subsets))}")
        yield NamedTask(benchmark, subset)

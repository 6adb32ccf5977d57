"""Hard negatives: texts that a retriever finds for a query near its answers, and that are probably no answers.

    pool -> exact run in one mode -> window of ranks -> margin to the positive -> teacher -> so many per example

Every score is exact, ties break by number and every draw has a seed, so the same files give the same negatives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np

from threefold.config import Settings
from threefold.errors import ConfigError, InputError
from threefold.evaluate.task import Task
from threefold.retrieve.bm25 import BM25, model_terms
from threefold.retrieve.exact import Exact
from threefold.retrieve.experiment import encode_task, truncations
from threefold.retrieve.modes import RANK_FUSION, Mode, Protocol, check_weights
from threefold.score import Weights
from threefold.text.protocol import TextEncoder
from threefold.train.examples import Example
from threefold.train.judge import Judge, PairScores, check_scored, distil, judged, with_scores
from threefold.train.pool import Pool

#: `multi` and `hybrid` rerank at least so many best texts of dense, as in the paper's experiments.
_MULTI_DEPTH: Final = 200
#: Modes whose scores are of ranks, or of words that only a whole run knows.
_NO_MARGIN: Final = (*RANK_FUSION, "bm25-words")
#: A teacher reads at most so many candidates for every negative that is wanted.
_SPARE: Final = 3


@dataclass(frozen=True, slots=True)
class Margin(Settings):
    """How far below the positive a negative must score: s < p - absolute - relative * |p|.

    NV-Retriever (Moreira et al. 2024, arXiv 2407.15831) calls the relative margin TopK-PercPos (0.05 is its 95 %) and
    the absolute one TopK-MarginPos. For scores that may be negative, such as logits, the absolute one makes sense.
    """

    absolute: float = 0.0
    relative: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Margin:
        """`0.1`, or `5%` of the positive's score."""
        try:
            share = text.strip().endswith("%")
            value = float(text.strip().removesuffix("%"))
            if not math.isfinite(value):
                raise ValueError
        except ValueError:
            raise ConfigError(f"margin {text!r}: expected a number such as 0.1, or a share such as 5%") from None
        return cls(relative=value / 100) if share else cls(absolute=value)

    def limit(self, positive: float) -> float:
        """Negatives score below this."""
        return positive - self.absolute - self.relative * abs(positive)


@dataclass(frozen=True, slots=True)
class MineSettings(Settings):
    """How negatives are chosen.

    mode            how the pool is searched: one of `retrieve.modes.MODES`
    ranks           first and last rank that count, from 1, among the texts that may be negatives at all. The first
                    ten, which are often answers that nobody marked, are left out; so does the reference (FlagEmbedding
                    `scripts/hn_mine.py`, whose 10-210 is the slice [10:210], known answers among them)
    negatives       so many per example; where fewer pass, fewer
    pick            which of those that pass: drawn at random, or the hardest first
    margin          to the worst positive of the query, in the scores of the mode; None: no filter
    teacher_margin  the same in the scores of the teacher
    keep            negatives that an example has already stay in front of the new ones
    """

    mode: Mode = "hybrid"
    ranks: tuple[int, ...] = (11, 110)
    negatives: int = 7
    pick: Literal["random", "hardest"] = "random"
    margin: Margin | None = None
    teacher_margin: Margin = field(default_factory=Margin)
    keep: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.ranks) != 2 or not 1 <= self.ranks[0] <= self.ranks[1]:
            raise ConfigError(f"ranks must be a first and a last rank from 1 on, such as 11:110; got {self.ranks}")
        if self.negatives < 1:
            raise ConfigError(f"negatives must be at least 1; got {self.negatives}")
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more; got {self.seed}")
        if self.margin is not None and self.mode in _NO_MARGIN:
            raise ConfigError(f"mode {self.mode!r} gives no score to put a margin on; use hybrid, or no margin")


class Mined(NamedTuple):
    """The examples with their negatives, in the order in which they came, and what happened on the way."""

    examples: list[Example]
    counts: dict[str, int]


def mine(
    examples: Sequence[Example],
    encoder: TextEncoder,
    settings: MineSettings | None = None,
    *,
    corpus: Sequence[str] = (),
    teacher: Judge | None = None,
    weights: Weights | None = None,
    max_tokens: int | None = None,
    cache: Path | None = None,
    stream: bool = False,
    scored: bool = False,
) -> Mined:
    """Hard negatives for every example, from the texts of all examples and of the corpus.

    teacher        judges pairs of query and text; a candidate must be below the worst positive
    weights        of the fused modes; None: those of the model
    max_tokens     of a text; None: the longest that the model reads
    cache, stream  as in `retrieve.experiment.run_task`
    scored         give positives and negatives the scores of the teacher, or of the mode where there is none
    """
    if not examples:
        raise InputError("no examples to mine negatives for")
    settings = settings or MineSettings()
    check_weights(settings.mode, weights)
    if scored and teacher is None:
        check_scored(settings.mode)
    pool = Pool.of(examples, corpus)
    counts = Counter[str]()
    mined: dict[int, Example] = {}
    for prompt, numbers in _by_prompt(examples).items():
        asked = dict.fromkeys(pool.queries[examples[number].asked] for number in numbers)
        search = _Search(pool, prompt, list(asked), encoder, settings, weights, max_tokens, cache, stream)
        counts |= search.truncated  # the larger: one text counts once, whatever is read in front of it
        for number in numbers:
            example = examples[number]
            candidates = search.candidates(pool.queries[example.asked])
            one = _with(example, _choose(example, candidates, settings, number, teacher, counts), settings, counts)
            mined[number] = search.scored(one) if scored and teacher is None else one
    done = [mined[number] for number in range(len(examples))]
    if scored and teacher is not None:
        done = list(distil(done, teacher))
    return Mined(done, {"texts in the pool": len(pool.texts), **counts})


def _by_prompt(examples: Sequence[Example]) -> dict[str, list[int]]:
    """{what training puts in front of the passages: examples that are read so}; nothing for most kinds."""
    found: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        found.setdefault(example.said(""), []).append(number)
    return found


# ---- candidates -------------------------------------------------------------------------------------------


class _Search:
    """An exact run of these queries over the pool, and the candidates that are left of it.

    prompt  in front of every text, as training reads the passages of these queries
    asked   numbers of the queries
    """

    def __init__(
        self,
        pool: Pool,
        prompt: str,
        asked: Sequence[int],
        encoder: TextEncoder,
        settings: MineSettings,
        weights: Weights | None,
        max_tokens: int | None,
        cache: Path | None,
        stream: bool,
    ) -> None:
        self.pool, self.settings, mode = pool, settings, settings.mode
        self.texts = list(pool.texts)
        self.rows = {query: row for row, query in enumerate(asked)}
        depth = settings.ranks[1] + max(map(len, pool.barred))
        self.protocol = Protocol(
            modes=(mode,),
            measures=(),
            weights=weights or Weights(*encoder.card.fusion),
            depth=depth,
            multi_depth=max(depth, _MULTI_DEPTH),
            max_tokens=max_tokens,
        )
        task = _task(pool, prompt, asked)
        documents, queries = encode_task(task, encoder, self.protocol, cache=cache, stream=stream)
        self.truncated = Counter(truncations(documents, queries))
        run = Exact(task, self.protocol, documents, queries).runs(encoder.tokenizer)[mode]
        self.found = list(run.values())
        self.scores: PairScores | None = None
        if documents is not None and queries is not None and mode not in RANK_FUSION:
            self.scores = PairScores(mode, self.protocol, queries, documents)
        self.worst = [] if settings.margin is None else self._worst(encoder, task)

    def candidates(self, query: int) -> list[str]:
        """The texts of the window of ranks that pass the margin, best first."""
        first, last = self.settings.ranks
        barred, row = self.pool.barred[query], self.rows[query]
        allowed = [(int(id), score) for id, score in self.found[row].items() if int(id) not in barred]
        window = allowed[first - 1 : last]
        if self.settings.margin is not None:
            limit = self.settings.margin.limit(self.worst[row])
            window = [(place, score) for place, score in window if score < limit]
        return [self.texts[place] for place, _ in window]

    def scored(self, example: Example) -> Example:
        """The example with the scores of the mode."""
        assert self.scores is not None
        places = [self.pool.texts[text] for text in (*example.positives, *example.negatives)]
        row = self.rows[self.pool.queries[example.asked]]
        return with_scores(example, self.scores(row, places).tolist())

    def _worst(self, encoder: TextEncoder, task: Task) -> list[float]:
        """The score of every query's worst positive."""
        answers = [sorted(self.pool.answers[query]) for query in self.rows]
        if self.scores is not None:
            return [float(self.scores(row, places).min()) for row, places in enumerate(answers)]
        engine = BM25(model_terms(encoder.tokenizer, list(task.documents.values())))
        asked = model_terms(encoder.tokenizer, list(task.queries.values()))
        return [float(engine.scores([terms])[0, places].min()) for terms, places in zip(asked, answers, strict=True)]


def _task(pool: Pool, prompt: str, asked: Sequence[int]) -> Task:
    """The pool and these queries as a retrieval task. Ids are numbers of equal width, so that ties break by number."""
    width, queries = len(str(len(pool.texts))), list(pool.queries)
    return Task(
        name="pool",
        documents={f"{number:0{width}}": prompt + text for text, number in pool.texts.items()},
        queries={str(query): queries[query] for query in asked},
        qrels={str(query): {f"{place:0{width}}": 1 for place in sorted(pool.answers[query])} for query in asked},
    )


# ---- the choice -------------------------------------------------------------------------------------------


def _choose(
    example: Example,
    candidates: Sequence[str],
    settings: MineSettings,
    number: int,
    teacher: Judge | None,
    counts: Counter[str],
) -> list[str]:
    """At most `negatives` new texts for one example, the hardest first."""
    fresh = [text for text in candidates if not (settings.keep and text in example.negatives)]
    order = list(range(len(fresh)))
    if settings.pick == "random":
        order = np.random.default_rng((settings.seed, number)).permutation(len(fresh)).tolist()
    if teacher is not None:
        order = _below(example, fresh, order[: _SPARE * settings.negatives], settings, teacher, counts)
    chosen = sorted(order[: settings.negatives])
    counts["negatives"] += len(chosen)
    if len(chosen) < settings.negatives:
        counts["examples with fewer negatives than wanted"] += 1
    return [fresh[i] for i in chosen]


def _below(
    example: Example,
    texts: Sequence[str],
    order: Sequence[int],
    settings: MineSettings,
    teacher: Judge,
    counts: Counter[str],
) -> list[int]:
    """Those that the teacher finds worse than the worst positive."""
    read = [*example.positives, *(texts[i] for i in order)]
    scores = judged(teacher, [(example.query, text) for text in read])
    limit = settings.teacher_margin.limit(float(scores[: len(example.positives)].min()))
    kept = [i for i, score in zip(order, scores[len(example.positives) :], strict=True) if score < limit]
    counts["candidates that the teacher refused"] += len(order) - len(kept)
    return kept


def _with(example: Example, chosen: Sequence[str], settings: MineSettings, counts: Counter[str]) -> Example:
    """The example with these negatives. Scores that would no longer be complete are left out."""
    kept = example.negatives if settings.keep else ()
    if example.positive_scores or example.negative_scores:
        counts["examples whose old scores were left out"] += 1
    return replace(example, negatives=(*kept, *chosen), positive_scores=(), negative_scores=())

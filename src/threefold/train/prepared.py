"""The data of every stage of a recipe, read and checked before anything is trained: tables or texts, and the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from threefold.errors import DataError
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.train.batches import PairTable, plan, seed_of_pass
from threefold.train.pool import read_corpus
from threefold.train.recipe import Recipe, Stage
from threefold.train.settings import TrainSettings
from threefold.train.shards import check_apart, prepare
from threefold.train.single import cloze_pairs, crop_pairs
from threefold.types import Floats, Ints

#: Texts that are tokenised at a time.
_BLOCK = 4_096

#: Called with (pairs or texts, tokens) so far.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One stage, ready to run.

    table   pairs; None for `retromae`
    texts   token ids of single texts, for `retromae`
    key     hash of the tokens, or of all that decides them: another one is other data
    plan    which of them each step takes
    counts  what is odd about the data
    """

    name: str
    stage: Stage
    settings: TrainSettings
    table: PairTable | None
    texts: Tokens | None
    key: str
    plan: list[Ints]
    counts: dict[str, int]


def prepare_stage(
    recipe: Recipe, number: int, stage: Stage, tokenizer: Tokenizer, base: Path, least: int, progress: Progress
) -> Prepared:
    """Read the files of one stage, or find them in the cache."""
    settings, data = recipe.settings_of(stage), recipe.data
    files = [base / name for name in stage.files or data.files]
    output = base / recipe.output
    cache = base / data.cache if data.cache else output / "cache"
    counts: dict[str, int] = {}
    table: PairTable | None = None
    texts: Tokens | None = None
    shares: dict[int, float] = {}
    if stage.kind == "pairs":
        check_apart(files, output, cache)
        shards = prepare(files, tokenizer, cache, data.limits, progress=progress)
        table, key, counts = shards.table, shards.key, dict(shards.counts)
        shares = shards.shares(data.temperature, data.by)
    else:
        texts = tokenise_texts(files, tokenizer, data.limits.max_passage, progress)
        key = token_digest(texts)
        if stage.kind != "retromae":
            table = (crop_pairs if stage.kind == "crops" else cloze_pairs)(texts, settings.seed)
    batches = _plan(recipe, stage, settings, table if table is not None else as_table(texts), shares, least)
    if not batches:
        named = ", ".join(map(str, files))
        raise DataError(
            f"stage {number + 1}: {named} gave no batch; a batch needs two pairs of one source, or two texts"
        )
    return Prepared(f"{number + 1}-{stage.kind}", stage, settings, table, texts, key, batches, counts)


def _plan(
    recipe: Recipe, stage: Stage, settings: TrainSettings, table: PairTable, shares: dict[int, float], least: int
) -> list[Ints]:
    """The batches of all passes, each in another order."""
    data, batches = recipe.data, list[Ints]()
    for epoch in range(stage.epochs):
        batches += plan(
            table,
            shares=shares,
            budget=data.budget,
            window=data.window,
            seed=seed_of_pass(settings.seed, epoch),
            memory=data.memory_mb * 1_000_000 or None,
            least=max(2, least),
        )
    return batches


def tokenise_texts(files: list[Path], tokenizer: Tokenizer, limit: int, progress: Progress) -> Tokens:
    """Token ids of the texts of all files, each cut to `limit` tokens."""
    parts: list[Tokens] = []
    read = (text for file in files for text in read_corpus(file))
    texts = tokens = 0
    while block := list(islice(read, _BLOCK)):
        parts.append(tokenizer.encode(block, max_tokens=limit))
        texts, tokens = texts + len(block), tokens + len(parts[-1].ids)
        progress(texts, tokens)
    if not parts:
        raise DataError(f"{', '.join(map(str, files))}: no texts")
    lengths = np.concatenate([part.lengths for part in parts])
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        np.concatenate([part.available for part in parts]),
    )


def token_digest(tokens: Tokens) -> str:
    """16 hex digits of all texts in order."""
    digest = hashlib.sha256()
    for part, kind in ((tokens.offsets, np.int64), (tokens.ids, np.int32)):
        digest.update(np.ascontiguousarray(part, kind).data)
    return digest.hexdigest()[:16]


def as_table(texts: Tokens | None) -> PairTable:
    """Single texts as pairs with empty positives, so that the same plan serves them."""
    assert texts is not None
    n = len(texts)
    none, zeros = Tokens(np.zeros(0, np.int32), np.zeros(n + 1, np.int64), np.zeros(n, np.int64)), np.zeros(n, np.int64)
    return PairTable(texts, none, zeros, np.arange(n), zeros.astype(np.int8), zeros.astype(bool))


def idf_of(tokens: Tokens, vocab: int) -> Floats:
    """(vocab,) log((n + 1) / (df + 1)): how rare each token is in these n texts."""
    texts = np.repeat(np.arange(len(tokens)), tokens.lengths)
    keys = np.unique(texts * np.int64(vocab) + np.asarray(tokens.ids, np.int64))
    frequency = np.bincount(keys % vocab, minlength=vocab)
    idf: Floats = np.log((len(tokens) + 1) / (frequency + 1)).astype(np.float32)
    return idf

"""Development sets in BEIR layout from the training questions, for tuning fusion weights. Never from `bench/`.

    python runs/mini/devset.py --data ../shared/data --out build/mini/dev
    threefold tune build/mini/dev/*/* --split dev -o build/mini/weights.json

One set per source and language pair: its passages are the corpus, a sample of its questions the queries. And one set,
`mixed/all`, with a part of each in one corpus: a collection of many languages, where weights that favour the language
of the question lose the answers in another. `natural/en` has English questions of people who had not seen the passage,
and all English passages of these sources: there fewer words are shared. `bitext/xx-en` are sentences to be found by
their translation, which `train.py` keeps back, `paragraph/xx-en` several of them joined. Most of the questions were
not trained on (a run by the clock ends before its plan does), the passages may have been.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from corpus import Pair, held_out, paragraphs, read_pairs

QUERIES, PASSAGES, FEWEST = 100, 600, 60
#: Questions and passages of each set in the mixed one.
MIXED_QUERIES, MIXED_PASSAGES = 12, 100
#: Sentences of the largest and the smallest set of translations.
MOST_SENTENCES, FEWEST_SENTENCES = 150, 40
#: Sources of English questions that were asked before anybody looked for an answer, and the questions of each.
NATURAL = {"tydi", "afriqa", "milvus_docs", "ms_azd", "ms_edgeai", "fastapi_docs"}
NATURAL_QUERIES = 120


def sample(pairs: list[Pair], queries: int, passages: int, rng: random.Random) -> tuple[list[str], list[Pair]]:
    """Passages, and pairs whose positive is among them."""
    texts = sorted({pair.positive for pair in pairs})
    rng.shuffle(texts)
    kept = set(texts[:passages])
    asked = [pair for pair in pairs if pair.positive in kept]
    rng.shuffle(asked)
    return texts[:passages], asked[:queries]


def write(folder: Path, passages: list[str], asked: list[Pair]) -> None:
    """One set in BEIR layout. Equal passages of several sets are one document."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    kept = {text: f"d{i}" for i, text in enumerate(dict.fromkeys(passages))}
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for text, id in kept.items():
            file.write(json.dumps({"_id": id, "title": "", "text": text}, ensure_ascii=False) + "\n")
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
        for i, pair in enumerate(asked):
            file.write(json.dumps({"_id": f"q{i}", "text": pair.query}, ensure_ascii=False) + "\n")
    with (folder / "qrels" / "dev.tsv").open("w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for i, pair in enumerate(asked):
            file.write(f"q{i}\t{kept[pair.positive]}\t1\n")


def natural(pairs: dict[str, list[Pair]], rng: random.Random) -> tuple[list[str], list[Pair]]:
    """Every English passage of the sources, and as many questions of each as there are, up to `NATURAL_QUERIES`."""
    asked = [pair for _, group in sorted(pairs.items()) for pair in rng.sample(group, min(NATURAL_QUERIES, len(group)))]
    return [pair.positive for _, group in sorted(pairs.items()) for pair in group], asked


def write_translations(folder: Path, sets: dict[str, list[Pair]]) -> None:
    """One set per language; the English side of all languages is the corpus of each."""
    known = sorted({pair.positive for pairs in sets.values() for pair in pairs})
    for language, pairs in sorted(sets.items()):
        if len(pairs) >= FEWEST_SENTENCES and language != "en":
            write(folder / f"{language}-en", known, pairs[:MOST_SENTENCES])


def joined(pairs: list[Pair]) -> list[Pair]:
    """Translations of paragraphs, made of translations of sentences of one source."""
    by_source: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_source[pair.source].append(pair)
    rng = np.random.default_rng(7)
    return [
        own[0]._replace(query=foreign, positive=english)
        for own in by_source.values()
        for foreign, english in paragraphs([(pair.query, pair.positive) for pair in own], rng)
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini/dev"))
    args = options.parse_args()
    sets: dict[str, list[Pair]] = defaultdict(list)
    sentences: dict[str, list[Pair]] = defaultdict(list)
    english_questions: dict[str, list[Pair]] = defaultdict(list)
    for pair in read_pairs(args.data):
        if pair.kind == "qa":
            sets[f"{pair.source}/{pair.query_lang}-{pair.positive_lang}"].append(pair)
        elif pair.kind == "parallel" and pair.positive_lang == "en" and held_out(pair.positive):
            sentences[pair.query_lang].append(pair)
        if (
            pair.source in NATURAL
            and pair.kind in ("qa", "faq", "heading")
            and pair.query_lang == pair.positive_lang == "en"
        ):
            english_questions[f"{pair.source}/{pair.kind}"].append(pair)
    rng = random.Random(7)
    all_passages: list[str] = []
    all_asked: list[Pair] = []
    for name, pairs in sorted(sets.items()):
        if len(pairs) >= FEWEST:
            write(args.out / name, *sample(pairs, QUERIES, PASSAGES, rng))
            passages, asked = sample(pairs, MIXED_QUERIES, MIXED_PASSAGES, rng)
            all_passages += passages
            all_asked += asked
            print(name, len(pairs))
    write(args.out / "mixed" / "all", all_passages, all_asked)
    write(args.out / "natural" / "en", *natural(english_questions, random.Random(7)))
    write_translations(args.out / "bitext", sentences)
    write_translations(args.out / "paragraph", {language: joined(pairs) for language, pairs in sentences.items()})


if __name__ == "__main__":
    main()

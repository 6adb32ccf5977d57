"""Development sets in BEIR layout from the training questions, for tuning fusion weights. Never from `bench/`.

    python runs/mini/devset.py --data ../shared/data --out build/mini/dev
    threefold tune build/mini/dev/*/* --split dev -o build/mini/weights.json

One set per source and language pair: its passages are the corpus, a sample of its questions the queries. Most of the
questions were not trained on (a run by the clock ends before its plan does), the passages may have been.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

from corpus import Pair, read_pairs

QUERIES, PASSAGES, FEWEST = 100, 600, 60


def write(folder: Path, pairs: list[Pair], rng: random.Random) -> None:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    passages = sorted({pair.positive for pair in pairs})
    rng.shuffle(passages)
    kept = {text: f"d{i}" for i, text in enumerate(passages[:PASSAGES])}
    asked = [pair for pair in pairs if pair.positive in kept]
    rng.shuffle(asked)
    asked = asked[:QUERIES]
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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini/dev"))
    args = options.parse_args()
    sets: dict[str, list[Pair]] = defaultdict(list)
    for pair in read_pairs(args.data):
        if pair.kind == "qa":
            sets[f"{pair.source}/{pair.query_lang}-{pair.positive_lang}"].append(pair)
    rng = random.Random(7)
    for name, pairs in sorted(sets.items()):
        if len(pairs) >= FEWEST:
            write(args.out / name, pairs, rng)
            print(name, len(pairs))


if __name__ == "__main__":
    main()

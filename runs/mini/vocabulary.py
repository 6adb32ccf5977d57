"""Step 1: train the multilingual vocabulary of threefold-mini (sentencepiece unigram, byte fallback).

    python runs/mini/vocabulary.py --data ../shared/data --out build/mini

Text is sampled with a budget of characters per language, so that the vocabulary is sized by coverage of
languages and not by how much text each happens to have. Lower-cased: the sparse head and BM25 match terms
exactly, and the body that we start from (MiniLM) is uncased.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from pathlib import Path

import sentencepiece
from corpus import normalise, read_mono, read_pairs

#: Pieces, byte pieces and specials included. 56,000 x 384 at one byte each leaves room for the body under 40 MB.
VOCABULARY = 56_000
#: Characters per language: English (half of all pairs), languages with at least `MANY` characters, the rest.
BUDGET = {"en": 4_000_000, "rich": 500_000, "poor": 150_000}
MANY = 600_000


def sample(data: Path, seed: int = 0) -> list[str]:
    by_language: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for pair in read_pairs(data):
        for language, text in ((pair.query_lang, pair.query), (pair.positive_lang, pair.positive)):
            if text not in seen:
                seen.add(text)
                by_language[language].append(text)
    for language, text in read_mono(data):
        by_language[language].append(text)
    rng = random.Random(seed)
    lines: list[str] = []
    for language, texts in sorted(by_language.items()):
        total = sum(map(len, texts))
        budget = BUDGET["en"] if language == "en" else BUDGET["rich" if total >= MANY else "poor"]
        rng.shuffle(texts)
        for text in texts:
            if budget <= 0:
                break
            line = normalise(text)[:2000]
            lines.append(line)
            budget -= len(line)
    rng.shuffle(lines)
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines = sample(args.data)
    characters = Counter("".join(lines))
    print(f"{len(lines):,} lines, {sum(characters.values()):,} characters, {len(characters):,} distinct")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(args.out / "vocabulary"),
        model_type="unigram",
        vocab_size=VOCABULARY - 1,  # <mask> is added at the end
        character_coverage=0.9995,
        byte_fallback=True,
        normalization_rule_name="identity",  # the lines are normalised already
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        seed_sentencepiece_size=600_000,
        max_sentencepiece_length=16,
        num_threads=2,
        split_digits=False,
        train_extremely_large_corpus=False,
    )


if __name__ == "__main__":
    main()

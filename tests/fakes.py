"""Deterministic stand-ins for tests of any layer: small trained tokenizers, an encoder without a network.

Reached through the fixtures `tokenizer` and `encoder` of `tests/conftest.py`.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

from threefold.errors import MissingHeadError
from threefold.text.protocol import ModelCard
from threefold.text.tokenizer import NEVER, Tokenizer, Truncate, finish_backend
from threefold.types import REPRESENTATIONS, Encoded, Floats, Ragged, Representation, Sparse

#: `fixtures/unigram` and `fixtures/wordpiece`: tokenizers trained on `CORPUS`. Kept as files, because training a
#: Unigram model twice may give two, and a test must not depend on which.
FIXTURES = Path(__file__).parent / "fixtures"
#: Several scripts, so that tests can use them.
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs!",
    "How is the sparse head trained? Dense, sparse and multi-vector scores from one forward pass.",
    "A collection is a folder on disk; documents are cut into chunks at sentence borders.",
    "Der schnelle braune Fuchs springt über den faulen Hund. Wie wird der Kopf trainiert?",
    "今天天气很好。我们去公园散步吧！搜索引擎把文档切成段落。",
    "Сегодня хорошая погода. Мы идём гулять в парк. मौसम अच्छा है। हम पार्क जा रहे हैं।",
    "def add(first, second):\n    return first + second  # numbers 0123456789 and ABCDEFGHIJKLMNOPQRSTUVWXYZ <tag/>",
]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def unigram_tokenizer() -> Tokenizer:
    """An XLM-R style tokenizer: Unigram, word starts marked."""
    return Tokenizer.load(FIXTURES / "unigram")


def wordpiece_tokenizer() -> Tokenizer:
    """A BERT style tokenizer: WordPiece, lower case, [CLS] and [SEP]."""
    return Tokenizer.load(FIXTURES / "wordpiece")


def train_unigram(corpus: Sequence[str] = CORPUS, vocab: int = 400) -> Tokenizer:
    """How `fixtures/unigram` was made."""
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False, initial_alphabet=list("▁")
    )
    backend.train_from_iterator(corpus, trainer)
    settings = json.loads(finish_backend(backend).to_str())
    for piece in settings["model"]["vocab"][: len(SPECIALS)]:
        piece[1] = NEVER  # the trainer says 0, the best of all: text would be cut into special tokens
    return Tokenizer(Backend.from_str(json.dumps(settings)), name="unigram of the tests")


def train_wordpiece(corpus: Sequence[str] = CORPUS, vocab: int = 400) -> Tokenizer:
    """How `fixtures/wordpiece` was made."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        corpus, trainers.WordPieceTrainer(vocab_size=vocab, special_tokens=specials, show_progress=False)
    )
    return Tokenizer(backend, name="wordpiece of the tests")


def hear_interrupts() -> None:
    """For `preexec_fn`: a job in the background of a script ignores Ctrl-C, and so would every process it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class FakeEncoder:
    """Texts are bags of token vectors, each a fixed direction drawn from the token's id: shared tokens, similar texts.

    dense   the normalised sum of the token vectors
    sparse  between 0.1 and 0.4 per distinct token, from its id
    multi   the vector of each token but the first special one, the end token included
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        name: str = "fake",
        dim: int = 16,
        heads: Sequence[Representation] = REPRESENTATIONS,
        max_tokens: int = 512,
        prompt: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.calls: list[list[str]] = []  # the texts of every call
        self._table = self._directions(tokenizer.vocab, dim, name)
        self.card = ModelCard(
            name=name,
            hash=hashlib.sha256(self._table.tobytes()).hexdigest()[:16],
            tokenizer_hash=tokenizer.fingerprint(),
            dense_dim=dim if "dense" in heads else 0,
            multi_dim=dim if "multi" in heads else 0,
            vocab=tokenizer.vocab if "sparse" in heads else 0,
            max_tokens=max_tokens,
        )

    @staticmethod
    def _directions(vocab: int, dim: int, name: str) -> Floats:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        return _unit(np.random.default_rng(seed).standard_normal((vocab, dim)).astype(np.float32))

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        wanted = self.card.representations if outputs is None else tuple(outputs)
        for name in wanted:
            if name not in self.card.representations:
                raise MissingHeadError(f"{self.card.name} has no {name} head")
        self.calls.append(list(texts))
        tokens = self.tokenizer.encode(texts, max_tokens=max_tokens or self.card.max_tokens, truncate=truncate)
        rows = [tokens[i] for i in range(len(tokens))]
        dim = self._table.shape[1]
        dense = [_unit(self._table[ids].sum(axis=0, keepdims=True)) for ids in rows]
        specials = set(self.tokenizer.special_ids)
        terms = [{int(id): 0.1 + (id % 7) / 20 for id in ids if int(id) not in specials} for ids in rows]
        return Encoded(
            np.concatenate([np.zeros((0, dim), np.float32), *dense]) if "dense" in wanted else None,
            Sparse.of(terms, self.card.vocab) if "sparse" in wanted else None,
            Ragged.of([self._table[ids[1:]] for ids in rows], dim) if "multi" in wanted else None,
            tokens.lengths.astype(np.int32),
            tokens.truncated,
        )

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        return self.encode(self._prompted(texts), outputs=outputs, max_tokens=max_tokens, truncate=truncate)

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        return self.encode(self._prompted(texts), outputs=outputs, max_tokens=max_tokens, truncate=truncate)

    def _prompted(self, texts: Sequence[str]) -> list[str]:
        return [self.prompt + text for text in texts]


class FakeReranker:
    """The share of the query's words that a text has."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def score(self, query: str, texts: Sequence[str]) -> Floats:
        self.calls.append((query, list(texts)))
        words = set(query.lower().split())
        return np.array([len(words & set(text.lower().split())) / len(words) for text in texts], np.float32)


def _unit(rows: Floats) -> Floats:
    unit: Floats = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit

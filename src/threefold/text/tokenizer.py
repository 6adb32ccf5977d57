"""Text -> token ids, lengths, pieces and character offsets. Truncation is reported, never silent.

Knows the two tokenizer files that checkpoints ship (`tokenizer.json`, `sentencepiece.bpe.model`); knows
nothing of hidden states.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from tokenizers import AddedToken, Encoding, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as _Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from threefold.characters import listed
from threefold.errors import CheckpointError, InputError
from threefold.text.spm import UnigramModel, read_unigram
from threefold.types import Bools, Ints, offsets_of

#: What to do with a text that has more than `max_tokens` tokens: keep its beginning, keep its end, or refuse it.
Truncate = Literal["end", "start", "none"]

#: Half of a UTF-16 pair: legal in a Python string, not in UTF-8. Replaced one for one, so offsets hold.
_SURROGATE = re.compile("[\ud800-\udfff]")

#: Log probability of special tokens: text that spells one ("<s>") is cut into other pieces.
NEVER = -1e6

_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model")


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids of n texts, end to end, specials included.

    ids        (T,) int32
    offsets    (n + 1,) int64; text i owns ids[offsets[i]:offsets[i + 1]]
    available  (n,) int64 tokens that the text had before truncation, specials included
    seconds    of pairs only: (n,) int64 place in row i where the second text begins (BERT's token type 1)
    """

    ids: Ints
    offsets: Ints
    available: Ints
    seconds: Ints | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Ints:
        i = range(len(self))[i]
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def take(self, rows: Ints) -> Tokens:
        """These texts, in this order."""
        ids = [np.zeros(0, np.int32), *(self[int(i)] for i in rows)]
        seconds = None if self.seconds is None else self.seconds[rows]
        return Tokens(np.concatenate(ids), offsets_of(self.lengths[rows]), self.available[rows], seconds)

    @property
    def lengths(self) -> Ints:
        lengths: Ints = np.diff(self.offsets)
        return lengths

    @property
    def truncated(self) -> Bools:
        truncated: Bools = self.available > self.lengths
        return truncated


class Piece(NamedTuple):
    """One token of a text: its id, its spelling, and where it stands (characters, half open)."""

    id: int
    text: str
    start: int
    end: int


class Tokenizer:
    """The tokenizer of a checkpoint. Immutable after construction and safe to share between threads."""

    def __init__(self, backend: _Tokenizer, *, name: str) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "<s>" in a user's text is text, never a special token
        self.name = name
        self._backend = backend
        self._lock = threading.Lock()  # `tokenizers` borrows mutably: two threads at once raise "Already borrowed"
        self.cls_id, self.sep_id = self._special("<s>", "[CLS]"), self._special("</s>", "[SEP]")
        self.pad_id, self.unk_id = self._special("<pad>", "[PAD]"), self._special("<unk>", "[UNK]")
        self.vocab = backend.get_vocab_size(with_added_tokens=True)
        self._head, self._tail = self._frame()

    # ---- loading -------------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From `tokenizer.json`, or from a sentencepiece model with the id offset of XLM-R."""
        for file in _FILES:
            path = folder / file
            if not path.is_file():
                continue
            if path.suffix == ".json":
                return cls(_read_json(path), name=str(path))
            return cls(xlmr_backend(read_unigram(path.read_bytes(), str(path))), name=str(path))
        raise CheckpointError(f"{folder} has no tokenizer; expected one of {', '.join(_FILES)}")

    def fingerprint(self) -> str:
        """Hash of everything that decides the ids: equal for equal behaviour, wherever it was loaded from."""
        settings = json.loads(self._backend.to_str())
        kept = {key: settings.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        path.write_text(self._backend.to_str(pretty=False), encoding="utf-8")  # theirs raises a bare Exception

    # ---- use -----------------------------------------------------------------------------------------

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that carry no term: beginning, end, padding, unknown (not the mask, as in the reference)."""
        return (self.cls_id, self.pad_id, self.sep_id, self.unk_id)

    @property
    def mask_id(self) -> int:
        """Stands for a hidden token in masked training."""
        return self._special("<mask>", "[MASK]")

    @property
    def overhead(self) -> int:
        """Special tokens around one text."""
        return len(self._head) + len(self._tail)

    def encode(self, texts: Sequence[str], *, max_tokens: int, truncate: Truncate = "end", first: int = 0) -> Tokens:
        """Ids of every text, at most `max_tokens` each, specials included; `first`: its number in messages."""
        if truncate not in get_args(Truncate):
            raise InputError(f"truncate must be one of {', '.join(get_args(Truncate))}; got {truncate!r}")
        room = max_tokens - self.overhead
        if room < 1:
            raise InputError(f"max_tokens must be at least {self.overhead + 1}; got {max_tokens}")
        rows: list[list[int]] = []
        available: list[int] = []
        for i, encoding in enumerate(self._encodings(texts, first), start=first):
            ids = self._ids(encoding)
            available.append(len(ids) + self.overhead)
            if len(ids) > room:
                if truncate == "none":
                    raise InputError(
                        f"text {i} has {available[-1]:,} tokens, the limit is {max_tokens:,}. "
                        'Split it, raise max_tokens (--max-tokens), or cut it with truncate="end" (--truncate end)'
                    )
                ids = ids[-room:] if truncate == "start" else ids[:room]
            rows.append([*self._head, *ids, *self._tail])
        return _tokens(rows, available)

    def encode_pairs(
        self,
        queries: Sequence[str],
        texts: Sequence[str],
        *,
        max_tokens: int,
        max_query_tokens: int | None = None,
        max_text_tokens: int | None = None,
    ) -> Tokens:
        """`<s> query </s></s> text </s>`: the query is cut to `max_query_tokens` (default 3/4 of `max_tokens`),
        then only the text is cut, as bge-reranker-v2-m3 was trained (FlagEmbedding `reranker/encoder_only`);
        `max_text_tokens` cuts it further, and leaves the query alone.

        A text that occurs in many pairs is cut into tokens once. `available` counts what both texts had.
        """
        if len(queries) != len(texts):
            raise InputError(f"{len(queries)} queries but {len(texts)} texts")
        head, tail = self._head, self._tail
        middle = [self.sep_id, self.sep_id] if self._roberta else [self.sep_id]
        frame = self.overhead + len(middle)
        if max_tokens < frame + 2:
            raise InputError(f"max_tokens must be at least {frame + 2} for a pair; got {max_tokens}")
        most = min(max_tokens * 3 // 4, max_tokens - frame - 1) if max_query_tokens is None else max_query_tokens
        if not 1 <= most < max_tokens - frame:
            raise InputError(f"max_query_tokens must be from 1 to {max_tokens - frame - 1}; got {most}")
        if max_text_tokens is not None and max_text_tokens < 1:
            raise InputError(f"max_text_tokens must be at least 1; got {max_text_tokens}")
        rows, available, seconds = [], [], []
        for a, b in zip(self._distinct(queries), self._distinct(texts), strict=True):
            first = [*head, *a[:most], *middle]
            room = max_tokens - len(first) - len(tail)
            rows.append([*first, *b[: room if max_text_tokens is None else min(room, max_text_tokens)], *tail])
            available.append(len(a) + len(b) + frame)
            seconds.append(len(first))
        return replace(_tokens(rows, available), seconds=np.array(seconds, dtype=np.int64))

    def count(self, texts: Sequence[str]) -> Ints:
        """Tokens of every text, specials included, without truncation."""
        return np.array([len(e) + self.overhead for e in self._encodings(texts)], dtype=np.int64)

    def pieces(self, text: str) -> list[Piece]:
        """The tokens of one text without specials, with their places in the text."""
        (encoding,) = self._encodings([text])
        return [
            Piece(id, token, start, end)
            for id, token, (start, end) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
        ]

    def token(self, id: int) -> str:
        """The spelling of an id, word-start marker kept."""
        token: str | None = self._backend.id_to_token(id)
        if token is None:
            raise InputError(f"id {id} is not in the vocabulary of {self.vocab} tokens")
        return token

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of these ids."""
        with self._lock:
            text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    # ---- inside --------------------------------------------------------------------------------------

    def _special(self, *names: str) -> int:
        for name in names:
            id = self._backend.token_to_id(name)
            if id is not None:
                return int(id)
        raise CheckpointError(f"{self.name} has none of the special tokens {', '.join(names)}")

    def _frame(self) -> tuple[list[int], list[int]]:
        self._roberta = self._backend.token_to_id("<s>") is not None
        return [self.cls_id], [self.sep_id]

    def _distinct(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text without specials; equal texts share one list."""
        clean = _clean(texts)
        places = {text: i for i, text in enumerate(dict.fromkeys(clean))}
        ids = [self._ids(encoding) for encoding in self._encodings(list(places))]
        return [ids[places[text]] for text in clean]

    def _encodings(self, texts: Sequence[str], first: int = 0) -> list[Encoding]:
        clean = _clean(texts, first)
        with self._lock:
            encodings: list[Encoding] = self._backend.encode_batch(clean, add_special_tokens=False)
        return encodings

    def _ids(self, encoding: Encoding) -> list[int]:
        ids: list[int] = encoding.ids
        return ids


def _clean(texts: Sequence[str], first: int = 0) -> list[str]:
    return [_SURROGATE.sub("\ufffd", text) for text in listed(texts, first)]


def _tokens(rows: list[list[int]], available: list[int]) -> Tokens:
    offsets = offsets_of([len(row) for row in rows])
    ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
    return Tokens(ids, offsets, np.array(available, dtype=np.int64))


def _read_json(path: Path) -> _Tokenizer:
    try:
        settings = json.loads(path.read_bytes())
        if settings["model"].get("type") == "Unigram":
            _never_cut_special(settings)
        return _Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # the Rust side raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer: {error}") from error


def _never_cut_special(settings: dict[str, Any]) -> None:
    """Special tokens get the log probability NEVER; published files say 0, the best of all, so "<s>" would be one."""
    special = {token["content"] for token in settings["added_tokens"] if token["special"]}
    for piece in settings["model"]["vocab"]:
        if piece[0] in special:
            piece[1] = NEVER


def xlmr_backend(model: UnigramModel) -> _Tokenizer:
    """The XLM-R tokenizer of a sentencepiece model: `<s> <pad> </s> <unk>` first, pieces from 4 on, `<mask>` last."""
    vocabulary = [(token, NEVER) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += model.pieces[3:]  # the file begins with <unk>, <s>, </s>
    vocabulary += [("<mask>", NEVER)]
    backend = _Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=model.byte_fallback))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    # NFKC first: `Precompiled` alone does not compose decomposed text (Vietnamese, Hangul) as sentencepiece does.
    character_map = [normalizers.NFKC(), normalizers.Precompiled(model.character_map)] if model.character_map else []
    backend.normalizer = normalizers.Sequence([*character_map, spaces])
    return finish_backend(backend)


def finish_backend(backend: _Tokenizer, *, splitter: PreTokenizer | None = None) -> _Tokenizer:
    """Word boundaries and special tokens, the same for every XLM-R style vocabulary.

    splitter  cuts a text into words that begin with the marker; None: at white space
    """
    words = splitter or pre_tokenizers.WhitespaceSplit()
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", backend.token_to_id("<s>")), ("</s>", backend.token_to_id("</s>"))],
    )
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    special = [AddedToken(token, special=True, normalized=False) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    backend.add_special_tokens([*special, AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
    return backend

"""An encoder that takes the vectors of texts which were encoded before from their files, and encodes the others.

What was computed once, on a cluster or by another library, need not be computed again for each collection:

    files of `threefold encode --chunks` ─► index: hash of a text -> its place ─► rows, read when they are asked for

Only hashes and places are kept in memory (20 bytes for a text). A collection asks in the order in which the texts were
written, so that each group of rows is read about once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threefold.characters import listed
from threefold.errors import InputError, MissingHeadError
from threefold.paths import expanded
from threefold.shards import Group, Reader, files_in
from threefold.text.protocol import ModelCard, TextEncoder
from threefold.text.tokenizer import Tokenizer, Truncate
from threefold.types import Encoded, Floats, Ints, Ragged, Representation

#: Least cosine between a vector of a file and ours of the same text. The precisions of one model differ by less (int8
#: with AVX2 is at 0.99 in the mean); other models, and vectors in another order, are far below.
ALIKE: Final = 0.9
#: Most that one of the two may be longer: one library gives vectors unit length, another one as the model makes them.
LONGER: Final = 1.25
#: Tokens of the groups of rows that are kept in memory, 2 KB for each in bge-m3's size: a batch of a collection
#: begins in the group in which the last one ended, and chunks that many documents have are asked for again and again.
_KEPT_TOKENS: Final = 65_536

log = logging.getLogger(__name__)


class PrecomputedEncoder:
    """A `TextEncoder` for collections: documents from files where they are in there, all else from the encoder.

    encoder  of the same model; it encodes queries, and documents that are not in the files
    vectors  a file of `write_parquet` or a folder of them, or several
    say      called once, when the first text is not in the files; None: a warning of the log

    Token vectors come from the files rounded to float16. The first text that is found in each file is encoded as well,
    and refused where its vector is another one.

    card  of the encoder, with the precision of the files where they agree on one
    """

    def __init__(
        self,
        encoder: TextEncoder,
        vectors: str | Path | Sequence[str | Path],
        *,
        say: Callable[[str], None] | None = None,
    ) -> None:
        given = [vectors] if isinstance(vectors, str | Path) else vectors
        files = [file for place in given for file in files_in(expanded(place))]
        self._encoder, self._say = encoder, say or log.warning
        self._reader = Reader()
        self._index = _Index(files, encoder.card, self._reader)
        self.card = dataclasses.replace(encoder.card, precision=self._index.precision or encoder.card.precision)
        self._groups: OrderedDict[tuple[Group, tuple[Representation, ...]], _Rows] = OrderedDict()
        self._checked: set[Path] = set()
        self._lock = Lock()
        self.found = 0  #: texts so far whose vectors were in the files, ...
        self.encoded = 0  #: ... and those that were encoded

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._encoder.tokenizer

    def encode(self, texts: Sequence[str], **options: Any) -> Encoded:
        """By the encoder: files have documents."""
        return self._encoder.encode(texts, **options)

    def encode_queries(self, texts: Sequence[str], **options: Any) -> Encoded:
        """By the encoder: files have documents."""
        return self._encoder.encode_queries(texts, **options)

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """From the files what is in there, in this length; the others by the encoder."""
        texts = listed(texts)
        wanted = tuple(self.card.representations if outputs is None else outputs)
        if any(name not in self.card.representations for name in wanted):  # the encoder says why not
            return self._encoder.encode_documents(texts, outputs=wanted, max_tokens=max_tokens, truncate=truncate)
        self.require(wanted)
        places = self._index.places(texts, self.card.max_tokens if max_tokens is None else max_tokens)
        with self._lock:
            parts = list(self._from_files(texts, places, wanted))
        known = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in parts)])
        others = np.setdiff1d(np.arange(len(texts)), known)
        if len(others) or not len(texts):
            self._tell(len(others), texts)
            missing = [texts[int(i)] for i in others]
            made = self._encoder.encode_documents(missing, outputs=wanted, max_tokens=max_tokens, truncate=truncate)
            parts.append((others, made))
        with self._lock:
            self.found, self.encoded = self.found + len(known), self.encoded + len(others)
        order = np.concatenate([rows for rows, _ in parts])
        return Encoded.concat([part for _, part in parts]).take(np.argsort(order))

    def require(self, wanted: Sequence[Representation]) -> None:
        """Refuse files that lack one of these."""
        lacking = [name for name in wanted if name not in self._index.has]
        if lacking:
            raise MissingHeadError(
                f"{self._index.files[0]} has no {lacking[0]} vectors. Encode again with them, or make a new "
                "collection that keeps none (--multi none)"
            )

    # ---- inside --------------------------------------------------------------------------------------

    def _from_files(
        self, texts: Sequence[str], places: Ints, wanted: tuple[Representation, ...]
    ) -> Iterator[tuple[Ints, Encoded]]:
        """Numbers of texts with their vectors, group by group."""
        known = np.flatnonzero(places >= 0)
        groups = self._index.group[places[known]]
        for number in np.unique(groups):
            asked = known[groups == number]
            group = self._index.groups[number]
            rows = self._rows(group, wanted)
            at = self._index.row[places[asked]]
            same = np.array([rows.texts[row : row + 1] == [texts[int(i)]] for i, row in zip(asked, at, strict=True)])
            asked, at = asked[same], at[same]  # hashes can be equal by accident, and a file be another one by now
            found = _in_float32(rows.encoded.take(at))
            if len(asked) and found.dense is not None and group.path not in self._checked:
                self._check(texts[int(asked[0])], found.dense[0], group.path)
            yield asked, found

    def _rows(self, group: Group, wanted: tuple[Representation, ...]) -> _Rows:
        key = group, wanted
        if key not in self._groups:
            texts, encoded = group.vectors(self._reader, self.card, wanted)
            self._groups[key] = _Rows(texts, encoded, int(encoded.tokens.sum()))
        self._groups.move_to_end(key)
        while len(self._groups) > 1 and sum(rows.tokens for rows in self._groups.values()) > _KEPT_TOKENS:
            self._groups.popitem(last=False)
        return self._groups[key]

    def _check(self, text: str, theirs: Floats, path: Path) -> None:
        """Whether the dense vector of a file is what our model says of the text."""
        dense = self._encoder.encode_documents([text], outputs=("dense",)).dense
        assert dense is not None
        (ours,), (length, expected) = dense, (float(np.linalg.norm(one)) for one in (theirs, dense[0]))
        cosine = float(ours @ theirs) / (length * expected or 1.0)
        if not cosine >= ALIKE:
            raise InputError(
                f"{path} has another vector of the text {text[:80]!r} than {self.card.name} (cosine {cosine:.3f}): it "
                "is of another model, prompt or pooling, or its rows are in another order"
            )
        if not 1 / LONGER <= length / expected <= LONGER:
            raise InputError(
                f"{path} has a vector of length {length:.3g} of the text {text[:80]!r}, and {self.card.name} makes it "
                f"{expected:.3g} long: scores would not be comparable. Write vectors of the same length"
            )
        self._checked.add(path)

    def _tell(self, missing: int, texts: Sequence[str]) -> None:
        if missing and not self.encoded:
            self._say(
                f"{missing} of the first {len(texts)} chunks are not among the vectors, and are encoded: were they cut "
                "as here (--max-tokens, --overlap)?"
            )


#: What is kept of a text.
_PLACE = np.dtype([("key", np.uint64), ("tokens", np.int32), ("group", np.int32), ("row", np.int32)])


class _Rows(NamedTuple):
    texts: list[str]
    encoded: Encoded
    tokens: int


class _Index:
    """Where each text is. Texts that were cut are left out: their vectors are of a part of them.

    keys    (n,) hashes, ascending;  tokens, group, row  (n,) how long each is, and where
    groups     what `group` counts
    has        representations that all files have
    precision  of all files; empty where they differ
    """

    def __init__(self, files: Sequence[Path], card: ModelCard, reader: Reader) -> None:
        self.files = files
        self.has: tuple[Representation, ...] = card.representations
        self.groups: list[Group] = []
        found, precisions = [np.zeros(0, _PLACE)], set()
        for file in files:
            about = reader.about(file)
            _check_model(about.card, card, file)
            precisions.add(about.card.precision)
            self.has = tuple(name for name in about.has if name in self.has)
            for group in about.groups:
                found.append(_hashed(group, len(self.groups), reader))
                self.groups.append(group)
        self.precision = precisions.pop() if len(precisions) == 1 else ""
        columns = np.concatenate(found)
        self.keys, first = np.unique(columns["key"], return_index=True)
        self.tokens, self.group, self.row = (columns[name][first] for name in ("tokens", "group", "row"))

    def places(self, texts: Sequence[str], limit: int) -> Ints:
        """(n,) the place of each text in the columns; -1: it is not there, or is longer than is to be read."""
        keys = np.array([_hash(text) for text in texts], np.uint64)
        if not len(self.keys):
            return np.full(len(texts), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = (self.keys[at] == keys) & (self.tokens[at] <= limit)
        return np.where(known, at, -1)


def _in_float32(encoded: Encoded) -> Encoded:
    if encoded.multi is None:
        return encoded
    multi = Ragged(encoded.multi.rows.astype(np.float32), encoded.multi.offsets)
    return dataclasses.replace(encoded, multi=multi)


def _check_model(theirs: ModelCard, ours: ModelCard, file: Path) -> None:
    if not theirs.is_same_model(ours):
        raise InputError(
            f"{file} was made by {theirs.name} ({theirs.hash}), and this is {ours.name} ({ours.hash}). Open the same "
            "model"
        )


def _hashed(group: Group, number: int, reader: Reader) -> NDArray[np.void]:
    """(n,) what the index has of the rows that were not cut."""
    texts, tokens, cut = group.lengths(reader)
    whole = np.flatnonzero(~cut)
    found = np.zeros(len(whole), _PLACE)
    found["key"] = [_hash(texts[row]) for row in whole]
    found["tokens"], found["group"], found["row"] = tokens[whole], number, whole
    return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

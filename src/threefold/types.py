"""The nouns of threefold: arrays of the three representations, documents, chunks and hits.

Letters in every shape: n texts, t tokens of one text, T tokens of all texts, d dimensions, v vocabulary.
Knows neither models nor engines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ShapeError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]

#: The three representations, in the order in which they are always named.
Representation = Literal["dense", "sparse", "multi"]
REPRESENTATIONS: tuple[Representation, ...] = ("dense", "sparse", "multi")

#: What may be asked for one text: the three, and what they are made of.
Output = Literal["dense", "sparse", "multi", "hidden", "weights"]


def offsets_of(lengths: Sequence[int] | Ints) -> Ints:
    """Offsets (n + 1,) int64 of n runs with these lengths: 0, l0, l0 + l1, ..."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _check_offsets(offsets: Ints, total: int, what: str) -> None:
    good = offsets.ndim == 1 and len(offsets) >= 1 and offsets[0] == 0 and offsets[-1] == total
    if not good or np.any(np.diff(offsets) < 0):
        raise ShapeError(f"{what}: offsets must rise from 0 to {total}; got {offsets!r}")


def _numbers(order: Sequence[int] | Ints | Bools, n: int) -> Ints:
    """(m,) the texts of n that are meant: their numbers, or a mask."""
    given = np.asarray(order)
    if given.dtype == np.bool_ and given.shape == (n,):
        return np.flatnonzero(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ShapeError(f"expected the numbers of texts, or a mask of all {n}; got {given.dtype} {given.shape}")
    return given.astype(np.int64)


def _take(offsets: Ints, order: Ints) -> tuple[Ints, Ints]:
    """Row numbers that gather the runs `order`, and their new offsets."""
    lengths = np.diff(offsets)[order]
    new = offsets_of(lengths)
    rows = np.arange(new[-1], dtype=np.int64) + np.repeat(offsets[:-1][order] - new[:-1], lengths)
    return rows, new


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Token vectors of n texts, end to end, without padding.

    rows     (T, d) float32 or float16
    offsets  (n + 1,) int64, from 0 to T; text i owns rows[offsets[i]:offsets[i + 1]]
    """

    rows: Floats
    offsets: Ints

    def __post_init__(self) -> None:
        if self.rows.ndim != 2:
            raise ShapeError(f"Ragged: rows must be (T, d); got shape {self.rows.shape}")
        _check_offsets(self.offsets, len(self.rows), "Ragged")

    @classmethod
    def of(cls, parts: Sequence[Floats], dim: int | None = None) -> Ragged:
        """From one (t, d) array per text. `dim` is needed only when there is no text."""
        width = parts[0].shape[1] if len(parts) else dim
        if width is None:
            raise ShapeError("Ragged.of: no texts and no dim; pass dim=")
        rows = np.concatenate(parts) if len(parts) else np.zeros((0, width), np.float32)
        return cls(rows, offsets_of([len(part) for part in parts]))

    @property
    def dim(self) -> int:
        return int(self.rows.shape[1])

    @property
    def lengths(self) -> Ints:
        lengths: Ints = np.diff(self.offsets)
        return lengths

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Floats:
        """The (t, d) vectors of text i, as a view. Negative i counts from the end."""
        i = range(len(self))[i]  # range turns -1 into n - 1 and refuses n
        return self.rows[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[Floats]:
        return (self[i] for i in range(len(self)))

    def take(self, order: Sequence[int] | Ints | Bools) -> Ragged:
        """The texts `order`, in that order, as a copy; or those that a mask marks."""
        rows, offsets = _take(self.offsets, _numbers(order, len(self)))
        return Ragged(self.rows[rows], offsets)


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """Term weights of n texts: compressed sparse rows, ids ascending and distinct within a row.

    indices  (nnz,) int32   vocabulary ids
    values   (nnz,) float32 weights, > 0
    offsets  (n + 1,) int64 text i owns indices[offsets[i]:offsets[i + 1]]
    vocab    v, the size of the vocabulary
    """

    indices: Ints
    values: Floats
    offsets: Ints
    vocab: int

    def __post_init__(self) -> None:
        if self.indices.shape != self.values.shape or self.indices.ndim != 1:
            raise ShapeError(f"Sparse: {self.indices.shape} indices but {self.values.shape} values")
        _check_offsets(self.offsets, len(self.indices), "Sparse")
        mapped = isinstance(self.indices, np.memmap)  # of a file of ours, which is not to be read for this
        if len(self.indices) and not mapped and not 0 <= self.indices.min() <= self.indices.max() < self.vocab:
            least, most = self.indices.min(), self.indices.max()  # products would read memory of others
            raise ShapeError(f"Sparse: ids from {least} to {most} in a vocabulary of {self.vocab}")

    @classmethod
    def of(cls, rows: Sequence[Mapping[int, float]], vocab: int) -> Sparse:
        """From one {id: weight} mapping per text; weights <= 0 are dropped, as in the published definition."""
        kept = [sorted((int(i), float(w)) for i, w in row.items() if not w <= 0) for row in rows]
        for row in kept:
            if len({id for id, _ in row}) < len(row) or not all(math.isfinite(weight) for _, weight in row):
                raise ShapeError(f"Sparse.of: an id is there twice, or a weight is not finite: {row!r:.200}")
        flat = [pair for row in kept for pair in row]
        return cls(
            np.array([i for i, _ in flat], dtype=np.int32),
            np.array([w for _, w in flat], dtype=np.float32),
            offsets_of([len(row) for row in kept]),
            vocab,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> tuple[Ints, Floats]:
        """(ids, weights) of text i, as views. Negative i counts from the end."""
        i = range(len(self))[i]
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.indices[part], self.values[part]

    def __iter__(self) -> Iterator[tuple[Ints, Floats]]:
        return (self[i] for i in range(len(self)))

    def row(self, i: int) -> dict[int, float]:
        """{id: weight} of text i, in plain Python numbers (JSON-serialisable)."""
        ids, weights = self[i]
        return dict(zip(ids.tolist(), weights.tolist(), strict=True))

    def take(self, order: Sequence[int] | Ints | Bools) -> Sparse:
        """The texts `order`, in that order, as a copy; or those that a mask marks."""
        rows, offsets = _take(self.offsets, _numbers(order, len(self)))
        return Sparse(self.indices[rows], self.values[rows], offsets, self.vocab)

    @classmethod
    def concat(cls, parts: Sequence[Sparse]) -> Sparse:
        """Texts of all parts, one after the other; at least one part."""
        return cls(
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.values for part in parts]),
            offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
            parts[0].vocab,
        )

    def to_scipy(self) -> csr_array:
        """(n, v) scipy CSR array over the same memory."""
        from scipy.sparse import csr_array  # a fifth of a second: only those who multiply pay for it

        return csr_array((self.values, self.indices, self.offsets), shape=(len(self), self.vocab))


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What the model says about n texts. A representation nobody asked for is None.

    dense      (n, d) float32 unit rows
    sparse     one weight per distinct term
    multi      one unit row per token but the first special one
    tokens     (n,) int32   tokens that were read, specials included
    truncated  (n,) bool    whether the text had more tokens than were read
    """

    dense: Floats | None
    sparse: Sparse | None
    multi: Ragged | None
    tokens: Ints
    truncated: Bools

    def __post_init__(self) -> None:
        for name in REPRESENTATIONS:
            part = getattr(self, name)
            if part is not None and len(part) != len(self.tokens):
                raise ShapeError(f"Encoded: {len(part)} texts in {name}, {len(self.tokens)} in tokens")

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, order: Sequence[int] | Ints | Bools) -> Encoded:
        """The texts `order`, in that order, as a copy; or those that a mask marks: `take(~encoded.truncated)`."""
        index = _numbers(order, len(self))
        return Encoded(
            None if self.dense is None else self.dense[index],
            None if self.sparse is None else self.sparse.take(index),
            None if self.multi is None else self.multi.take(index),
            self.tokens[index],
            self.truncated[index],
        )

    def only(self, *names: Representation) -> Encoded:
        """The same texts with these representations alone, as far as they are there."""
        return Encoded(
            self.dense if "dense" in names else None,
            self.sparse if "sparse" in names else None,
            self.multi if "multi" in names else None,
            self.tokens,
            self.truncated,
        )

    @staticmethod
    def concat(parts: Sequence[Encoded]) -> Encoded:
        """Texts of all parts, one after the other. Every part must have the same representations."""
        if not parts:
            raise ShapeError("Encoded.concat: no parts")
        dense = [part.dense for part in parts if part.dense is not None]
        sparse = [part.sparse for part in parts if part.sparse is not None]
        multi = [part.multi for part in parts if part.multi is not None]
        if {len(dense), len(sparse), len(multi)} - {0, len(parts)}:
            raise ShapeError("Encoded.concat: the parts have different representations")
        return Encoded(
            np.concatenate(dense) if dense else None,
            Sparse.concat(sparse) if sparse else None,
            Ragged(
                np.concatenate([part.rows for part in multi]),
                offsets_of(np.concatenate([part.lengths for part in multi])),
            )
            if multi
            else None,
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )


class Row(NamedTuple):
    """What the model says about one text. What nobody asked for is None.

    dense    (d,) unit vector
    sparse   (m,) ids, ascending, and their (m,) weights
    multi    (t - 1, k) unit vectors of every token but the first special one
    hidden   (t, d) states of the last layer, special tokens included
    weights  (t,) sparse weight of every token, special tokens included
    """

    dense: Floats | None = None
    sparse: tuple[Ints, Floats] | None = None
    multi: Floats | None = None
    hidden: Floats | None = None
    weights: Floats | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A text that a user gave, before it is cut into chunks."""

    id: str
    text: str
    source: str = ""
    title: str = ""
    language: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content_hash: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: `text == document.text[start:end]`, exactly.

    start, end   characters of the document, half open
    number       position of the chunk in its document, from 0
    """

    document_id: str
    number: int
    start: int
    end: int
    text: str
    source: str = ""
    title: str = ""
    language: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content_hash: str = ""

    @property
    def id(self) -> str:
        """Unique in a collection."""
        return f"{self.document_id}#{self.number}"


@dataclass(frozen=True, slots=True)
class TermMatch:
    """A term that query and text share: its piece, both weights, and their product in the sparse score."""

    term: str
    query_weight: float
    text_weight: float

    @property
    def product(self) -> float:
        return self.query_weight * self.text_weight


@dataclass(frozen=True, slots=True)
class TokenMatch:
    """The best match of one query token: where it is in the query and in the text (characters, half open)."""

    query_token: str
    query_span: tuple[int, int]
    text_token: str
    text_span: tuple[int, int]
    similarity: float


@dataclass(frozen=True, slots=True)
class Why:
    """The reason for a hit: what each representation contributed, and through which terms and tokens.

    scores         raw score by representation, also for those with weight 0
    contributions  weight * raw score / sum of weights; they add up to the fused score of a weighted search
    ranks          rank (from 1) in the candidate list of each representation that found the hit
    """

    scores: Mapping[str, float]
    contributions: Mapping[str, float]
    ranks: Mapping[str, int]
    terms: tuple[TermMatch, ...] = ()
    tokens: tuple[TokenMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class Quote:
    """The sentence of a hit that answers best: characters [start, end) of the document, and how well it answers."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: a chunk and its score; where they were asked for, why, and the sentence that answers best."""

    chunk: Chunk
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)
    why: Why | None = None
    quote: Quote | None = None

    @property
    def id(self) -> str:
        return self.chunk.id

    @property
    def text(self) -> str:
        return self.chunk.text

    @property
    def source(self) -> str:
        return self.chunk.source

    def to_dict(self) -> dict[str, Any]:
        """As it is said in JSON, by the command line and over HTTP."""
        found = {"id": self.id, "score": self.score, "scores": dict(self.scores), **asdict(self.chunk)}
        more = {"why": self.why, "quote": self.quote}
        return found | {name: asdict(one) for name, one in more.items() if one is not None}

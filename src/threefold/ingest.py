"""Documents into a store, in one pass and bounded memory: compare, cut, encode, write, remove what was replaced.

A document counts as stored once its chunk number 0 is, which is written after all its others. Chunks of an older
version are deleted after that. So a kill, an error or Ctrl-C at any moment leaves each document in its old version,
in its new one, or visibly unfinished, and the next call goes on from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from threefold.config import Chunking, Filter
from threefold.errors import DocumentError, InputError
from threefold.score.pool import pooled
from threefold.store.check import stored
from threefold.store.payload import to_payload
from threefold.store.protocol import Store
from threefold.text.chunks import chunk_document
from threefold.text.documents import Skipped, prepare
from threefold.text.protocol import TextEncoder
from threefold.types import Chunk, Document, Encoded

#: Chunks that are encoded and written together; an interrupted call loses at most the work on so many.
BATCH_CHUNKS = 256
#: Documents that are compared with the store together, and the characters after which it is done earlier.
BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 1_000_000

#: Called with (documents done, chunks written, tokens encoded) after every step.
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class AddReport:
    """What a call of `add` or `add_files` did. Documents are counted, and chunks and tokens of the new ones.

    skipped    what was not taken, with reasons
    truncated  chunks that the model could not read to their end (a prompt may leave too little room)
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    deleted: int = 0
    skipped: tuple[Skipped, ...] = ()
    chunks: int = 0
    tokens: int = 0
    truncated: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Known:
    """What the store has of one document: unchanged only if this is the whole of it."""

    hashes: set[str] = field(default_factory=set)
    numbers: set[int] = field(default_factory=set)
    first: str = ""  # content hash of chunk 0: that of the newest complete version
    source: str = ""
    end: int = 0  # of the last chunk

    def add(self, chunk: Chunk) -> None:
        self.hashes.add(chunk.content_hash)
        self.numbers.add(chunk.number)
        self.end = max(self.end, chunk.end)
        if chunk.number == 0:
            self.first, self.source = chunk.content_hash, chunk.source

    def is_whole(self, document: Document) -> bool:
        """Whether it is this document to its last character: single chunks can be deleted (by a filter)."""
        same = self.hashes == {self.first} == {document.content_hash} and self.source == document.source
        return same and len(self.numbers) == max(self.numbers) + 1 and self.end == len(document.text.rstrip())


class Ingest:
    """One run over documents. Use once."""

    def __init__(
        self, store: Store, encoder: TextEncoder, chunking: Chunking, progress: Progress | None, *, files: bool = False
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._chunking = chunking
        self._progress = progress
        self._files = files  # sources are files: one id must not jump from one existing file to another
        self._began = time.monotonic()
        self._waiting: list[Document] = []  # to be compared
        self._pending: list[Chunk] = []  # to be encoded
        self._stale: dict[str, Filter] = {}  # by document: what to delete when its new version is complete
        self._replacing: set[str] = set()
        self.seen: set[str] = set()
        self.read: set[str] = set()  # the sources of what was seen
        self.skipped: list[Skipped] = []
        self._added = self._replaced = self._unchanged = self._done = 0
        self._chunks = self._tokens = self._truncated = 0

    def run(self, documents: Iterable[Document | Skipped]) -> None:
        """Take every document; what cannot be taken is skipped and reported."""
        for item in documents:
            if isinstance(item, Skipped):
                self._skip(item)
            else:
                self._take(item)
        self._compare()
        while self._pending:
            self._write()
        self._tell()

    def report(self, deleted: int = 0) -> AddReport:
        """What happened so far."""
        return AddReport(
            self._added,
            self._replaced,
            self._unchanged,
            deleted,
            tuple(self.skipped),
            self._chunks,
            self._tokens,
            self._truncated,
            time.monotonic() - self._began,
        )

    # ---- one document ------------------------------------------------------------------------------------

    def _take(self, given: Document) -> None:
        try:
            document = prepare(given)
        except DocumentError as error:
            return self._skip(Skipped(given.id, str(error), given.source))
        if not document.text.strip():
            return self._skip(Skipped(document.id, "there is no text in it", document.source, empty=True))
        if not document.id:
            return self._skip(Skipped(document.text[:40], "the document has no id", document.source))
        if document.id in self.seen:
            reason = (
                f"the id {document.id!r} occurred before in this call. "
                "Two files of one name need a prefix (--prefix), rows of a file ids of their own"
            )
            return self._skip(Skipped(document.id, reason, document.source))
        self.seen.add(document.id)
        self.read.add(document.source)
        self._waiting.append(document)
        if len(self._waiting) >= BATCH_DOCUMENTS or sum(len(d.text) for d in self._waiting) >= BATCH_CHARACTERS:
            self._compare()
        return None

    def _skip(self, skipped: Skipped) -> None:
        self.skipped.append(skipped)
        self._done += 1

    def _compare(self) -> None:
        """Which of the waiting documents are new or changed; those are cut into chunks."""
        known = _known(self._store, [document.id for document in self._waiting])
        for document in self._waiting:
            self._compare_one(document, known.get(document.id))
            while len(self._pending) >= BATCH_CHUNKS:
                self._write()
        self._waiting.clear()
        self._tell()

    def _compare_one(self, document: Document, known: _Known | None) -> None:
        if self._files and known and known.source != document.source and os.path.exists(known.source):
            owner = f"its id {document.id!r} belongs to {known.source}, which still exists"
            reason = f"{owner}. Pass a prefix for one of them (--prefix)"
            return self._skip(Skipped(document.source, reason, document.source))
        if known and known.is_whole(document):
            self._unchanged += 1
            self._done += 1
            return None
        chunks = chunk_document(document, self._encoder.tokenizer, self._chunking)
        try:
            to_payload(chunks[0], 0, False)
        except InputError as error:
            return self._skip(Skipped(document.id, str(error), document.source))
        if known:
            self._stale[document.id] = _older(document, len(chunks))
            if known.first:
                self._replacing.add(document.id)
        self._pending += [*chunks[1:], chunks[0]]
        return None

    # ---- one batch ---------------------------------------------------------------------------------------

    def _write(self) -> None:
        batch = self._pending[:BATCH_CHUNKS]
        vectors = self._encode([chunk.text for chunk in batch])
        self._store.upsert(batch, vectors)
        del self._pending[: len(batch)]
        self._chunks += len(batch)
        self._tokens += int(vectors.tokens.sum())
        self._truncated += int(vectors.truncated.sum())
        self._complete([chunk.document_id for chunk in batch if chunk.number == 0])
        self._tell()

    def _encode(self, texts: list[str]) -> Encoded:
        manifest = self._store.manifest
        vectors = self._encoder.encode_documents(texts, outputs=stored(manifest))
        if vectors.multi is None:
            return vectors
        return replace(vectors, multi=pooled(vectors.multi, manifest.multi_pool))

    def _complete(self, ids: Sequence[str]) -> None:
        """The new versions of these documents are durable: count them, and delete the old ones."""
        old = [self._stale.pop(id) for id in ids if id in self._stale]
        if old:
            self._store.delete(Filter("or", parts=tuple(old)) if len(old) > 1 else old[0])
        replaced = sum(id in self._replacing for id in ids)
        self._replaced += replaced
        self._added += len(ids) - replaced
        self._done += len(ids)

    def _tell(self) -> None:
        if self._progress:
            self._progress(self._done, self._chunks, self._tokens)


def _known(store: Store, ids: Sequence[str]) -> Mapping[str, _Known]:
    found: dict[str, _Known] = {}
    if not ids:
        return found
    for chunk in store.scroll(Filter("in", "document_id", tuple(ids))):
        found.setdefault(chunk.document_id, _Known()).add(chunk)
    return found


def _older(document: Document, chunks: int) -> Filter:
    """Chunks of the document that are not of its present version, which has so many."""
    other = Filter("not", parts=(Filter("eq", "content_hash", document.content_hash),))
    beyond = Filter("gte", "number", chunks)
    return Filter("and", parts=(Filter("eq", "document_id", document.id), Filter("or", parts=(other, beyond))))


def delete_missing_files(store: Store, roots: Sequence[Path], prefix: str, run: Ingest) -> int:
    """Delete the documents whose file was below `roots` and is gone, and rows that are gone from theirs.

    A file that is there and could not be read keeps its documents, and so does everything in an unreadable folder.
    So does a file that this run did not look at, or that gave its documents other ids: under another prefix, or from
    another folder. Returns how many documents went.
    """
    unread = {one.source for one in run.skipped if one.source and not one.empty}
    read = run.read | {one.source for one in run.skipped if one.empty}
    gone = set()
    for chunk in store.scroll():
        if chunk.document_id in run.seen or not chunk.source:
            continue
        source = Path(chunk.source)
        places = {chunk.source, *map(str, source.parents)}
        names = [_name_below(root, source, prefix) for root in roots if str(root) in places]
        if not names or places & unread:
            continue
        ours = any(chunk.document_id == name or chunk.document_id.startswith(f"{name}:") for name in names)
        if (chunk.source in read and ours) or not os.path.exists(source):
            gone.add(chunk.document_id)
    names = sorted(gone)
    for start in range(0, len(names), BATCH_CHUNKS):
        store.delete(Filter("in", "document_id", tuple(names[start : start + BATCH_CHUNKS])))
    return len(names)


def _name_below(root: Path, source: Path, prefix: str) -> str:
    """The id that a run over `root` gives the document of a file, or the beginning of those of its rows."""
    name = source.name if source == root else source.relative_to(root).as_posix()
    return f"{prefix}/{name}" if prefix else name

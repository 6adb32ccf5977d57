"""A collection: documents in, hits out. One encoder and one store behind the calls that people make.

    papers = Collection("papers", encoder)
    papers.add_files("docs/")
    papers.search("how is the sparse head trained?", k=5)

Adding is incremental and may be interrupted anywhere: what is stored is always enough to go on from.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from threefold.characters import clean_value
from threefold.config import Chunking, Filter, Manifest, MultiStorage
from threefold.described import CollectionInfo, DocumentInfo
from threefold.errors import InputError, UnknownChunkError
from threefold.ingest import AddReport, Ingest, Progress, delete_missing_files
from threefold.opening import check_settings, collection_folder, manifest_for, open_cluster, open_folder
from threefold.retrieve.asked import check_count, check_query, condition_of
from threefold.retrieve.explain import explain
from threefold.retrieve.quotes import quoted, quoted_by
from threefold.retrieve.recommend import recommend
from threefold.retrieve.saved import SavedRetrievers
from threefold.retrieve.stages import (
    DEPTH,
    Diversify,
    Fuse,
    Fusion,
    Group,
    Judge,
    Mode,
    Ranked,
    Rerank,
    Retriever,
    preset,
    run,
)
from threefold.score.fuse import Weights
from threefold.store.check import stored
from threefold.store.folder import size_bytes
from threefold.store.protocol import Store
from threefold.text.documents import Loading, Skipped, as_document, load_files
from threefold.text.protocol import Reranker, TextEncoder
from threefold.types import Chunk, Document, Encoded, Hit, Representation

#: What a search that has no retriever takes: mode, weights, fusion, depth, rerank, diversify and group.
_BY_ITSELF = ("hybrid", None, "weighted", DEPTH, None, None, None)
#: Looks at a collection that others change meanwhile, before a search fails.
TRIES = 5


class Collection:
    """Documents that can be searched by one model. A context manager; `close` releases the folder.

    path_or_name   a bare name, or a path (anything with a separator, or a `Path`); with `url` the name on the server
    chunking       None: that of the existing collection, or the default
    multi_storage  None: that of the existing collection, or int8; "none" keeps no token vectors
    multi_pool     None: that of the existing collection, or 1; of so many token vectors of a chunk one is kept
    create         False: a collection that does not exist is an error
    reranker       scores query and text together where a search reranks by "cross"; a `CrossEncoder`
    url            a server instead of a folder: Qdrant (http://host:6333, extra `cluster`) or Milvus
                   (milvus://host:19530, milvus+https://host, milvus:file.db; extra `milvus`)
    api_key        of the server, where it asks for one; by default `$THREEFOLD_URL_KEY`
    """

    def __init__(
        self,
        path_or_name: str | Path,
        encoder: TextEncoder,
        *,
        chunking: Chunking | None = None,
        multi_storage: MultiStorage | None = None,
        multi_pool: int | None = None,
        create: bool = True,
        reranker: Reranker | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> None:
        given: Any = {"chunking": chunking, "multi_storage": multi_storage, "multi_pool": multi_pool}
        wanted = manifest_for(encoder, **given)
        if url is None:
            folder = collection_folder(path_or_name)
            self._attach(open_folder(folder, wanted, create), encoder, folder.name, folder, reranker)
        else:
            name = str(path_or_name)
            self._attach(open_cluster(url, api_key, name, wanted, create), encoder, name, None, reranker)
        self._check(wanted, given)

    @classmethod
    def over(
        cls, store: Store, encoder: TextEncoder, *, name: str = "memory", reranker: Reranker | None = None
    ) -> Self:
        """A collection over a store that is open already, for example a `MemoryStore`."""
        self = cls.__new__(cls)
        self._attach(store, encoder, name, None, reranker)
        self._check(manifest_for(encoder), {})
        return self

    def _attach(
        self, store: Store, encoder: TextEncoder, name: str, folder: Path | None, reranker: Reranker | None
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._reranker = reranker
        self.name = name
        self.folder = folder
        self._saved = SavedRetrievers(folder)
        self._writing = threading.RLock()

    def _check(self, wanted: Manifest, given: Mapping[str, Any]) -> None:
        try:
            check_settings(self._store.manifest, wanted, **given)
        except BaseException:
            self._store.close()  # releases the folder
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder; afterwards every call is refused."""
        self._store.close()

    @property
    def manifest(self) -> Manifest:
        """What the collection was built with."""
        return self._store.manifest

    @property
    def store(self) -> Store:
        """What it is kept in, for those who bring or want vectors; `threefold.analyze` is such a one."""
        return self._store

    @property
    def encoder(self) -> TextEncoder:
        """What encodes its documents and queries."""
        return self._encoder

    @property
    def representations(self) -> tuple[Representation, ...]:
        """The representations that it keeps."""
        return stored(self._store.manifest)

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many chunks there are, or match."""
        return self._store.count(condition_of(where))

    def documents(self, where: Mapping[str, Any] | None = None) -> list[DocumentInfo]:
        """The documents, by id; with `where`, those with a chunk that matches, and the number of such chunks."""
        chunks: dict[str, int] = {}
        first: dict[str, Chunk] = {}
        for chunk in self._store.scroll(condition_of(where)):
            chunks[chunk.document_id] = chunks.get(chunk.document_id, 0) + 1
            first.setdefault(chunk.document_id, replace(chunk, text=""))
        return [
            DocumentInfo(id, one.source, one.title, one.language, chunks[id], one.content_hash)
            for id, one in sorted(first.items())
        ]

    def info(self) -> CollectionInfo:
        """What the collection is, for people and reports."""
        documents = len({chunk.document_id for chunk in self._store.scroll()})
        size = size_bytes(self.folder) if self.folder else 0
        return CollectionInfo(self.name, documents, self.count(), self.representations, size, self.manifest)

    # ---- change ------------------------------------------------------------------------------------------

    def add(
        self, documents: Document | str | Iterable[Document | str], *, progress: Progress | None = None
    ) -> AddReport:
        """Add documents, or plain texts (their id is their hash). Unchanged ones are skipped, changed ones replaced.

        NUL and lone surrogates become U+FFFD, one for one. A generator is read as it is needed.
        """
        given = [documents] if isinstance(documents, Document | str) else documents
        with self._writing:
            ingest = Ingest(self._store, self._encoder, self.manifest.chunking, progress)
            ingest.run(as_document(item, i) for i, item in enumerate(given))
            return ingest.report()

    def add_files(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        loading: Loading | None = None,
        prefix: str = "",
        delete_missing: bool = False,
        without: Sequence[str | Path] = (),
        progress: Progress | None = None,
    ) -> AddReport:
        """Add files and folders. What cannot be read is skipped, with the reason in the report.

        prefix          put before each id, where two folders have files of the same name: `prefix/id`
        delete_missing  delete documents whose file was below these paths and is gone, and rows that left their file
        without         files and folders that are no documents, as this collection's own folder is none
        """
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        prefix = prefix.rstrip("/")
        without = [*without, *([self.folder] if self.folder else [])]
        documents = (_prefixed(item, prefix) for item in load_files(given, loading, without=without))
        with self._writing:
            ingest = Ingest(self._store, self._encoder, self.manifest.chunking, progress, files=True)
            ingest.run(documents)
            if not delete_missing:
                return ingest.report()
            roots = [Path(os.path.abspath(path)) for path in given]
            return ingest.report(delete_missing_files(self._store, roots, prefix, ingest))

    def delete(self, ids: str | Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete documents by id, or the chunks that match `where`; returns how many chunks went."""
        condition = condition_of(where)
        if (ids is None) == (condition is None):
            raise InputError("delete needs either ids of documents or a filter where= (and not both)")
        if ids is not None:
            given = (ids,) if isinstance(ids, str) else ids
            condition = Filter("in", "document_id", tuple(map(clean_value, given)))  # as they are stored
        with self._writing:
            return self._store.delete(condition) if condition else 0

    def optimize(self) -> None:
        """Build the approximate index where the engine has one; worth it from about 50,000 chunks."""
        with self._writing:
            self._store.optimize()

    def snapshot(self, target: str | Path) -> None:
        """A consistent copy in a new folder, which can be opened as a collection (saved retrievers stay behind)."""
        self._store.snapshot(Path(target))

    # ---- search ------------------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        *,
        mode: Mode = "hybrid",
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        weights: Weights | Mapping[str, float] | None = None,
        fusion: Fusion = "weighted",
        depth: int = DEPTH,
        rerank: Rerank | None = None,
        diversify: Diversify | None = None,
        group: Group | None = None,
        why: bool = False,
        quote: bool = False,
        retriever: Retriever | str | None = None,
    ) -> list[Hit]:
        """The k best chunks for a query, best first.

        mode       hybrid: every representation; dense, sparse, multi: that one alone
        k          10 unless it is given, or what a `retriever` says
        weights    of the weighted sum; a name that is left out keeps the default of the model
        fusion     how a hybrid search joins its lists
        depth      candidates per representation
        why        explain each hit (`hit.why`)
        quote      find the sentence of each hit that answers best (`hit.quote`)
        retriever  stages of your own, or the name of saved ones; `k` and `where` still hold, the rest is theirs
        """
        if retriever is not None:
            if (mode, weights, fusion, depth, rerank, diversify, group) != _BY_ITSELF:
                raise InputError(
                    "a retriever brings its own stages; with retriever= only k, where, why and quote can be given"
                )
            stages = self.load_retriever(retriever) if isinstance(retriever, str) else retriever
            return self.search_with(stages, query, k=k, where=where, why=why, quote=quote)
        own = Weights(*self._encoder.card.fusion)
        counts = {"k": check_count("k", 10 if k is None else k), "depth": check_count("depth", depth)}
        stages = preset(mode, self.representations, weights=own, **counts)
        fuse = self._fuse(stages.fuse, mode, weights, fusion)
        stages = replace(stages, fuse=fuse, rerank=rerank, diversify=diversify, group=group, where=where)
        return self.search_with(stages, query, why=why, quote=quote)

    def _fuse(self, fuse: Fuse, mode: Mode, weights: Weights | Mapping[str, float] | None, fusion: Fusion) -> Fuse:
        if weights is None:
            return fuse if fusion == "weighted" else Fuse.from_dict({"method": fusion}, "fusion")
        if mode != "hybrid" or fusion != "weighted":
            raise InputError(f"weights belong to mode='hybrid' with fusion='weighted'; got {mode!r} with {fusion!r}")
        if isinstance(weights, Weights):
            return Fuse(weights=weights)
        own = Weights(*self._encoder.card.fusion).only(*self.representations)
        return Fuse(weights=Weights.from_dict({**own.to_dict(), **weights}, "weights"))

    def search_with(
        self,
        retriever: Retriever,
        query: str,
        *,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        why: bool = False,
        quote: bool = False,
    ) -> list[Hit]:
        """Search by stages of your own. `k` replaces that of the retriever, `where` holds beside its own."""
        if k is not None:
            retriever = replace(retriever, k=check_count("k", k))
        if where:
            retriever = replace(retriever, where={"and": [retriever.where, where]} if retriever.where else where)
        if retriever.where:
            retriever = replace(retriever, where=clean_value(retriever.where))  # see `condition_of`
        missing = [name for name in retriever.needs() if name not in self.representations]
        if missing:
            raise InputError(
                f"the search needs {missing[0]} scores, but collection {self.name!r} keeps "
                f"{', '.join(self.representations)}. Set its weight to 0 and leave it out of the stages"
            )
        judge = self._judge(retriever, text := check_query(query))
        outputs = self.representations if why else retriever.needs()
        if quote and (needed := quoted_by(self._encoder)) not in outputs:
            outputs = (*outputs, needed)
        encoded = self._encoder.encode_queries([text], outputs=outputs)
        if encoded.truncated[0]:
            raise InputError(
                f"the query has more than the {int(encoded.tokens[0]):,} tokens that the model reads. "
                "Search for a part of it"
            )
        return _found(lambda: self._hits(text, encoded, run(self._store, encoded, retriever, judge), why, quote))

    def recommend(
        self,
        like: Sequence[str],
        unlike: Sequence[str] = (),
        *,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
        half_life: float | None = None,
        diversify: Diversify | None = None,
        group: Group | None = None,
    ) -> list[Hit]:
        """The k chunks most like some documents or chunks, best first; nothing of what is named comes back.

        like, unlike  ids of documents, which count as the mean of their chunks, or of chunks ("document#number")
        half_life     the last of `like` counts fully, one so many before it half: for a history, the latest last
        group         None: one chunk of a document
        """
        options: Any = {"where": where, "half_life": half_life, "diversify": diversify, "group": group}
        return _found(lambda: self._plain_hits(recommend(self._store, like, unlike, k=k, **options)))

    def _judge(self, retriever: Retriever, query: str) -> Judge | None:
        """How texts are scored for this query by the reranker, if a stage asks for it."""
        reranker = self._reranker
        if retriever.rerank is None or retriever.rerank.by != "cross":
            return None
        if reranker is None:
            raise InputError(
                f'the search reranks by "cross", but collection {self.name!r} was opened without a cross-encoder. '
                "Open it with reranker=CrossEncoder(...), on the command line with --rerank MODEL"
            )
        return lambda texts: reranker.score(query, texts)

    def _hits(self, text: str, query: Encoded, found: Sequence[Ranked], why: bool, quote: bool) -> list[Hit]:
        hits = self._plain_hits(found)
        if why:
            reasons = explain(self._store, self._encoder, text, query, found, [hit.chunk for hit in hits])
            hits = [replace(hit, why=reason) for hit, reason in zip(hits, reasons, strict=True)]
        return quoted(self._store, self._encoder, text, query, hits) if quote else hits

    def _plain_hits(self, found: Sequence[Ranked]) -> list[Hit]:
        chunks = self._store.fetch([one.id for one in found]) if found else []
        return [
            Hit(chunk, one.score, {str(name): score for name, score in one.scores.items()})
            for one, chunk in zip(found, chunks, strict=True)
        ]

    # ---- saved retrievers --------------------------------------------------------------------------------

    def save_retriever(self, name: str, retriever: Retriever) -> None:
        """Keep a retriever under a name, as JSON in the collection's folder (where there is none, in memory)."""
        self._saved.save(name, retriever)

    def load_retriever(self, name: str) -> Retriever:
        """A saved retriever."""
        return self._saved.load(name)

    def retrievers(self) -> list[str]:
        """The names of the saved retrievers."""
        return self._saved.names()


def _found(look: Callable[[], list[Hit]]) -> list[Hit]:
    """What is found, at the latest when nobody deletes a chunk between two looks into the store."""
    for _ in range(TRIES - 1):
        with suppress(UnknownChunkError):
            return look()
    return look()


def _prefixed(item: Document | Skipped, prefix: str) -> Document | Skipped:
    return replace(item, id=f"{prefix}/{item.id}") if prefix and isinstance(item, Document) else item

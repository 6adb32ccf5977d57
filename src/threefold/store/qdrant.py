"""The cluster store: a Qdrant server or cluster, through qdrant-client (extra `cluster`).

The payload, the vectors and their compact storage are those of the embedded engine, so a collection moves from
one to the other by upserting what was read. The manifest is kept as metadata of the collection (server 1.16 or
newer; the compact storage of token vectors needs 1.20).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from threefold.config import Filter, Manifest
from threefold.errors import ConfigError, InputError, MissingExtraError, StoreCorruptError, StoreError
from threefold.store.check import (
    batches,
    check_batch,
    check_query,
    check_search,
    sizes_bytes,
    stored,
    unknown_chunk,
)
from threefold.store.export import export
from threefold.store.filters import translate
from threefold.store.folder import FORMAT_VERSION
from threefold.store.payload import INDEXED_FIELDS, from_payload, point_id, to_payload
from threefold.store.protocol import Scored
from threefold.store.ties import best
from threefold.store.unpack import unpack
from threefold.types import Chunk, Encoded, Floats, Representation

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

try:
    from qdrant_client import models
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException
except ImportError as _error:
    if _error.name is None or not _error.name.startswith("qdrant_client"):
        raise
    raise MissingExtraError("qdrant_client", "cluster", "a Qdrant cluster") from None

#: Raw bytes per request. As JSON a float is about 20 characters, so this stays below the server's 32 MB.
BATCH_BYTES = 4 * 2**20

#: The key of the manifest in the metadata of a collection.
MANIFEST_KEY = "threefold"

_MULTI_DATATYPE = {"float16": "float16", "int8": "turbo8", "int4": "turbo4"}


def connect(url: str, *, api_key: str | None = None, prefer_grpc: bool = False, timeout_s: int = 60) -> QdrantClient:
    """A client for `http(s)://host:6333`."""
    from qdrant_client import QdrantClient

    with _cluster_errors(f"connect to {url}"):
        return QdrantClient(url=url, api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout_s)


def exists(client: QdrantClient, name: str) -> bool:
    """Whether the server has a collection of this name."""
    with _cluster_errors(f"ask for collection {name!r}"):
        return bool(client.collection_exists(name))


@contextmanager
def _cluster_errors(action: str) -> Iterator[None]:
    """What client and network raise, as StoreError."""
    try:
        yield
    except (ApiException, QdrantException, OSError) as error:
        raise StoreError(f"Qdrant: could not {action}: {error}. Check the url, the api key and the server") from error


class QdrantStore:
    """A collection on a server. The client may be shared; `close` closes it."""

    def __init__(self, client: QdrantClient, name: str, manifest: Manifest) -> None:
        """Use `create` or `open`."""
        self._client: QdrantClient | None = client
        self._name = name
        self._manifest = manifest

    @classmethod
    def create(
        cls,
        client: QdrantClient,
        name: str,
        manifest: Manifest,
        *,
        shards: int | None = None,
        replicas: int | None = None,
    ) -> Self:
        """A new, empty collection. A name that is taken is refused. None: the server's default."""
        manifest = dataclasses.replace(manifest, engine="qdrant", format_version=FORMAT_VERSION)
        if not stored(manifest):
            raise StoreError(f"{name}: the manifest keeps no vectors (all dimensions are 0). Give it at least one")
        with _cluster_errors(f"create collection {name!r}"):
            if client.collection_exists(name):
                raise StoreError(f"collection {name!r} exists on this server. Open it, or choose another name")
            client.create_collection(
                name,
                vectors_config=_vectors_config(manifest),
                sparse_vectors_config={"sparse": models.SparseVectorParams()} if "sparse" in stored(manifest) else None,
                shard_number=shards,
                replication_factor=replicas,
                metadata={MANIFEST_KEY: manifest.to_dict()},
            )
            _create_indexes(client, name)
        return cls.open(client, name)

    @classmethod
    def open(cls, client: QdrantClient, name: str) -> Self:
        """An existing collection. Compare its `manifest` with `threefold.store.folder.check_model`."""
        with _cluster_errors(f"open collection {name!r}"):
            if not client.collection_exists(name):
                raise StoreError(f"no collection {name!r} on this server. Create it, or correct the name")
            metadata = client.get_collection(name).config.metadata or {}
        return cls(client, name, _read_manifest(name, metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def upsert(self, chunks: Sequence[Chunk], vectors: Encoded) -> None:
        """Add or replace; the servers have it in their logs when it returns."""
        check_batch(self._manifest, chunks, vectors)
        payloads = [
            to_payload(chunk, int(vectors.tokens[i]), bool(vectors.truncated[i])) for i, chunk in enumerate(chunks)
        ]
        for part in batches(sizes_bytes(self._manifest, chunks, vectors), BATCH_BYTES):
            points = [self._point(payloads[i], vectors, i) for i in range(part.start, part.stop)]
            with self._calling(f"write (the first {part.start} of {len(chunks)} chunks are stored)") as client:
                client.upsert(self._name, points, wait=True)

    def delete(self, where: Filter) -> int:
        condition = translate(where, QdrantWords())
        with self._calling("delete") as client:
            count = client.count(self._name, count_filter=condition, exact=True).count
            if count:
                client.delete(self._name, models.FilterSelector(filter=condition), wait=True)
            return count

    def search(
        self, representation: Representation, query: Encoded, k: int, where: Filter | None = None
    ) -> list[Scored]:
        check_search(self._manifest, query, representation, k)
        condition = None if where is None else translate(where, QdrantWords())
        ask, tokens = _vector(representation, query, 0), _divisor(representation, query)

        def nearest(limit: int) -> list[Scored]:
            with self._calling("search") as client:
                found = client.query_points(
                    self._name, ask, using=representation, limit=limit, query_filter=condition, with_payload=["id"]
                )
            return [Scored((point.payload or {})["id"], point.score / tokens) for point in found.points]

        return [] if _is_empty(representation, query) else best(nearest, k)

    def score(self, query: Encoded, ids: Sequence[str]) -> Mapping[Representation, Floats]:
        both = check_query(self._manifest, query)
        points = [point_id(name) for name in ids]
        self._records(ids, with_payload=False, with_vectors=False)
        asked = [name for name in both if points and not _is_empty(name, query)]
        only = models.Filter(must=[models.HasIdCondition(has_id=[*points])])
        requests = [
            models.QueryRequest(
                query=_vector(name, query, 0),
                using=name,
                filter=only,
                limit=len(points),
                params=models.SearchParams(exact=True),
            )
            for name in asked
        ]
        with self._calling("score") as client:
            answers = client.query_batch_points(self._name, requests) if requests else []
        scores = {name: np.zeros(len(points), np.float32) for name in both}
        for name, answer in zip(asked, answers, strict=True):
            found = {str(point.id): point.score / _divisor(name, query) for point in answer.points}
            scores[name] = np.array([found.get(point, 0.0) for point in points], dtype=np.float32)
        return scores

    def fetch(self, ids: Sequence[str]) -> list[Chunk]:
        records = self._records(ids, with_payload=True, with_vectors=False)
        return [from_payload(record.payload or {}) for record in records]

    def vectors(self, ids: Sequence[str]) -> Encoded:
        if not ids:
            raise InputError("vectors of no chunks were asked for. Pass at least one id")
        records = self._records(ids, with_payload=True, with_vectors=True)
        return unpack(self._manifest, [record.vector for record in records], [record.payload for record in records])

    def scroll(self, where: Filter | None = None, batch: int = 1000) -> Iterator[Chunk]:
        if batch < 1:
            raise InputError(f"batch must be at least 1; got {batch}")
        return self._pages(None if where is None else translate(where, QdrantWords()), batch)

    def count(self, where: Filter | None = None) -> int:
        condition = None if where is None else translate(where, QdrantWords())
        with self._calling("count") as client:
            return client.count(self._name, count_filter=condition, exact=True).count

    def optimize(self) -> None:
        """Nothing to do: the server builds its indexes by itself, in the background."""
        self._require_open()

    def snapshot(self, target: Path) -> None:
        """Write the collection to a folder, as one of the embedded engine.

        Chunks that others change meanwhile may be in it or not. Snapshots of the server itself are its own matter.
        """
        self._require_open()
        export(self, target)

    def close(self) -> None:
        """Close the client; closing again does nothing."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextmanager
    def _calling(self, action: str) -> Iterator[QdrantClient]:
        client = self._require_open()
        with _cluster_errors(f"{action} in collection {self._name!r}"):
            yield client

    def _require_open(self) -> QdrantClient:
        if self._client is None:
            raise StoreError(f"collection {self._name!r} is closed. Open it again")
        return self._client

    def _point(self, payload: dict[str, Any], vectors: Encoded, i: int) -> models.PointStruct:
        named: dict[str, Any] = {name: _vector(name, vectors, i) for name in stored(self._manifest)}
        return models.PointStruct(id=point_id(payload["id"]), vector=named, payload=payload)

    def _records(self, ids: Sequence[str], *, with_payload: bool, with_vectors: bool) -> list[Any]:
        """Records in the order of `ids`; an unknown id is an error that names it."""
        points = [point_id(name) for name in ids]
        with self._calling("read") as client:
            found = client.retrieve(self._name, points, with_payload=with_payload, with_vectors=with_vectors)
        records = {str(record.id): record for record in found}
        missing = [name for name, point in zip(ids, points, strict=True) if point not in records]
        if missing:
            raise unknown_chunk(missing[0])
        return [records[point] for point in points]

    def _pages(self, condition: models.Filter | None, batch: int) -> Iterator[Chunk]:
        offset: Any = None
        while True:
            with self._calling("read") as client:
                records, offset = client.scroll(
                    self._name, scroll_filter=condition, limit=batch, offset=offset, with_payload=True
                )
            yield from (from_payload(record.payload or {}) for record in records)
            if offset is None:
                return


class QdrantWords:
    """Filters of the server; a `Dialect`."""

    def every(self, parts: list[models.Filter]) -> models.Filter:
        return models.Filter(must=[*parts])

    def some(self, parts: list[models.Filter]) -> models.Filter:
        return models.Filter(should=[*parts])

    def no(self, part: models.Filter) -> models.Filter:
        return models.Filter(must_not=[part])

    def text(self, path: str, values: list[str]) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key=path, match=models.MatchAny(any=values))])

    def number(self, path: str, bounds: Mapping[str, float]) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key=path, range=models.Range(**bounds))])


def _vectors_config(manifest: Manifest) -> dict[str, models.VectorParams]:
    config: dict[str, models.VectorParams] = {}
    if "dense" in stored(manifest):
        config["dense"] = models.VectorParams(
            size=manifest.dense_dim, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16
        )
    if "multi" in stored(manifest):
        config["multi"] = models.VectorParams(
            size=manifest.multi_dim,
            distance=models.Distance.DOT,
            datatype=models.Datatype(_MULTI_DATATYPE[manifest.multi_storage]),
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # token vectors are scored on candidates, never searched by graph
        )
    return config


def _create_indexes(client: QdrantClient, name: str) -> None:
    for field in INDEXED_FIELDS:
        client.create_payload_index(name, field, field_schema=models.PayloadSchemaType.KEYWORD, wait=True)


def _read_manifest(name: str, metadata: Mapping[str, Any]) -> Manifest:
    if MANIFEST_KEY not in metadata:
        raise StoreError(
            f"collection {name!r} has no manifest: another program made it, or the server is older than 1.16. "
            "Choose another name, or upgrade the server"
        )
    try:
        manifest = Manifest.from_dict(metadata[MANIFEST_KEY])
    except ConfigError as error:
        raise StoreCorruptError(
            f"collection {name!r}: damaged manifest ({error}). Build the collection again"
        ) from None
    if manifest.format_version > FORMAT_VERSION:
        raise StoreError(
            f"collection {name!r}: written by a newer threefold (format {manifest.format_version}, this one reads up "
            f"to {FORMAT_VERSION}). Upgrade with: pip install --upgrade threefold"
        )
    return manifest


def _vector(representation: Representation, vectors: Encoded, i: int) -> Any:
    if representation == "dense" and vectors.dense is not None:
        return vectors.dense[i].tolist()
    if representation == "sparse" and vectors.sparse is not None:
        ids, weights = vectors.sparse[i]
        return models.SparseVector(indices=ids.tolist(), values=weights.tolist())
    return None if vectors.multi is None else vectors.multi[i].tolist()


def _is_empty(representation: Representation, query: Encoded) -> bool:
    return representation == "sparse" and query.sparse is not None and len(query.sparse.indices) == 0


def _divisor(representation: Representation, query: Encoded) -> int:
    """The engine's MaxSim is a sum over query tokens, ours is the mean."""
    return len(query.multi[0]) if representation == "multi" and query.multi is not None else 1

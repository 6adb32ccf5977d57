"""The cluster store: a Qdrant server or cluster, through qdrant-client (extra `cluster`).

The payload, the vectors and their compact storage are those of the embedded engine, so a collection moves from
one to the other by upserting what was read. The manifest is kept as metadata of the collection (server 1.16 or
newer; the compact storage of token vectors needs 1.20).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from threefold.config import Filter, Manifest
from threefold.errors import InputError, MissingExtraError, StoreError
from threefold.store.check import stored
from threefold.store.export import export
from threefold.store.filters import translate
from threefold.store.payload import INDEXED_FIELDS
from threefold.store.points import Offset, PointStore, manifest_of, named_manifest
from threefold.types import Encoded, Representation

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

try:
    from qdrant_client import models
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException

    from threefold.store.qdrant_words import QdrantWords, qdrant_point, qdrant_vector, vectors_config
except ImportError as _error:
    if _error.name is None or not _error.name.startswith("qdrant_client"):
        raise
    raise MissingExtraError("qdrant_client", "cluster", "a Qdrant cluster") from None

#: Raw bytes per request. As JSON a float is about 20 characters, so this stays below the server's 32 MB.
BATCH_BYTES = 4 * 2**20

#: The key of the manifest in the metadata of a collection.
MANIFEST_KEY = "threefold"


def connect(url: str, *, api_key: str | None = None, prefer_grpc: bool = False, timeout_s: int = 60) -> QdrantClient:
    """A client for `http(s)://host:6333`."""
    from qdrant_client import QdrantClient

    if not url:  # the client would take localhost
        raise InputError("url is empty; write it as http://host:6333")
    with _cluster_errors(f"connect to {url}"):
        try:
            # Asked for its version, by a thread, a server that is not there is a warning between other lines; the
            # first call says the same as an error.
            return QdrantClient(
                url=url, api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout_s, check_compatibility=False
            )
        except ValueError as error:
            raise InputError(f"url {url!r}: {error}. Write it as http://host:6333") from error


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


class QdrantStore(PointStore[models.Filter]):
    """A collection on a server. The client may be shared; `close` closes it."""

    _words = QdrantWords()
    _vector = staticmethod(qdrant_vector)

    def __init__(self, client: QdrantClient, name: str, manifest: Manifest) -> None:
        """Use `create` or `open`."""
        super().__init__(manifest)
        self._client: QdrantClient | None = client
        self._name = name

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
        manifest = named_manifest(manifest, "qdrant", name)
        with _cluster_errors(f"create collection {name!r}"):
            if client.collection_exists(name):
                raise StoreError(f"collection {name!r} exists on this server. Open it, or choose another name")
            client.create_collection(
                name,
                vectors_config=vectors_config(manifest),
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

    def delete(self, where: Filter) -> int:
        condition = translate(where, self._words)
        with self._calling("delete") as client:
            count = client.count(self._name, count_filter=condition, exact=True).count
            if count:
                client.delete(self._name, models.FilterSelector(filter=condition), wait=True)
            return count

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

    def _part_bytes(self) -> int:
        return BATCH_BYTES

    def _write(self, part: slice, payloads: list[dict[str, Any]], vectors: Encoded, size_bytes: int) -> None:
        points = [qdrant_point(self._manifest, payloads[i], vectors, i) for i in range(part.start, part.stop)]
        with self._calling("write") as client:
            client.upsert(self._name, points, wait=True)

    def _nearest(
        self, representation: Representation, vector: Any, limit: int, condition: models.Filter | None
    ) -> list[models.ScoredPoint]:
        with self._calling("search") as client:
            return client.query_points(
                self._name, vector, using=representation, limit=limit, query_filter=condition, with_payload=["id"]
            ).points

    def _exact(self, asked: Mapping[Representation, Any], points: list[str]) -> list[list[models.ScoredPoint]]:
        only = models.Filter(must=[models.HasIdCondition(has_id=[*points])])
        exact = models.SearchParams(exact=True)
        requests = [
            models.QueryRequest(query=vector, using=name, filter=only, limit=len(points), params=exact)
            for name, vector in asked.items()
        ]
        with self._calling("score") as client:
            return [answer.points for answer in client.query_batch_points(self._name, requests)]

    def _known(self, points: list[str]) -> Set[str]:
        with self._calling("read") as client:
            found = client.retrieve(self._name, points, with_payload=False, with_vectors=False)
        return {str(record.id) for record in found}

    def _retrieve(self, points: list[str], names: list[Representation]) -> list[models.Record]:
        with self._calling("read") as client:
            return client.retrieve(self._name, points, with_payload=True, with_vectors=[*names] or False)

    def _page(self, condition: models.Filter | None, limit: int, offset: Offset) -> tuple[list[models.Record], Offset]:
        with self._calling("read") as client:
            return client.scroll(self._name, scroll_filter=condition, limit=limit, offset=offset, with_payload=True)

    def _count(self, condition: models.Filter | None) -> int:
        with self._calling("count") as client:
            return client.count(self._name, count_filter=condition, exact=True).count


def _create_indexes(client: QdrantClient, name: str) -> None:
    for field in INDEXED_FIELDS:
        client.create_payload_index(name, field, field_schema=models.PayloadSchemaType.KEYWORD, wait=True)


def _read_manifest(name: str, metadata: Mapping[str, Any]) -> Manifest:
    if MANIFEST_KEY not in metadata:
        raise StoreError(
            f"collection {name!r} has no manifest: another program made it, or the server is older than 1.16. "
            "Choose another name, or upgrade the server"
        )
    return manifest_of(name, metadata[MANIFEST_KEY])

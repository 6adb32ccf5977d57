"""The other cluster store: Milvus (standalone, cluster, Zilliz Cloud), through pymilvus (extra `milvus`).

Dense and sparse vectors are searched by Milvus. Token vectors are kept as bytes, in pieces of text in a second
collection (see `milvus_words`), and scored here: arrays of vectors in a row need a server of 2.6.4, must have an index
of every token, hold 4,096 of them, and Milvus Lite drops them in silence. So one way serves every server, the storage
is that of the manifest (float16, int8, int4), and the score is exact. It has a price: whatever is scored by token
vectors travels to us, 4/3 of its bytes. For a search that is its candidates; `search("multi", ..)`, which has none,
reads the whole collection, a page at a time.

A chunk is replaced by writing its new pieces under names of their own, then its row, which names them, then, some
seconds later, for others may just have read the old row, deleting the old pieces. A process that is killed in between
leaves the old chunk or the new one, never a mix, and perhaps pieces that no row names; `optimize` deletes those. Writes
are durable when the server answers; to Milvus Lite, which by itself does not write to the disk then, we say so.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from threefold.config import Filter, Manifest
from threefold.errors import InputError, MissingExtraError, StoreCorruptError, StoreError
from threefold.store.check import batches, check_search
from threefold.store.export import export
from threefold.store.filters import translate
from threefold.store.payload import point_id
from threefold.store.points import Offset, PointStore, manifest_of, named_manifest, refuse_unknown
from threefold.store.protocol import Scored
from threefold.store.ties import MOST_EXTRA
from threefold.types import Encoded, Representation

if TYPE_CHECKING:
    from pymilvus import MilvusClient

try:
    from threefold.store import milvus_words as words
    from threefold.store.milvus_connection import Connection, connect, milvus_errors
    from threefold.store.milvus_reader import READ_ROWS, TIMEOUT_S, Found, Reader, fields_of, said
except ImportError as _error:
    if _error.name is None or _error.name.partition(".")[0] not in ("pymilvus", "grpc"):
        raise
    raise MissingExtraError("pymilvus", "milvus", "a Milvus cluster") from None

__all__ = ["MilvusStore", "connect", "exists"]

#: Kept in the manifest: how token vectors are stored here, should there be another way one day.
ENGINE = "milvus, token vectors as bytes"

#: Raw bytes of vectors per write, and bytes per call: the server takes 64 MB.
WRITE_BYTES, SEND_BYTES = 32 * 2**20, 32 * 2**20

#: Ids per call of delete.
DROP_IDS = 1_000

#: Most results of one search (a limit of Milvus); beyond it, the collection is read.
MOST_FOUND = 16_384

#: Candidates that the search of the graph keeps, as in the embedded engine.
HNSW_EF = 128

#: Pieces that were replaced are kept for those who have read their row, and want them now.
GRACE_S = 10.0

#: Pieces without a row are of an interrupted write, once it cannot be under way any more.
SWEEP_AFTER_S = 3_600

LOAD_TIMEOUT_S = 600.0

#: The keys of the manifest, and of the name of a collection, in the properties of the two collections.
MANIFEST_KEY, PARTS_KEY = "threefold.manifest", "threefold.parts_of"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}", re.ASCII)


def exists(connection: Connection, name: str) -> bool:
    """Whether the server has a collection of this name."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"collection {name!r}: Milvus takes names of up to 200 letters, digits and _, not beginning with a digit. "
            "Choose another name"
        )
    with milvus_errors(f"ask for collection {name!r}"):
        return bool(connection.client.has_collection(name, timeout=TIMEOUT_S))


class MilvusStore(PointStore[words.Condition]):
    """A collection on a server, or in a file of Milvus Lite. The connection may be shared; `close` closes it."""

    _words = words.MilvusWords()
    _vector = staticmethod(words.milvus_vector)

    def __init__(self, connection: Connection, name: str, manifest: Manifest) -> None:
        """Use `create` or `open`."""
        super().__init__(manifest)
        self._connection: Connection | None = connection
        self._local = connection.local
        self._name = name
        self._parts = words.parts_name(name)
        self._reader = Reader(manifest, name, self._calling)
        self._replaced: deque[tuple[float, list[str]]] = deque()  # pieces, and when, by the clock that only rises
        self._forgetting = threading.Lock()

    @classmethod
    def create(cls, connection: Connection, name: str, manifest: Manifest) -> Self:
        """A new, empty collection. A name that is taken is refused."""
        manifest = named_manifest(manifest, ENGINE, name)
        if exists(connection, name):
            raise StoreError(f"collection {name!r} exists on this server. Open it, or choose another name")
        with milvus_errors(f"create collection {name!r}"):
            _create_parts(connection, name)
            properties = {MANIFEST_KEY: json.dumps(manifest.to_dict())}
            _create(connection.client, name, words.rows_schema(manifest), properties)
        return cls.open(connection, name)

    @classmethod
    def open(cls, connection: Connection, name: str) -> Self:
        """An existing collection. Compare its `manifest` with `threefold.store.folder.check_model`."""
        if not exists(connection, name):
            raise StoreError(f"no collection {name!r} on this server. Create it, or correct the name")
        with milvus_errors(f"open collection {name!r}"):
            manifest = _read_manifest(connection.client, name)
            local, own = connection.local, _own(connection.client)
            _load(connection.client, words.parts_name(name), words.parts_indexes(local=local, own=own))
            _load(connection.client, name, words.rows_indexes(manifest, local=local))
        return cls(connection, name, manifest)

    def search(
        self, representation: Representation, query: Encoded, k: int, where: Filter | None = None
    ) -> list[Scored]:
        if representation != "multi" and k + MOST_EXTRA <= MOST_FOUND:
            return super().search(representation, query, k, where)
        check_search(self._manifest, query, representation, k)
        return self._reader.scan(
            representation, words.milvus_vector(representation, query, 0), k, self._condition(where)
        )

    def delete(self, where: Filter) -> int:
        count = 0
        with self._changing():
            for rows in self._reader.pages(translate(where, self._words), READ_ROWS, words.PLACE_FIELDS):
                with self._calling("delete") as client:
                    _drop(client, self._name, [row["point"] for row in rows])
                    _drop(client, self._parts, [name for row in rows for name in words.piece_names(row, "xt")])
                count += len(rows)
        return count

    def optimize(self) -> None:
        """Delete what interrupted writes left. The server builds its indexes by itself, in the background."""
        before_ms = time.time_ns() // 1_000_000 - 1_000 * SWEEP_AFTER_S
        with self._changing():
            for pieces in self._reader.pages(None, DROP_IDS, ["part"], self._parts):
                names = [piece["part"] for piece in pieces]
                old = {words.version_of(name) for name in names if words.written_ms(name) < before_ms}
                with self._calling("clean up") as client:
                    alive = _alive(client, self._name, sorted(old))
                    _drop(client, self._parts, [one for one in names if words.version_of(one) in old - alive])

    def snapshot(self, target: Path) -> None:
        """Write the collection to a folder, as one of the embedded engine.

        Chunks that others change meanwhile may be in it or not. Backups of the server itself are its own matter.
        """
        self._require_open()
        export(self, target)

    def close(self) -> None:
        """Close the connection; closing again does nothing."""
        if self._connection is not None:
            with suppress(StoreError):  # of a server that is gone; `optimize` deletes them one day
                self._forget_replaced(0.0)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # ---- what `PointStore` asks for ------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._require_open()
        yield
        self._forget_replaced(GRACE_S)
        if self._local:  # a server has written it to its log when it answers, and counts the calls of flush
            with self._calling("flush") as client:
                for name in (self._parts, self._name):
                    client.flush(name, timeout=TIMEOUT_S)

    def _check(self, payloads: Sequence[Mapping[str, Any]]) -> None:
        for payload in payloads:
            words.check_fits(payload)

    def _part_bytes(self) -> int:
        return WRITE_BYTES

    def _write(self, part: slice, payloads: list[dict[str, Any]], vectors: Encoded, size_bytes: int) -> None:
        stamp = f"{time.time_ns() // 1_000_000:x}-{uuid4().hex[:12]}"
        new = [
            words.to_row(self._manifest, payloads[i], vectors, i, f"{stamp}-{i}") for i in range(part.start, part.stop)
        ]
        old = self._reader.rows([one.row["point"] for one in new], words.PLACE_FIELDS)
        with self._calling("write") as client:
            _send(client, self._parts, [words.piece_row(*item) for one in new for item in one.pieces.items()])
            _send(client, self._name, [one.row for one in new])
        self._replaced.append((time.monotonic(), [name for row in old for name in words.piece_names(row, "xt")]))

    def _forget_replaced(self, age_s: float) -> None:
        """Delete the pieces that were replaced so long ago."""
        with self._forgetting:
            while self._replaced and time.monotonic() - self._replaced[0][0] >= age_s:
                with self._calling("delete") as client:
                    _drop(client, self._parts, self._replaced[0][1])
                self._replaced.popleft()

    def _nearest(
        self, representation: Representation, vector: Any, limit: int, condition: words.Condition | None
    ) -> list[Found]:
        with self._calling("search") as client:
            graph = representation == "dense" and not self._local and _own(client)
            (hits,) = client.search(
                self._name,
                data=[vector],
                anns_field=representation,
                limit=min(limit, MOST_FOUND),
                filter=said(condition),
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": {"ef": max(HNSW_EF, 2 * limit)} if graph else {}},
                timeout=TIMEOUT_S,
            )
        found = [Found(point_id(hit["entity"]["id"]), hit["entity"], hit["distance"]) for hit in hits]
        return [one for one in found if one.score > 0] if representation == "sparse" else found

    def _exact(self, asked: Mapping[Representation, Any], points: list[str]) -> list[list[Found]]:
        scored: dict[Representation, list[Found]] = {name: [] for name in asked}
        for start in range(0, len(points), READ_ROWS):
            rows = self._reader.rows(points[start : start + READ_ROWS], fields_of([*asked], payload=False))
            for some in self._reader.whole(rows, [*asked], payload=False):
                for name, vector in asked.items():
                    scores = self._reader.scores(name, vector, some) * _tokens(name, vector)  # a sum, as of an engine
                    scored[name] += [one._replace(score=float(scores[i])) for i, one in enumerate(some)]
        return [*scored.values()]

    def _scored(
        self, asked: Mapping[Representation, Any], ids: Sequence[str], points: list[str]
    ) -> Sequence[Sequence[Found]]:
        if not asked:
            return super()._scored(asked, ids, points)
        answers = self._exact(asked, points)  # of every point that is there: one wait less for the server
        refuse_unknown(ids, points, {one.id for one in answers[0]})
        return answers

    def _known(self, points: list[str]) -> Set[str]:
        return {row["point"] for row in self._reader.rows(points, ["point"])}

    def _retrieve(self, points: list[str], names: list[Representation]) -> list[Found]:
        rows = self._reader.rows(points, fields_of(names, payload=True))
        return [one for some in self._reader.whole(rows, names, payload=True) for one in some]

    def _page(self, condition: words.Condition | None, limit: int, offset: Offset) -> tuple[list[Found], Offset]:
        pages = offset or self._reader.pages(condition, min(limit, READ_ROWS), fields_of([], payload=True))
        rows = next(pages, None)
        if rows is None:
            return [], None
        return [one for some in self._reader.whole(rows, [], payload=True) for one in some], pages

    def _count(self, condition: words.Condition | None) -> int:
        with self._calling("count") as client:
            answer = client.query(self._name, filter=said(condition), output_fields=["count(*)"], timeout=TIMEOUT_S)
        return int(answer[0]["count(*)"])

    @contextmanager
    def _calling(self, action: str) -> Iterator[MilvusClient]:
        client = self._require_open().client
        with milvus_errors(f"{action} in collection {self._name!r}"):
            yield client

    def _require_open(self) -> Connection:
        if self._connection is None:
            raise StoreError(f"collection {self._name!r} is closed. Open it again")
        return self._connection


def _tokens(representation: Representation, vector: Any) -> int:
    return len(vector) if representation == "multi" else 1


# ---- the server --------------------------------------------------------------------------------------------


def _create_parts(connection: Connection, name: str) -> None:
    """The collection of pieces comes first, so that a collection is there only when it is whole."""
    client, parts = connection.client, words.parts_name(name)
    if client.has_collection(parts, timeout=TIMEOUT_S):  # of a creation that was interrupted, or of somebody else
        if PARTS_KEY not in _properties(client, parts):
            raise StoreError(f"collection {parts!r} exists and is not ours. Choose another name than {name!r}")
        return
    properties = {PARTS_KEY: name}
    if _own(client) and not connection.local:
        properties["mmap.enabled"] = "true"  # on the disk of the server: in its memory, pieces would be most of it
    _create(client, parts, words.parts_schema(), properties)


def _create(client: MilvusClient, collection: str, schema: Any, properties: Mapping[str, str]) -> None:
    """Without indexes: `_load` makes those, also after a creation that was interrupted."""
    client.create_collection(
        collection, schema=schema, consistency_level="Strong", properties={**properties}, timeout=TIMEOUT_S
    )


def _load(client: MilvusClient, collection: str, indexes: Any) -> None:
    """Milvus searches only what is loaded; a server that was restarted has done it, Milvus Lite has not."""
    there = client.list_indexes(collection, timeout=TIMEOUT_S)
    for index in indexes:
        if index.index_name not in there:
            one = client.prepare_index_params()
            one.append(index)
            client.create_index(collection, one, timeout=TIMEOUT_S)
    state = client.get_load_state(collection, timeout=TIMEOUT_S)["state"]
    if getattr(state, "name", str(state)) != "Loaded":
        client.load_collection(collection, timeout=LOAD_TIMEOUT_S)


def _properties(client: MilvusClient, collection: str) -> Mapping[str, Any]:
    return client.describe_collection(collection, timeout=TIMEOUT_S).get("properties") or {}


def _own(client: MilvusClient) -> bool:
    """Whether this is no server of Zilliz Cloud, which has settings of its own."""
    return bool(client.is_self_hosted)


def _read_manifest(client: MilvusClient, name: str) -> Manifest:
    properties = _properties(client, name)
    if MANIFEST_KEY not in properties:
        raise StoreError(f"collection {name!r} has no manifest: another program made it. Choose another name")
    try:
        data = json.loads(properties[MANIFEST_KEY])
    except ValueError as error:
        raise StoreCorruptError(
            f"collection {name!r}: damaged manifest ({error}). Build the collection again"
        ) from None
    return manifest_of(name, data)


def _send(client: MilvusClient, collection: str, rows: Sequence[dict[str, Any]]) -> None:
    for part in batches([words.sent_bytes(row) for row in rows], SEND_BYTES):
        client.upsert(collection, list(rows[part]), timeout=TIMEOUT_S)


def _drop(client: MilvusClient, collection: str, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), DROP_IDS):
        client.delete(collection, ids=list(keys[start : start + DROP_IDS]), timeout=TIMEOUT_S)


def _alive(client: MilvusClient, collection: str, versions: Sequence[str]) -> set[str]:
    """Those of the versions that a row has."""
    if not versions:
        return set()
    said = words.one_of("version", versions)
    return {
        row["version"] for row in client.query(collection, filter=said, output_fields=["version"], timeout=TIMEOUT_S)
    }

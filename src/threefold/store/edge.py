"""The embedded store: Qdrant's segment engine in this process, on a folder of a local disk.

Dense search is exact until `optimize()` has built the graph (worth it from about 50,000 chunks), sparse and
multi are always exact. The engine holds the interpreter's lock while it works, so threads of one process search
one after the other; for more, serve from several machines with a cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from qdrant_edge import (
    CountRequest,
    EdgeShard,
    HasIdCondition,
    PayloadSchemaType,
    Point,
    Query,
    QueryRequest,
    Record,
    ScoredPoint,
    ScrollRequest,
    SearchParams,
    UpdateOperation,
)
from qdrant_edge import Filter as EdgeFilter

from threefold.config import Filter, Manifest
from threefold.errors import StoreCorruptError, StoreError
from threefold.store import compact, redo
from threefold.store import folder as files
from threefold.store.check import stored
from threefold.store.edge_words import EdgeWords, edge_config, edge_point, edge_vector
from threefold.store.filters import translate
from threefold.store.lock import FolderLock
from threefold.store.payload import INDEXED_FIELDS, point_id
from threefold.store.points import Offset, PointStore, named_manifest
from threefold.types import Encoded, Floats, Representation

#: The write-ahead log holds raw vectors until they are flushed: more than this is written in several parts.
BATCH_BYTES = 16 * 2**20

#: Disk that a write may take, as a multiple of its raw bytes: the log, the vectors, the copy in the index.
_WRITE_AMPLIFICATION = 4

#: Candidates that the search of the graph keeps; recall@10 is 0.999 on 100,000 vectors of 1,024 dimensions.
HNSW_EF = 128

_ENGINE = f"qdrant-edge-py {version('qdrant-edge-py')}"


@contextmanager
def engine_errors(folder: Path, action: str) -> Iterator[None]:
    """The engine raises bare Exception, and panics as PanicException; both become StoreError."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise StoreError(
            f"{folder}: the engine could not {action}: {error}. Nothing that was acknowledged is lost. "
            "Check the disk (space, permissions, is it local?) and repeat the call"
        ) from error


class EdgeStore(PointStore[EdgeFilter]):
    """A collection in a folder, for one process at a time and any number of its threads."""

    _words = EdgeWords()
    _vector = staticmethod(edge_vector)

    def __init__(
        self, folder: Path, manifest: Manifest, lock: FolderLock, shard: EdgeShard, *, counted: bool = False
    ) -> None:
        """Use `create` or `open`."""
        super().__init__(manifest)
        self._counted = counted  # closed.json is there and right
        self._failed = False  # a change failed; the engine may repeat it when the shard is opened
        self._folder = folder
        self._lock = lock
        self._shard: EdgeShard | None = shard
        self._reading = threading.RLock()  # around every call of the shard
        self._writing = threading.RLock()  # around every change, and all of optimize(); taken before _reading

    @classmethod
    def create(cls, folder: Path | str, manifest: Manifest) -> Self:
        """A new, empty collection. A folder that already has one is refused."""
        folder = Path(folder)
        manifest = named_manifest(manifest, _ENGINE, folder)
        with files.file_errors(folder, "create the collection"):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder)
        try:
            return cls(folder, manifest, lock, _create_shard(folder, manifest))
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """An existing collection. Compare its `manifest` with `threefold.store.folder.check_model`."""
        folder = Path(folder)
        with files.file_errors(folder, "open the collection"):
            files.read_manifest(folder)  # says that there is nothing here before a lock file is made
            lock = FolderLock(folder)
            try:
                manifest = files.read_manifest(folder)
                files.check_space(folder, 0)
                files.recover_shard(folder)
                shard = _load_shard(folder, manifest)
                try:
                    counted = files.check_closed(folder, _count(shard, None)) and not files.redo_path(folder).exists()
                    _repeat(folder, manifest, shard)
                except BaseException:
                    shard.close()
                    raise
                files.drop_leftovers(folder)
            except BaseException:
                lock.release()
                raise
        return cls(folder, manifest, lock, shard, counted=counted)

    def delete(self, where: Filter) -> int:
        condition = translate(where, self._words)
        with self._writing:
            count = self._count(condition)
            if count:
                self._change([UpdateOperation.delete_points_by_filter(condition)], "delete", 0)
            return count

    def score(self, query: Encoded, ids: Sequence[str]) -> Mapping[Representation, Floats]:
        with self._reading:  # nothing changes between looking for the chunks and scoring them
            return super().score(query, ids)

    def optimize(self) -> None:
        """Build the graph of the dense vectors and merge segments. Searches go on meanwhile, changes wait.

        The engine would hold the interpreter's lock to the end, so a child process works on a copy (needs the
        size of the collection on disk again), which then takes the place of the shard. A process killed at any
        moment finds the old shard or the new one.
        """
        with self._writing, files.file_errors(self._folder, "optimize"):
            self._copy_shard(files.copy_path(self._folder))
            _compact(self._folder, self._lock)
            with self._reading:
                self._take_copy()
            files.drop_leftovers(self._folder)

    def snapshot(self, target: Path) -> None:
        """A copy in a new folder, complete once `target` has a manifest. Changes wait meanwhile."""
        target = Path(target)
        with self._writing, files.file_errors(target, "write the snapshot"):
            self._require_open()
            if target.exists() and any(target.iterdir()):
                raise StoreError(f"{target}: not empty. Give a snapshot a folder of its own")
            target.mkdir(parents=True, exist_ok=True)
            self._copy_shard(files.shard_path(target))
            if not self._failed:
                files.write_closed(target, self._count(None))
            files.write_manifest(target, self._manifest)

    def close(self) -> None:
        """Flush and release the lock; closing again does nothing."""
        with self._writing, self._reading:
            shard, self._shard = self._shard, None
            if shard is not None:
                try:
                    with engine_errors(self._folder, "close"):
                        shard.flush()
                        chunks = _count(shard, None)
                        shard.close()
                    if not self._counted and not self._failed:
                        with suppress(OSError):  # what is in it is stored, said or not
                            files.write_closed(self._folder, chunks)
                finally:
                    self._lock.release()

    @contextmanager
    def _engine(self, action: str) -> Iterator[EdgeShard]:
        with self._reading, engine_errors(self._folder, action):
            yield self._require_open()

    def _require_open(self) -> EdgeShard:
        if self._shard is None:
            raise StoreError(f"{self._folder}: this collection is closed. Open it again")
        return self._shard

    def _changing(self) -> AbstractContextManager[object]:
        return self._writing

    def _part_bytes(self) -> int:
        return BATCH_BYTES

    def _write(self, part: slice, payloads: list[dict[str, Any]], vectors: Encoded, size_bytes: int) -> None:
        rows, texts = payloads[part], vectors.take(range(part.start, part.stop))
        points, needed = _points(self._manifest, rows, texts), _WRITE_AMPLIFICATION * size_bytes
        old = self._known([point_id(row["id"]) for row in rows]) if "multi" in stored(self._manifest) else None
        if not old:
            return self._change([UpdateOperation.upsert_points(points)], "write", needed)
        with files.file_errors(self._folder, "write"):
            files.check_space(self._folder, size_bytes)
            with files.repeated_if_killed(self._folder, lambda file: redo.save(file, rows, texts)):
                self._change(_in_place_of([*old], points), "write", needed)

    def _change(self, operations: Sequence[UpdateOperation], action: str, size_bytes: int) -> None:
        with self._engine(action) as shard, files.file_errors(self._folder, action):
            files.check_space(self._folder, size_bytes)
            if self._counted:  # from here on a kill may leave any number of chunks
                files.drop(files.closed_path(self._folder))
                self._counted = False
            try:
                _apply(shard, operations)
            except KeyboardInterrupt:  # perhaps between two of them
                _apply(shard, operations)
                raise
            except BaseException:
                self._failed = True
                raise

    def _nearest(
        self, representation: Representation, vector: Any, limit: int, condition: EdgeFilter | None
    ) -> list[ScoredPoint]:
        ask = Query.Nearest(vector, using=representation)
        params = SearchParams(hnsw_ef=max(HNSW_EF, 2 * limit)) if representation == "dense" else None
        request = QueryRequest(limit=limit, query=ask, filter=condition, params=params, with_payload=["id"])
        with self._engine("search") as shard:
            return shard.query(request)

    def _exact(self, asked: Mapping[Representation, Any], points: list[str]) -> list[list[ScoredPoint]]:
        only, exact = _these(points), SearchParams(exact=True)
        requests = [
            QueryRequest(limit=len(points), query=Query.Nearest(vector, using=name), filter=only, params=exact)
            for name, vector in asked.items()
        ]
        with self._engine("score") as shard:
            return [shard.query(request) for request in requests]

    def _known(self, points: list[str]) -> Set[str]:
        given = set(points)
        with self._engine("read") as shard:
            if shard.count(CountRequest(exact=True, filter=_these(points))) == len(given):  # reads no point
                return given
            return {str(record.id) for record in shard.retrieve([*points], False, False)}

    def _retrieve(self, points: list[str], names: list[Representation]) -> list[Record]:
        with self._engine("read") as shard:
            return shard.retrieve([*points], True, [*names] or False)

    def _page(self, condition: EdgeFilter | None, limit: int, offset: Offset) -> tuple[list[Record], Offset]:
        request = ScrollRequest(offset=offset, limit=limit, filter=condition, with_payload=True)
        with self._engine("read") as shard:
            return shard.scroll(request)

    def _count(self, condition: EdgeFilter | None) -> int:
        with self._engine("count") as shard:
            return _count(shard, condition)

    def _copy_shard(self, target: Path) -> None:
        """A consistent copy: flushed, with writers waiting. A leftover of an interrupted copy is replaced."""
        with self._engine("flush") as shard:
            shard.flush()
        source = files.shard_path(self._folder)
        if target == files.copy_path(self._folder):
            files.drop_leftovers(self._folder)
        files.check_space(target.parent, 2 * files.size_bytes(source))
        files.copy_folder(source, target)

    def _take_copy(self) -> None:
        """Swap, and go back to the old shard should the new one not open."""
        self._require_open().close()
        files.swap_shard(self._folder)
        try:
            self._shard = _load_shard(self._folder, self._manifest)
        except StoreError:
            files.unswap_shard(self._folder)
            self._shard = _load_shard(self._folder, self._manifest)
            raise


def _create_shard(folder: Path, manifest: Manifest) -> EdgeShard:
    shard_folder = files.shard_path(folder)
    with files.file_errors(folder, "create the collection"):
        if files.manifest_path(folder).exists():
            raise StoreError(f"{folder}: there is a collection already. Open it, or choose another folder")
        if shard_folder.exists():
            raise StoreCorruptError(
                f"{folder}: has a shard but no manifest.json. Restore the file from a snapshot, or delete the folder"
            )
        files.check_space(folder, 0)
        files.drop_first_shard(folder)
        with engine_errors(folder, "create the collection"):
            shard = EdgeShard.create(str(files.first_path(folder)), edge_config(manifest))
            for name in INDEXED_FIELDS:
                shard.update(UpdateOperation.create_field_index(name, PayloadSchemaType.Keyword))
            shard.flush()
            shard.close()
        files.write_manifest(folder, manifest)  # from here on it is a collection; `open` would do what is left
        files.place_first_shard(folder)
    return _load_shard(folder, manifest)


def _load_shard(folder: Path, manifest: Manifest) -> EdgeShard:
    path = files.shard_path(folder)
    try:
        with engine_errors(folder, "open the shard"):
            return EdgeShard.load(str(path))
    except StoreError as error:
        raise StoreCorruptError(
            f"{path}: the engine cannot read it: {error.__cause__}. It was written by {manifest.engine}, this is "
            f"{_ENGINE}. Restore the folder from a snapshot, or delete it and add the documents again"
        ) from error


def _compact(folder: Path, lock: FolderLock) -> None:
    """Build the index of the copy. Should this process be killed, the folder stays locked until the child has ended."""
    script = str(Path(compact.__file__))
    command = [sys.executable, "-P", script, str(files.copy_path(folder)), str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=lock.handles)
    if done.returncode != 0:
        raise StoreError(
            f"{folder}: building the index failed (exit status {done.returncode}): {done.stderr.strip()[-500:]}. "
            "The collection is as it was. Check memory and disk space, then repeat"
        )


def _count(shard: EdgeShard, condition: EdgeFilter | None) -> int:
    return shard.count(CountRequest(exact=True, filter=condition))


def _apply(shard: EdgeShard, operations: Sequence[UpdateOperation]) -> None:
    for operation in operations:
        shard.update(operation)
    shard.flush()


def _in_place_of(old: list[Any], points: list[Point]) -> list[UpdateOperation]:
    """Write points where others were, which go first: see `redo`."""
    return [UpdateOperation.delete_points(old), UpdateOperation.upsert_points(points)]


def _points(manifest: Manifest, payloads: Sequence[dict[str, Any]], vectors: Encoded) -> list[Point]:
    return [edge_point(manifest, point_id(row["id"]), row, vectors, i) for i, row in enumerate(payloads)]


def _repeat(folder: Path, manifest: Manifest, shard: EdgeShard) -> None:
    """Do again what a process was killed in; see `redo`."""
    path = files.redo_path(folder)
    if path.exists():
        points = _points(manifest, *redo.load(path))
        files.drop(files.closed_path(folder))
        with engine_errors(folder, "repeat the write that was interrupted"):
            _apply(shard, _in_place_of([point.id for point in points], points))
        files.drop(path)  # it must never be done again over later changes


def _these(points: Sequence[str]) -> EdgeFilter:
    return EdgeFilter(must=[HasIdCondition(set(points))])

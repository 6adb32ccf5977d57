"""The collections of a server: one folder per namespace, one folder per collection in it, opened when first used.

    root/namespace/name

A key sees its own namespace and no other: names of others do not exist for it. Calls block; the handlers run them in
threads.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from threefold.collection import Collection
from threefold.config import Chunking, MultiStorage
from threefold.described import CollectionInfo
from threefold.errors import StoreError, UnavailableError
from threefold.serve.errors import RequestError
from threefold.serve.turns import Turns
from threefold.store.folder import file_errors, lock_path, manifest_path
from threefold.store.lock import FolderLock
from threefold.text.protocol import Reranker, TextEncoder

#: Names are folders: no separators, no dots first.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)

#: Before the name of a collection that is being deleted: no name begins like this.
_GRAVE = ".deleted-"

#: A namespace for servers without keys.
OPEN = "default"

log = logging.getLogger(__name__)


class _Opened(NamedTuple):
    """A collection, and the file that says whether its folder is still the one that was opened."""

    collection: Collection
    lock: os.stat_result

    def is_there(self, folder: Path) -> bool:
        """Whether nobody has removed the folder, or put another in its place. While we hold the lock, no other file
        gets its number.
        """
        with suppress(OSError):
            return manifest_path(folder).exists() and os.path.samestat(self.lock, lock_path(folder).stat())
        return False


class Library:
    """Collections by namespace and name."""

    def __init__(self, root: Path, encoder: TextEncoder, reranker: Reranker | None = None) -> None:
        self._root = root
        self._encoder = encoder
        self._reranker = reranker
        self._open: dict[Path, _Opened] = {}
        self._turns = Turns[Path]()  # making a collection takes half a second, in which others are searched
        self._closed = False
        for grave in root.glob(f"*/{_GRAVE}*"):  # of deletions that were interrupted
            shutil.rmtree(grave, ignore_errors=True)

    def names(self, namespace: str) -> list[str]:
        """The collections of a namespace."""
        found = (path.parent.name for path in (self._root / namespace).glob("*/manifest.json"))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def create(
        self,
        namespace: str,
        name: str,
        chunking: Chunking | None = None,
        multi_storage: MultiStorage | None = None,
        multi_pool: int | None = None,
    ) -> CollectionInfo:
        """A new collection; an existing one is refused."""
        folder = self._folder(namespace, name)
        with self._alone(folder):
            self._forget_if_gone(folder)
            if manifest_path(folder).exists():
                raise RequestError(f"the collection {name!r} exists already", status=409, param="name")
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = Collection(
                folder,
                self._encoder,
                chunking=chunking,
                multi_storage=multi_storage,
                multi_pool=multi_pool,
                reranker=self._reranker,
            )
            return self._keep(folder, made).info()

    def get(self, namespace: str, name: str) -> Collection:
        """An existing collection."""
        folder = self._folder(namespace, name)
        with self._alone(folder):
            self._forget_if_gone(folder)
            if folder in self._open:
                return self._open[folder].collection
            if not manifest_path(folder).exists():
                raise _missing(name, self.names(namespace))
            return self._keep(folder, Collection(folder, self._encoder, create=False, reranker=self._reranker))

    def delete(self, namespace: str, name: str) -> None:
        """Delete a collection and all that is in it. One that another process has open is refused."""
        folder = self._folder(namespace, name)
        with self._alone(folder):
            if not manifest_path(folder).exists():
                raise _missing(name, self.names(namespace))
            self._release(folder)
            with file_errors(folder, "delete the collection"):
                FolderLock(folder).release()  # a process that went on to add to it would lose that
                grave = folder.with_name(f"{_GRAVE}{name}-{uuid4().hex}")  # the last one may still be there
                folder.rename(grave)  # gone at once, even if deleting takes long or is interrupted
        shutil.rmtree(grave)

    def close(self) -> None:
        """Release every folder; what is being made is waited for, and nothing is opened any more."""
        self._closed = True
        working = self._turns.names()  # first: what ends now is open then
        for folder in working | set([*self._open]):
            with self._turns.of(folder):
                self._release(folder)

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        with self._turns.of(folder):
            if self._closed:
                raise UnavailableError("the server is shutting down")
            yield

    def _keep(self, folder: Path, collection: Collection) -> Collection:
        self._open[folder] = _Opened(collection, lock_path(folder).stat())
        return collection

    def _forget_if_gone(self, folder: Path) -> None:
        """What was removed, or replaced, by others than this server is not searched any longer."""
        if folder in self._open and not self._open[folder].is_there(folder):
            log.warning("%s was removed or replaced while this server had it open", folder)
            self._release(folder)

    def _release(self, folder: Path) -> None:
        """Close a collection, if it is open. One that cannot be flushed must keep no other from being closed."""
        opened = self._open.pop(folder, None)
        try:
            if opened is not None:
                opened.collection.close()
        except StoreError as error:
            log.error("%s", error)

    def _folder(self, namespace: str, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise RequestError(
                f"{name!r} is not a name for a collection: use 1 to 64 letters, digits, dash and underscore",
                param="name",
            )
        return self._root / namespace / name


def _missing(name: str, known: list[str]) -> RequestError:
    there = ", ".join(known) or "none"
    message = f"there is no collection {name!r}; there are: {there}"
    return RequestError(message, status=404, param="name", code="collection_not_found")


def plain(info: CollectionInfo) -> dict[str, Any]:
    """What a client sees of a collection."""
    found = info.to_dict()
    manifest = found.pop("manifest")
    kept = ("model", "revision", "precision", "dense_dim", "multi_dim", "multi_storage", "multi_pool", "chunking")
    return found | {key: manifest[key] for key in kept}

"""The collections of a server: one folder per namespace, one folder per collection in it, opened when first used.

    root/namespace/name

A key sees its own namespace and no other: names of others do not exist for it. Calls block; the handlers run them in
threads.
"""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

from threefold.collection import Collection, CollectionInfo
from threefold.config import Chunking, MultiStorage
from threefold.serve.errors import RequestError
from threefold.store.folder import manifest_path
from threefold.text.protocol import Reranker, TextEncoder

#: Names are folders: no separators, no dots first.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)

#: Before the name of a collection that is being deleted: no name begins like this.
_GRAVE = ".deleted-"

#: A namespace for servers without keys.
OPEN = "default"


class Library:
    """Collections by namespace and name."""

    def __init__(self, root: Path, encoder: TextEncoder, reranker: Reranker | None = None) -> None:
        self._root = root
        self._encoder = encoder
        self._reranker = reranker
        self._open: dict[Path, Collection] = {}
        self._lock = threading.Lock()
        for grave in root.glob(f"*/{_GRAVE}*"):  # of deletions that were interrupted
            shutil.rmtree(grave, ignore_errors=True)

    def names(self, namespace: str) -> list[str]:
        """The collections of a namespace."""
        found = (path.parent.name for path in (self._root / namespace).glob("*/manifest.json"))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def create(
        self, namespace: str, name: str, chunking: Chunking | None, multi_storage: MultiStorage | None
    ) -> CollectionInfo:
        """A new collection; an existing one is refused."""
        folder = self._folder(namespace, name)
        with self._lock:
            if manifest_path(folder).exists():
                raise RequestError(f"the collection {name!r} exists already", status=409, param="name")
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._open[folder] = Collection(
                folder, self._encoder, chunking=chunking, multi_storage=multi_storage, reranker=self._reranker
            )
            return self._open[folder].info()

    def get(self, namespace: str, name: str) -> Collection:
        """An existing collection."""
        folder = self._folder(namespace, name)
        with self._lock:
            if folder not in self._open:
                if not manifest_path(folder).exists():
                    raise _missing(name, self.names(namespace))
                self._open[folder] = Collection(folder, self._encoder, create=False, reranker=self._reranker)
            return self._open[folder]

    def delete(self, namespace: str, name: str) -> None:
        """Delete a collection and all that is in it."""
        folder = self._folder(namespace, name)
        with self._lock:
            if not manifest_path(folder).exists():
                raise _missing(name, self.names(namespace))
            opened = self._open.pop(folder, None)
            if opened is not None:
                opened.close()
            grave = folder.with_name(f"{_GRAVE}{name}-{uuid4().hex}")  # the last one of this name may still be there
            folder.rename(grave)  # gone at once, even if deleting takes long or is interrupted
        shutil.rmtree(grave)

    def close(self) -> None:
        """Release every folder."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

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
    kept = ("model", "revision", "precision", "dense_dim", "multi_dim", "multi_storage", "chunking")
    return found | {key: manifest[key] for key in kept}

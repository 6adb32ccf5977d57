"""Every engine of the contract, each as a way to make an empty collection."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from threefold.config import Manifest
from threefold.store.edge import EdgeStore
from threefold.store.memory import MemoryStore
from threefold.store.protocol import Store

if TYPE_CHECKING:
    from threefold.store.milvus import MilvusStore

Make = Callable[[Manifest], Store]


def _make_qdrant(manifest: Manifest) -> Store:
    client_module = pytest.importorskip("qdrant_client", reason="extra `cluster` is not installed")
    from threefold.store.qdrant import QdrantStore

    return QdrantStore.create(client_module.QdrantClient(":memory:"), "papers", manifest)


def _new_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=parent)


@pytest.fixture(scope="session")
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: on a disk, the flushes of some hundred collections take a minute."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**30
    with tempfile.TemporaryDirectory(prefix="threefold-", dir=memory if roomy else None) as folder:
        yield Path(folder)


def make_milvus(manifest: Manifest, folder: Path) -> MilvusStore:
    """An empty collection of Milvus Lite."""
    pytest.importorskip("milvus_lite", reason="extra `peers` is not installed")
    from threefold.store.milvus import MilvusStore, connect

    return MilvusStore.create(connect(f"milvus:{folder / 'papers.db'}"), "papers", manifest)


#: Milvus Lite brings 300 MB, so it is of the extra `peers`.
MILVUS = pytest.param("milvus", marks=pytest.mark.peers)


@pytest.fixture(params=["memory", "edge", "qdrant", MILVUS])
def make(request: pytest.FixtureRequest, quick_folder: Path) -> Iterator[Make]:
    """Makes empty collections of one engine, closed at the end."""
    with ExitStack() as stack:

        def build(manifest: Manifest) -> Store:
            store: Store
            if request.param == "memory":
                store = MemoryStore(manifest)
            elif request.param == "edge":
                store = EdgeStore.create(Path(stack.enter_context(_new_folder(quick_folder))), manifest)
            elif request.param == "milvus":
                store = make_milvus(manifest, Path(stack.enter_context(_new_folder(quick_folder))))
            else:
                store = _make_qdrant(manifest)
            stack.callback(store.close)
            return store

        yield build

"""Opening and creating: what is refused, and whether the message says what to do."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.store.corpus import chunks, encoded, manifest

from threefold.errors import InputError, MissingExtraError, ModelMismatchError, StoreCorruptError, StoreError
from threefold.store.check import batches
from threefold.store.edge import EdgeStore
from threefold.store.folder import check_model, manifest_path, read_manifest, shard_path, write_manifest
from threefold.store.payload import from_payload
from threefold.store.protocol import Scored
from threefold.store.ties import best


@pytest.fixture
def folder(quick_folder: Path) -> Iterator[Path]:
    """A closed collection of 4 chunks."""
    with tempfile.TemporaryDirectory(dir=quick_folder) as place:
        with EdgeStore.create(Path(place) / "c", manifest()) as store:
            store.upsert(chunks(4), encoded(4))
        yield Path(place) / "c"


def test_the_manifest_round_trips(folder: Path) -> None:
    with EdgeStore.open(folder) as store:
        assert store.manifest.model == "tiny"
        assert store.manifest.engine.startswith("qdrant-edge-py 0.9")
        assert read_manifest(folder) == store.manifest


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format_version": 1}', '{"format_version": "1"}', "\x00\x00\x00"],
    ids=repr,
)
def test_a_damaged_manifest_is_named_with_a_way_out(folder: Path, text: str) -> None:
    manifest_path(folder).write_text(text)
    with pytest.raises(StoreCorruptError, match=r"manifest.json: not a manifest .*Restore this file from a snapshot"):
        EdgeStore.open(folder)


def test_a_manifest_that_is_not_text_is_corrupt(folder: Path) -> None:
    manifest_path(folder).write_bytes(b"\xff\xfe{}")
    with pytest.raises(StoreCorruptError, match="not a manifest"):
        EdgeStore.open(folder)


def test_a_newer_format_asks_for_an_upgrade(folder: Path) -> None:
    data = json.loads(manifest_path(folder).read_text()) | {"format_version": 2, "invented": "later"}
    manifest_path(folder).write_text(json.dumps(data))
    with pytest.raises(StoreError, match=r"format 2, this one reads up to 1.*pip install --upgrade"):
        EdgeStore.open(folder)


def test_a_refused_collection_is_not_left_locked(folder: Path) -> None:
    good = manifest_path(folder).read_text()
    manifest_path(folder).write_text("{")
    with pytest.raises(StoreCorruptError):
        EdgeStore.open(folder)
    manifest_path(folder).write_text(good)
    EdgeStore.open(folder).close()


def test_an_interrupted_manifest_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(folder, manifest(model="other"))
    assert read_manifest(folder).model == "tiny"


@pytest.mark.parametrize("name", ["segment.json", "mutable_id_tracker.mappings", "edge_config.json", "open-1"])
def test_a_damaged_shard_is_named_with_a_way_out(folder: Path, name: str) -> None:
    damaged = list(shard_path(folder).rglob(name))
    assert damaged
    for path in damaged:
        path.write_bytes(b"garbage garbage")
    with pytest.raises(StoreCorruptError, match=r"shard: the engine cannot read it.*Restore the folder"):
        EdgeStore.open(folder)


def test_a_missing_shard_is_corruption_not_an_empty_collection(folder: Path) -> None:
    shard_path(folder).rename(folder / "elsewhere")
    with pytest.raises(StoreCorruptError, match="does not exist"):
        EdgeStore.open(folder)
    assert not shard_path(folder).exists()


def test_nothing_there_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no collection here .*Create it, or correct the path"):
        EdgeStore.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_create_keeps_what_is_there(folder: Path) -> None:
    with pytest.raises(StoreError, match="there is a collection already"):
        EdgeStore.create(folder, manifest())
    manifest_path(folder).unlink()
    with pytest.raises(StoreCorruptError, match=r"a shard but no manifest\.json"):
        EdgeStore.create(folder, manifest())
    with pytest.raises(StoreError, match="keeps no vectors"):
        EdgeStore.create(folder, manifest(dense_dim=0, multi_dim=0, vocab=0))


@pytest.mark.parametrize("step", ["write_manifest", "place_first_shard"])
def test_a_creation_that_was_interrupted_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "c"
    with monkeypatch.context() as patch:
        patch.setattr(f"threefold.store.folder.{step}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            EdgeStore.create(target, manifest())
    make = EdgeStore.create if step == "write_manifest" else lambda folder, _: EdgeStore.open(folder)
    with make(target, manifest()) as store:
        assert store.count() == 0
    assert sorted(path.name for path in target.iterdir() if path.is_dir()) == ["shard"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"file/c: cannot create the collection: .*may be written to"):
        EdgeStore.create(tmp_path / "file" / "c", manifest())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_folder(folder: Path) -> None:
    folder.chmod(0o555)
    (folder / "lock").unlink(missing_ok=True)
    with pytest.raises(StoreError, match="cannot open the collection: Permission denied"):
        EdgeStore.open(folder)


def test_a_snapshot_needs_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "x").touch()
    with EdgeStore.open(folder) as store, pytest.raises(StoreError, match="busy: not empty"):
        store.snapshot(tmp_path / "busy")


def test_a_stored_chunk_that_is_not_whole_is_an_error_of_the_collection() -> None:
    with pytest.raises(StoreCorruptError, match=r"not whole .*'document_id'.*Restore it from a snapshot"):
        from_payload({})


def test_another_model_is_refused_by_name() -> None:
    check_model(manifest(model="tiny", precision="float16"), manifest(model="renamed", precision="int8"))
    with pytest.raises(ModelMismatchError, match=r"built with 'tiny', not with 'large' .*model_hash 'm1' against 'm2'"):
        check_model(manifest(), manifest(model="large", model_hash="m2"))
    for change in ({"tokenizer_hash": "t2"}, {"dense_dim": 8}, {"multi_dim": 8}, {"vocab": 9}):
        with pytest.raises(ModelMismatchError, match=next(iter(change))):
            check_model(manifest(), manifest(**change))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([], []), ([5], [(0, 1)]), ([3, 3, 3], [(0, 2), (2, 3)]), ([9, 1, 9], [(0, 1), (1, 2), (2, 3)])],
)
def test_batches_keep_the_limit(sizes: list[int], expected: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in batches(sizes, 6)] == expected


def test_a_tie_at_the_border_is_followed() -> None:
    everything = [Scored(f"{i:04}", 1.0 if i < 2 else 0.5) for i in reversed(range(300))]
    everything.sort(key=lambda one: -one.score)  # the engine's own order: ties from the last id to the first
    limits = []

    def nearest(limit: int) -> list[Scored]:
        limits.append(limit)
        return everything[:limit]

    assert [one.id for one in best(nearest, 4)] == ["0000", "0001", "0002", "0003"]
    assert limits == [20, 132, 1028]
    assert [one.id for one in best(nearest, 2)] == ["0000", "0001"]
    assert limits[3:] == [18]


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    monkeypatch.delitem(sys.modules, "threefold.store.qdrant", raising=False)
    with pytest.raises(MissingExtraError, match=r'qdrant_client.*pip install "threefold\[cluster\]"'):
        importlib.import_module("threefold.store.qdrant")


def test_a_cluster_that_is_not_there_is_one_error_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("qdrant_client", reason="extra `cluster` is not installed")
    from threefold.store.qdrant import connect, exists

    before = set(threading.enumerate())
    with closing(connect("http://127.0.0.1:9")) as client:
        with pytest.raises(StoreError, match=r"could not ask for collection 'c': .*refused\. Check the url"):
            exists(client, "c")
        for thread in set(threading.enumerate()) - before:
            thread.join()
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("url", ["cuda:99", "[]", "   ", ""])
def test_what_is_no_address_of_a_cluster_is_refused(url: str) -> None:
    pytest.importorskip("qdrant_client", reason="extra `cluster` is not installed")
    from threefold.store.qdrant import connect

    with pytest.raises(InputError, match=r"(?i)write it as http://host:6333"):
        connect(url)

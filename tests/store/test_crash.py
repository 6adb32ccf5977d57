"""What a collection survives: kill -9, a second process, a full disk, and ends in the middle of things."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from tests.store.corpus import chunk, chunks, encoded, ids_of, manifest

from threefold.config import Filter
from threefold.errors import StoreCorruptError, StoreError, StoreLockedError
from threefold.store import compact, edge, redo
from threefold.store.edge import EdgeStore
from threefold.store.folder import closed_path, copy_folder, copy_path, old_path, redo_path, shard_path, size_bytes
from threefold.store.lock import FolderLock
from threefold.types import Encoded

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(quick_folder: Path) -> Iterator[Path]:
    """A closed collection of 8 chunks."""
    with tempfile.TemporaryDirectory(dir=quick_folder) as place:
        with EdgeStore.create(Path(place) / "c", manifest()) as store:
            store.upsert(chunks(8), encoded(8))
        yield Path(place) / "c"


def _start(folder: Path, job: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.store.writer", str(folder), job]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str]) -> str:
    """kill -9, and what was still to be read."""
    process.kill()
    rest, _ = process.communicate()
    return rest


@pytest.mark.parametrize("acknowledged", [1, 4, 9])
def test_kill_while_adding_loses_nothing_acknowledged(folder: Path, acknowledged: int) -> None:
    process = _start(folder, "add")
    assert process.stdout is not None
    for _ in range(acknowledged):
        process.stdout.readline()
    done = acknowledged + sum(line.endswith("\n") for line in _end(process).splitlines(keepends=True))
    assert process.returncode == -signal.SIGKILL
    with EdgeStore.open(folder) as store:
        assert len(store.fetch([f"w{i}#{part}" for i in range(done) for part in range(3)])) == 3 * done
        assert len(store.fetch(ids_of(chunks(8)))) == 8
        last = encoded(3, seed=done - 1).take([0])
        assert store.search("dense", last, 1)[0].id == f"w{done - 1}#0"
        assert store.search("multi", last, 1)[0].id == f"w{done - 1}#0"
        assert f"w{done - 1}#0" in ids_of(store.search("sparse", last, 100))


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_kill_while_replacing_is_made_good(folder: Path, call: int) -> None:
    """Before what is replaced is deleted, after it, and before the flush."""
    with EdgeStore.open(folder) as store:
        store.upsert(chunks(60), encoded(60, seed=1))
    process = _start(folder, f"replace:{call}")
    process.communicate()
    assert process.returncode == 9
    with EdgeStore.open(folder) as store:
        assert store.count() == 60
        _same_tokens(store.vectors(ids_of(chunks(60))), encoded(60, seed=2, tokens=30))
        store.upsert([chunk("more", part) for part in range(60)], encoded(60, seed=3))
        store.delete(Filter("eq", "document_id", "d0"))
    with EdgeStore.open(folder) as store:  # what was repeated once is not repeated over later changes
        assert store.count() == 60 + 60 - 4
    assert sorted(path.name for path in folder.iterdir()) == ["closed.json", "lock", "manifest.json", "shard"]


def _same_tokens(found: Encoded, wanted: Encoded) -> None:
    assert found.multi is not None
    assert wanted.multi is not None
    assert found.multi.offsets.tolist() == wanted.multi.offsets.tolist()
    np.testing.assert_allclose(found.multi.rows, wanted.multi.rows, atol=0.05)


def test_a_kill_while_half_of_the_token_vectors_have_new_places(quick_folder: Path) -> None:
    """What a kill leaves, put together by hand: the engine would give places beyond the end of its file twice."""
    with tempfile.TemporaryDirectory(dir=quick_folder) as place:
        killed, half = Path(place) / "killed", Path(place) / "half"
        with EdgeStore.create(killed, manifest("int8")) as store:
            store.upsert(chunks(60), encoded(60, seed=1))
        shutil.copytree(killed, half)
        _start(killed, "replace:3").communicate()
        with EdgeStore.open(half) as store:
            store.upsert(chunks(60)[::2], encoded(60, seed=2, tokens=30).take(range(0, 60, 2)))
        (offsets,) = half.rglob("tq_offsets")
        shutil.copytree(offsets, killed / offsets.relative_to(half), dirs_exist_ok=True)
        with EdgeStore.open(killed) as store:
            _same_tokens(store.vectors(ids_of(chunks(60))), encoded(60, seed=2, tokens=30))


class Interrupted:
    """A shard that is interrupted after its first change."""

    def __init__(self, shard: Any) -> None:
        self._shard, self._left = shard, 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)

    def update(self, operation: Any) -> None:
        self._shard.update(operation)
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


def test_an_interrupt_while_replacing_finishes_the_write(folder: Path) -> None:
    """What is replaced is deleted first: Ctrl-C between the two would lose both versions."""
    with EdgeStore.open(folder) as store:
        shard, store._shard = store._shard, Interrupted(store._shard)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            store.upsert(chunks(8), encoded(8, seed=5))
        store._shard = shard
        assert store.count() == 8
        _same_tokens(store.vectors(ids_of(chunks(8))), encoded(8, seed=5))
    assert sorted(path.name for path in folder.iterdir()) == ["closed.json", "lock", "manifest.json", "shard"]


def test_a_redo_file_that_cannot_be_written_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: BinaryIO, *_: object) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(redo, "save", fail)
    with EdgeStore.open(folder) as store:
        before = store.fetch(ids_of(chunks(8)))
        with pytest.raises(StoreError, match="cannot write: No space left"):
            store.upsert(chunks(8, "d"), encoded(8, seed=5))
        assert store.fetch(ids_of(chunks(8))) == before
    assert sorted(path.name for path in folder.iterdir()) == ["closed.json", "lock", "manifest.json", "shard"]


def test_a_damaged_redo_file_is_named(folder: Path) -> None:
    redo_path(folder).write_bytes(b"PK half")
    with pytest.raises(StoreCorruptError, match=r"redo\.npz: damaged .*delete this file"):
        EdgeStore.open(folder)
    redo_path(folder).unlink()
    EdgeStore.open(folder).close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child goes on, and holds the lock meanwhile")
def test_a_kill_during_optimize_ends_the_child_as_well(folder: Path) -> None:
    process = _start(folder, "optimize")
    while not copy_path(folder).exists():
        assert process.poll() is None
    _end(process)
    for _ in range(1000):
        with contextlib.suppress(StoreLockedError):  # for as long as the child takes to end
            EdgeStore.open(folder).close()
            break
        time.sleep(0.01)
    assert not copy_path(folder).exists()
    with EdgeStore.open(folder) as store:
        assert store.count() == 8


def test_a_child_holds_the_lock_of_its_parent(folder: Path) -> None:
    """Without it, a process that is killed leaves a child that writes where the next one works."""
    lock = FolderLock(folder)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lock.handles)
    lock.release()
    with pytest.raises(StoreLockedError):
        EdgeStore.open(folder)
    child.communicate(b"\n")
    EdgeStore.open(folder).close()


@pytest.mark.parametrize("damage", ["segments", "mutable_id_tracker.mappings", "version.info"])
def test_chunks_that_went_missing_are_not_missing_in_silence(folder: Path, damage: str) -> None:
    """As after a copy of the folder that was interrupted: the engine says nothing."""
    with EdgeStore.open(folder) as store:
        store.upsert([chunk("last")], encoded(1))  # the log has this one, and no more
    for path in list(shard_path(folder).rglob(damage)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(
        StoreCorruptError, match=r"shard: \d chunks, but 9 when the collection was closed.*closed\.json"
    ):
        EdgeStore.open(folder)
    closed_path(folder).unlink()
    EdgeStore.open(folder).close()


def test_the_number_of_chunks_is_said_while_nobody_changes_it(folder: Path, tmp_path: Path) -> None:
    with EdgeStore.open(folder) as store:
        assert closed_path(folder).exists()
        store.upsert([chunk("more")], encoded(1))
        assert not closed_path(folder).exists()
        store.snapshot(tmp_path / "copy")
    assert closed_path(folder).read_text() == closed_path(tmp_path / "copy").read_text() == '{\n  "chunks": 9\n}\n'


def test_after_a_write_that_failed_the_number_is_not_said(folder: Path) -> None:
    """The engine may repeat it when it opens the shard."""
    with EdgeStore.open(folder) as store:
        shard, store._shard = store._shard, FailingUpdate()  # type: ignore[assignment]
        with pytest.raises(StoreError, match="could not write: no space"):
            store.upsert([chunk("more")], encoded(1))
        store._shard = shard
    assert not closed_path(folder).exists()


class FailingUpdate:
    """A shard that can be asked and not changed."""

    def count(self, _: object) -> int:
        return 0

    def retrieve(self, *_: object) -> list[object]:
        return []

    def update(self, _: object) -> None:
        raise Exception("no space")  # as the engine does


def test_a_second_process_is_told_who_has_it(folder: Path) -> None:
    process = _start(folder, "hold")
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(StoreLockedError, match=rf"{folder}: another process .*\(process {process.pid}\)"):
        EdgeStore.open(folder)
    _end(process)
    EdgeStore.open(folder).close()


def test_the_same_process_twice_is_told_so(folder: Path) -> None:
    with EdgeStore.open(folder), pytest.raises(StoreLockedError, match="this process, through another store"):
        EdgeStore.open(folder)
    EdgeStore.open(folder).close()


def test_a_forgotten_store_lets_go(folder: Path) -> None:
    store = EdgeStore.open(folder)
    del store
    EdgeStore.open(folder).close()


def test_an_end_between_the_renames_of_optimize(folder: Path) -> None:
    shard_path(folder).rename(old_path(folder))
    shutil.copytree(old_path(folder), copy_path(folder))
    with EdgeStore.open(folder) as store:
        assert store.count() == 8
    assert not old_path(folder).exists()
    assert not copy_path(folder).exists()


def test_an_end_while_copying_or_tidying(folder: Path) -> None:
    copy_path(folder).mkdir()
    old_path(folder).mkdir()
    (old_path(folder) / "half").write_text("gone")
    with EdgeStore.open(folder) as store:
        assert store.count() == 8
        store.optimize()
        assert store.count() == 8
    assert sorted(path.name for path in folder.iterdir()) == ["closed.json", "lock", "manifest.json", "shard"]


def _replace_compactor(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    script = folder / "script.py"
    script.write_text(code)
    monkeypatch.setattr(compact, "__file__", str(script))


def test_a_failed_optimize_leaves_the_collection(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_compactor(monkeypatch, tmp_path, "raise SystemExit('out of memory')")
    with EdgeStore.open(folder) as store:
        with pytest.raises(StoreError, match=r"exit status 1.*out of memory.*as it was"):
            store.optimize()
        assert store.count() == 8


def test_an_index_that_does_not_open_is_not_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage = "import sys, pathlib\nfor file in pathlib.Path(sys.argv[1]).rglob('segment.json'): file.write_text('x')"
    _replace_compactor(monkeypatch, tmp_path, damage)
    with EdgeStore.open(folder) as store:
        with pytest.raises(StoreError, match="cannot read it"):
            store.optimize()
        store.upsert([chunk("more")], encoded(1))
        assert store.count() == 9
    with EdgeStore.open(folder) as store:
        assert store.count() == 9


def test_searches_go_on_during_optimize_and_changes_wait(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wait").touch()
    slow = f"import pathlib, time\nwhile pathlib.Path({str(tmp_path / 'wait')!r}).exists(): time.sleep(0.01)"
    _replace_compactor(monkeypatch, tmp_path, slow)
    with EdgeStore.open(folder) as store:
        builder = threading.Thread(target=store.optimize)
        builder.start()
        while not copy_path(folder).exists():
            assert builder.is_alive()
        writer = threading.Thread(target=store.upsert, args=([chunk("later")], encoded(1)))
        writer.start()
        assert len(store.search("dense", encoded(1), 20)) == 8
        assert builder.is_alive()
        (tmp_path / "wait").unlink()
        builder.join()
        writer.join()
        assert store.count() == 9


def test_threads_share_a_store(folder: Path) -> None:
    with EdgeStore.open(folder) as store:

        def work(number: int) -> None:
            for i in range(3):
                store.upsert([chunk(f"t{number}", i)], encoded(1, seed=i))
                store.search("dense", encoded(1, seed=number), 5)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.count() == 8 + 12


def test_a_nearly_full_disk_is_refused_before_the_engine_meets_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeStore.open(folder) as store:
        usage = shutil.disk_usage(folder)._replace(free=10 * 2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(StoreError, match=r"nearly full: 10 MiB free.* Nothing that was acknowledged is lost"):
            store.upsert([chunk("new")], encoded(1))
        with pytest.raises(StoreError, match="nearly full"):
            store.optimize()
        assert store.count() == 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 128 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can be mounted only as root; the portable test above covers the refusal")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    done = 0

    def fill() -> None:
        nonlocal done
        while True:
            store.upsert([chunk(f"w{done}", text="x" * 200_000)], encoded(1, seed=done))
            done += 1

    with EdgeStore.create(small_disk / "c", manifest()) as store:
        with pytest.raises(StoreError, match="nearly full"):
            fill()
        assert store.count() == done > 3
    shutil.copytree(small_disk / "c", tmp_path / "c")  # tmpfs gives memory to holes that are only read
    with EdgeStore.open(tmp_path / "c") as store:
        assert len(store.fetch([f"w{i}#0" for i in range(done)])) == done


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limits of file sizes")
def test_an_error_of_the_system_becomes_a_store_error(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from tests.store.corpus import manifest\n"
        "from threefold.errors import StoreError\n"
        "from threefold.store.edge import EdgeStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "try:\n"
        "    EdgeStore.create(sys.argv[1], manifest())\n"
        "except StoreError as error:\n"
        "    sys.exit(0 if 'File too large' in str(error) and sys.argv[1] in str(error) else str(error))\n"
        "sys.exit('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_call_that_fails_half_way_says_what_is_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "BATCH_BYTES", 1)  # every chunk is a part
    with EdgeStore.open(folder) as store:
        write, calls = store._write, 0

        def fail_third(*args: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise StoreError("no more")
            write(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "_write", fail_third)
        with pytest.raises(StoreError, match=r"no more \(2 of 5 chunks of this call are stored\)"):
            store.upsert(chunks(5, "part"), encoded(5))
        assert store.count() == 8 + 2


def test_a_folder_is_measured_while_files_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"x" * 10_000)
    whole = size_bytes(tmp_path)
    assert whole >= 10_000
    walk = os.walk

    def with_gone(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for place, folders, names in walk(folder):
            yield place, folders, [*names, "gone"]

    monkeypatch.setattr(os, "walk", with_gone)
    assert size_bytes(tmp_path) == whole


def test_a_copy_keeps_bytes_and_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    with (source / "inner" / "holes").open("wb") as file:
        file.write(b"start")
        file.seek(5 * 2**20)
        file.write(b"end")
        file.truncate(9 * 2**20 + 7)
    (source / "empty").touch()
    copy_folder(source, tmp_path / "copy")
    for path in ("inner/holes", "empty"):
        assert (tmp_path / "copy" / path).read_bytes() == (source / path).read_bytes()

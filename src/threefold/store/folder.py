"""A collection's folder: `manifest.json`, `shard/` (the engine's files), `closed.json` and `lock`.

Everything here survives a kill at any instruction: files are written beside their place, synced, and renamed.
Knows nothing of the engine that owns `shard/`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from threefold.config import Manifest
from threefold.errors import ConfigError, ModelMismatchError, StoreCorruptError, StoreError

#: The newest layout of a collection that this code reads and the only one that it writes.
FORMAT_VERSION = 1

#: Bytes that must stay free on the disk of a collection. The engine writes through memory maps, and on a
#: full disk the operating system ends a process that does so (SIGBUS) instead of returning an error.
RESERVE_BYTES = 64 * 2**20

_COPY_BLOCK_BYTES = 2**20
_IDENTITY = ("model_hash", "tokenizer_hash", "dense_dim", "multi_dim", "vocab")


def manifest_path(folder: Path) -> Path:
    """Where the manifest stands."""
    return folder / "manifest.json"


def shard_path(folder: Path) -> Path:
    """Where the engine keeps its files."""
    return folder / "shard"


def copy_path(folder: Path) -> Path:
    """Where a better copy of the shard is prepared."""
    return folder / "shard.new"


def old_path(folder: Path) -> Path:
    """Where the replaced shard waits until its successor has been opened."""
    return folder / "shard.old"


def first_path(folder: Path) -> Path:
    """Where the shard of a new collection is prepared; nothing was ever added to it."""
    return folder / "shard.first"


def closed_path(folder: Path) -> Path:
    """Where the number of chunks stands while nobody changes them: see `write_closed`."""
    return folder / "closed.json"


def redo_path(folder: Path) -> Path:
    """Where a write that replaces chunks is kept until it is done: see `redo`."""
    return folder / "redo.npz"


def left_by_creation(folder: Path) -> set[str]:
    """Names that may be in a folder whose creation was interrupted, and that the next creation takes over."""
    draft = _draft(manifest_path(folder))
    return {path.name for path in (draft, first_path(folder), shard_path(folder), lock_path(folder))}


def _draft(path: Path) -> Path:
    return path.with_suffix(".tmp")


def lock_path(folder: Path) -> Path:
    """The file that a process holds while it has the collection open."""
    return folder / "lock"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest atomically; a killed process leaves the old one or the new one."""
    _write_json(manifest_path(folder), manifest.to_dict())


def _write_json(path: Path, data: object) -> None:
    with _durably(path) as file:
        file.write((json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


@contextmanager
def _durably(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, durably."""
    draft = _draft(path)
    with draft.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def drop(path: Path) -> None:
    """Remove a file, if it is there, durably."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_closed(folder: Path, chunks: int) -> None:
    """Say how many chunks there are, when they are all on disk; see `check_closed`."""
    _write_json(closed_path(folder), {"chunks": chunks})


@contextmanager
def repeated_if_killed(folder: Path, save: Callable[[BinaryIO], None]) -> Iterator[None]:
    """Keep what `save` writes for as long as the block runs. After an error the caller repeats the call, not we."""
    path = redo_path(folder)
    try:
        with _durably(path) as file:
            save(file)
        yield
    finally:
        _draft(path).unlink(missing_ok=True)  # on a full disk it would be in the way
        drop(path)


def check_closed(folder: Path, chunks: int) -> bool:
    """Whether the number of chunks is known; another one is an error.

    The engine takes a segment that lacks files for one that was never finished, and removes it without a word.
    """
    path = closed_path(folder)
    try:
        closed = json.loads(path.read_text(encoding="utf-8"))["chunks"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    if closed != chunks:
        raise StoreCorruptError(
            f"{shard_path(folder)}: {chunks:,} chunks, but {closed:,} when the collection was closed: files are "
            f"missing or damaged (was it copied whole?). Copy the folder again or restore it from a snapshot; or "
            f"delete {path.name} to open what is left, and add the documents again"
        )
    return True


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a collection; damage and newer formats are errors that name the file and the way out."""
    path = manifest_path(folder)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StoreError(
                f"{path}: written by a newer threefold (format {version}, this one reads up to {FORMAT_VERSION}). "
                "Upgrade with: pip install --upgrade threefold"
            )
        return Manifest.from_dict(data)
    except (FileNotFoundError, NotADirectoryError):
        near = Path(folder.name)  # a path was meant, and a name was given
        way_out = f"There is one in a folder of this name: say ./{near}" if manifest_path(near).is_file() else ""
        raise StoreError(
            f"{folder}: no collection here ({path.name} is missing). {way_out or 'Create it, or correct the path'}"
        ) from None
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise StoreCorruptError(
            f"{path}: not a manifest ({error!r}). Restore this file from a snapshot, "
            "or delete the folder and add the documents again"
        ) from None


def check_model(stored: Manifest, current: Manifest) -> None:
    """Refuse to mix vectors of two models: both names and every field that differs are in the message."""
    differing = [name for name in _IDENTITY if getattr(stored, name) != getattr(current, name)]
    if not differing:
        return
    details = ", ".join(f"{name} {getattr(stored, name)!r} against {getattr(current, name)!r}" for name in differing)
    was, now = (f"{it.model!r}" + (f" at {it.revision}" if it.revision else "") for it in (stored, current))
    raise ModelMismatchError(
        f"the collection was built with {was}, not with {now} ({details}). "
        f"Open it with {was}, or build a new collection with {now}"
    )


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse before the disk is full; see RESERVE_BYTES."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + RESERVE_BYTES:
        raise StoreError(
            f"{folder}: the disk is nearly full: {free / 2**20:.0f} MiB free, this needs "
            f"{(needed_bytes + RESERVE_BYTES) / 2**20:.0f} MiB. Nothing that was acknowledged is lost. "
            "Free some space and repeat the call"
        )


@contextmanager
def file_errors(folder: Path, action: str) -> Iterator[None]:
    """Errors of the operating system as StoreError, with the folder and a way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "Nothing that was acknowledged is lost. Free some space and repeat the call"
        else:
            way_out = "Check that the folder exists, is on a local disk and may be written to"
        raise StoreError(f"{folder}: cannot {action}: {error.strerror or error}. {way_out}") from error


def size_bytes(folder: Path) -> int:
    """Bytes that a copy of `folder` takes; where the system tells holes in files, they count as nothing.

    What is removed meanwhile (by `optimize`) counts as nothing, too.
    """
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                one = os.stat(os.path.join(place, name))
                total += one.st_size if os.name == "nt" else one.st_blocks * 512
    return total


def copy_folder(source: Path, target: Path) -> None:
    """Copy and sync a folder. Holes stay holes: the engine reserves tens of MiB that it has not yet used."""
    target.mkdir()
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        else:
            _copy_file(path, place)
    sync_folder(target)


def _copy_file(source: Path, target: Path) -> None:
    zeros = bytes(_COPY_BLOCK_BYTES)
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_COPY_BLOCK_BYTES):
            if block == zeros[: len(block)]:
                writer.seek(len(block), os.SEEK_CUR)
            else:
                writer.write(block)
        writer.truncate(reader.tell())
        writer.flush()
        os.fsync(writer.fileno())


def swap_shard(folder: Path) -> None:
    """Put the prepared copy in the place of the shard; the old one is kept until `drop_leftovers`."""
    shard_path(folder).rename(old_path(folder))
    _place(folder, copy_path(folder))


def unswap_shard(folder: Path) -> None:
    """Undo `swap_shard`. Only before anything was written to the new shard."""
    shutil.rmtree(shard_path(folder))
    recover_shard(folder)


def drop_first_shard(folder: Path) -> None:
    """Remove what a creation left that was interrupted. It is empty."""
    if first_path(folder).exists():
        shutil.rmtree(first_path(folder))


def place_first_shard(folder: Path) -> None:
    """Put the shard of a new collection in its place, after the manifest was written."""
    _place(folder, first_path(folder))


def recover_shard(folder: Path) -> None:
    """Finish what a process left that was killed between the two renames of `swap_shard`, or in `place_first_shard`.

    A shard in its place is the one in use, whatever stands beside it.
    """
    for path in (old_path(folder), first_path(folder)):
        if path.exists() and not shard_path(folder).exists():
            _place(folder, path)


def _place(folder: Path, prepared: Path) -> None:
    prepared.rename(shard_path(folder))
    sync_folder(folder)


def drop_leftovers(folder: Path) -> None:
    """Remove what an interrupted creation or optimisation left. Call only when the shard itself is known to open."""
    for path in (old_path(folder), copy_path(folder), first_path(folder)):
        if path.exists():
            shutil.rmtree(path)

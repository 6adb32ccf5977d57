"""Texts encoded into a folder of Parquet files, each written whole; a job that was stopped goes on where it was.

    folder/part-000000.parquet ...  of `write_parquet`, so many texts each, in the order of the input
    folder/_job/job.json            the model and the settings, and the totals when all is done
    folder/_job/lock                held by the process that runs the job

A file that is there is finished: it was renamed into its place when it was complete, and its metadata says which rows
it has. `_job` begins with an underscore, as readers of folders of Parquet files want it to pass over something.
Knows neither how rows are read nor who encodes a part.

    with Job(folder, order, encoder.card) as job:
        for part in job.missing(rows):
            job.add(part, write_part(job.path(part.number), part, order, encoder))
        job.finish()
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from threefold.characters import clean
from threefold.errors import InputError, StoreLockedError
from threefold.replacing import replacing
from threefold.shards import Progress, Written, read_written, write_parquet
from threefold.store.lock import FolderLock
from threefold.text.protocol import ModelCard, TextEncoder
from threefold.text.tokenizer import Truncate
from threefold.types import Representation

#: Texts of a file: what a kill costs at most, per process; a multiple of what `write_parquet` encodes at a time.
TEXTS_PER_FILE: Final = 4_096
#: The newest layout of `job.json`.
FORMAT_VERSION: Final = 1

_MODEL = ("hash", "tokenizer_hash", "dense_dim", "multi_dim", "vocab", "precision")


class Order(NamedTuple):
    """What a job was asked for; the same for all of its files.

    texts       of a file
    outputs     None: every representation that the model has
    max_tokens  None: the longest that the model reads
    """

    texts: int = TEXTS_PER_FILE
    outputs: tuple[Representation, ...] | None = None
    max_tokens: int | None = None
    truncate: Truncate = "end"


class Part(NamedTuple):
    """The rows of one file."""

    number: int
    rows: list[tuple[str, str]]

    @property
    def digest(self) -> str:
        """Fingerprint of the rows, as the file will hold them."""
        digest = hashlib.sha256()
        for field in (field for row in self.rows for field in row):
            data = clean(field).encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()[:32]


def write_part(path: Path, part: Part, order: Order, encoder: TextEncoder, progress: Progress | None = None) -> Written:
    """Encode one part into its file."""
    return write_parquet(
        path,
        part.rows,
        encoder,
        outputs=order.outputs,
        max_tokens=order.max_tokens,
        truncate=order.truncate,
        progress=progress,
        source=part.digest,
    )


class Job:
    """A folder that is being filled. A context manager; nobody else may fill it meanwhile.

    card  of the model that encodes; another one, or another order, than the job was begun with is refused
    """

    def __init__(self, folder: Path, order: Order, card: ModelCard) -> None:
        self.folder, self.order, self.card = folder, order, card
        self.done = Written(0, 0, 0)  # in all files so far
        self.found = Written(0, 0, 0)  # of these, in files that were there before
        self._files = 0
        _prepare(folder)
        self._lock = _locked(folder)
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise

    def path(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:06}.parquet"

    def missing(self, rows: Iterable[tuple[str, str]]) -> Iterator[Part]:
        """The parts of these rows that are not written yet. Rows that differ from those of a file are refused."""
        stream = iter(rows)
        for number in count():
            part = Part(number, list(islice(stream, self.order.texts)))
            if not part.rows:
                return
            self._files += 1
            path = self.path(number)
            if not path.exists():
                yield part
                continue
            written, source = read_written(path)
            if source != part.digest:
                raise InputError(
                    f"{path} was made of other rows than the input has there now: it was changed, or is another one. "
                    "Choose another folder, or delete this one to begin again"
                )
            self.found = self.found.plus(written)
            self.done = self.done.plus(written)

    def add(self, part: Part, written: Written) -> None:
        """A part is in its file."""
        if written.texts != len(part.rows):
            raise InputError(f"{self.path(part.number)} has {written.texts} texts of {len(part.rows)}; encode again")
        self.done = self.done.plus(written)

    def finish(self) -> None:
        """All parts of all rows are there: say so in `job.json`."""
        more = sorted(self.folder.glob("part-*.parquet"))[self._files :]
        if more:
            raise InputError(
                f"{more[-1]} is there, but the input ends before it: it was shortened, or is another one. "
                "Choose another folder, or delete this one to begin again"
            )
        self._say({"files": self._files, **self.done._asdict()})

    @property
    def files(self) -> int:
        """Files that the rows seen so far have."""
        return self._files

    def close(self) -> None:
        """Let others work here. Drafts of processes that were stopped are removed."""
        _sweep(self.folder)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- inside --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        _sweep(self.folder)
        begun = read_job(self.folder) if any(self.folder.glob("part-*.parquet")) else None  # else nothing to fit to
        for name, was, now in _differences(begun, self._settings()) if begun else ():
            raise InputError(
                f"{self.folder} was begun with {name} {was!r}, not {now!r}. Go on with the same, choose another "
                "folder, or delete this one to begin again"
            )
        self._say(None)

    def _settings(self) -> dict[str, Any]:
        order = self.order
        return {
            "format_version": FORMAT_VERSION,
            "texts_per_file": order.texts,
            "outputs": list(order.outputs or self.card.representations),
            "max_tokens": order.max_tokens or self.card.max_tokens,
            "truncate": order.truncate,
            "model": dataclasses.asdict(self.card),
        }

    def _say(self, done: dict[str, int] | None) -> None:
        path = _file(self.folder)
        try:
            with replacing(path) as draft:
                text = json.dumps(self._settings() | {"done": done}, indent=2, ensure_ascii=False)
                draft.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error}") from error


def read_job(folder: Path) -> dict[str, Any] | None:
    """`job.json`, or None where no job was begun. `done` in it has the totals, None: not all is written."""
    path = _file(folder)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, texts = found["format_version"], found["texts_per_file"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error!r}); delete {folder} to begin again") from error
    if version != FORMAT_VERSION or not isinstance(texts, int) or texts < 1:
        raise InputError(f"{path} is of another version of threefold (format {version}); choose another folder")
    return dict(found)


def _differences(begun: dict[str, Any], ours: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What may not differ between the runs of a job and does: its name, what it was, what it is."""
    was, now = begun.get("model"), ours["model"]
    for name in _MODEL:
        old = was.get(name) if isinstance(was, dict) else None
        if old != now[name]:
            yield f"a model of the {name.replace('_', ' ')}", old, now[name]
    for name in ("texts_per_file", "outputs", "max_tokens", "truncate"):
        if begun.get(name) != ours[name]:
            yield name, begun.get(name), ours[name]


def _file(folder: Path) -> Path:
    return folder / "_job" / "job.json"


def _prepare(folder: Path) -> None:
    """An empty folder, or one of a job: the files of others are not mixed with ours."""
    try:
        if folder.is_dir() and not _file(folder).parent.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} holds other files; give a new folder, an empty one, or one of an earlier run")
        _file(folder).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error}") from error


def _locked(folder: Path) -> FolderLock:
    try:
        return FolderLock(_file(folder).parent)
    except StoreLockedError:
        raise InputError(
            f"{folder}: another run writes into this folder; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error}") from error


def _sweep(folder: Path) -> None:
    """Remove the drafts of processes that were killed; called with the lock."""
    for draft in folder.glob(".*.part-*.parquet"):
        draft.unlink(missing_ok=True)

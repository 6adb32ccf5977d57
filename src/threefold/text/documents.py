"""Files -> documents. What cannot be read is a `Skipped` with the reason, and the job goes on.

The id of a document is the path of its file relative to the folder that was given, with `/`; a row of a csv, tsv,
jsonl or json file adds `:` and its field `id`, or its number from 1. The source is the absolute path.
Knows files; knows neither tokens nor models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from threefold.characters import clean, clean_value
from threefold.config import Settings
from threefold.errors import DocumentError, InputError, ThreefoldError
from threefold.text.borders import title_of
from threefold.text.decode import SNIFF_BYTES, decode, is_binary
from threefold.text.ignored import Ignored
from threefold.text.notebooks import NOTEBOOK_SUFFIX, read_notebook
from threefold.text.rich import HTML_SUFFIXES, OFFICE_SUFFIXES, read_html, read_office
from threefold.text.rows import ROW_SUFFIXES, BadRow, read_rows, scalar
from threefold.types import Document

#: Folders of tools, never of documents. Hidden files and folders are left out as well.
IGNORED_FOLDERS = frozenset({"node_modules", "__pycache__"})

_MARKDOWN_SUFFIXES = (".md", ".markdown")


@dataclass(frozen=True, slots=True)
class Loading(Settings):
    """Which fields of a record (csv, tsv, jsonl, json) are what; every other field becomes metadata.

    ignored  read what a `.gitignore` leaves out, too
    """

    text_field: str = "text"
    id_field: str = "id"
    title_field: str = "title"
    language_field: str = "language"
    ignored: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, row or text that was not taken.

    path    what was skipped, as a person would name it
    reason  why, and the way out where there is one
    source  absolute path of the file; empty when it was not a file
    empty   it was read and has no text: its old content is gone, not merely unreadable
    """

    path: str
    reason: str
    source: str = ""
    empty: bool = False


Loaded = Iterator[Document | Skipped]


def content_hash(document: Document) -> str:
    """Hash of everything a document says (text, title, language, metadata), not of where it is."""
    said = [document.text, document.title, document.language, document.metadata]
    try:
        data = json.dumps(said, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise DocumentError(f"document {document.id!r}: its metadata is not JSON: {error}") from error
    return hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def prepare(document: Document) -> Document:
    """The document as it is stored: no NUL, no lone surrogates, content hash filled in."""
    try:
        cleaned = replace(
            document,
            id=clean(document.id),
            text=clean(document.text),
            source=clean(document.source),
            title=clean(document.title),
            language=clean(document.language),
            metadata=clean_value(dict(document.metadata)),
        )
        return replace(cleaned, content_hash=content_hash(cleaned))
    except RecursionError:
        raise DocumentError(f"document {document.id!r}: its metadata is nested too deeply") from None


def as_document(item: Document | str, i: int) -> Document:
    """A document as it is, or a text whose id is its hash; `i` is its number in messages."""
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document("text-" + content_hash(Document("", clean(item))), item)
    raise InputError(f"document {i} must be a Document or a text; got {type(item).__name__}")


def load_files(
    paths: str | Path | Sequence[str | Path], options: Loading | None = None, *, without: Sequence[str | Path] = ()
) -> Loaded:
    """Documents of files and folders (walked recursively, in sorted order), one after the other, as they are read.

    A file that is given by itself has its name as id. A path that does not exist is an error at once.

    without  files and folders that are no documents, such as results that are written among them
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise InputError(f"{path} does not exist")
    left_out = frozenset(os.path.realpath(path) for path in without)
    return _load_all([Path(os.path.abspath(path)) for path in given], options or Loading(), left_out)


def _load_all(paths: Sequence[Path], options: Loading, without: frozenset[str]) -> Loaded:
    for path in paths:
        real = Path(os.path.realpath(path))
        if not without.isdisjoint(map(str, (real, *real.parents))):
            continue
        if not path.is_dir():
            yield from load_file(path, path.name, options)
            continue
        found = False
        for item in _walk(path, (), without, None if options.ignored else Ignored.around(path)):
            found = True
            yield from [item] if isinstance(item, Skipped) else load_file(item, _relative(item, path), options)
        if not found:
            yield Skipped(str(path), "the folder has no files", str(path), empty=True)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _walk(
    folder: Path, above: tuple[str, ...], without: frozenset[str], ignored: Ignored | None
) -> Iterator[Path | Skipped]:
    """Files below a folder, by name.

    above    the real paths of the folders around it; no link back is followed
    ignored  what is left out in the folders around it; None: nothing is
    """
    real = os.path.realpath(folder)
    if real in above:
        yield Skipped(str(folder), "the link leads back to a folder around it", str(folder))
        return
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        yield Skipped(str(folder), f"the folder cannot be read: {error.strerror}", str(folder))
        return
    ignored = None if ignored is None else ignored.within(folder)
    for entry in entries:
        if entry.name.startswith(".") or entry.name in IGNORED_FOLDERS:
            continue
        if without and (os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name)) in without:
            continue
        inner = os.path.isdir(entry)  # not Path.is_dir, which raises where permission is missing
        if ignored is not None and ignored.leaves_out(entry, folder=inner):
            yield Skipped(str(entry), "a .gitignore leaves it out; --ignored reads it", str(entry))
        elif inner:
            yield from _walk(entry, (*above, real), without, ignored)
        else:
            yield entry


def load_file(path: Path, id: str, options: Loading | None = None) -> Loaded:
    """The document of one file, or one per row; a `Skipped` instead where that fails."""
    settings = options or Loading()
    source = str(path)
    try:
        head = _head(path)
        if not head:
            yield Skipped(source, "the file is empty", source, empty=True)
        elif path.suffix.lower() not in OFFICE_SUFFIXES and is_binary(head):
            yield Skipped(source, "the file is binary", source)
        elif path.suffix.lower() in ROW_SUFFIXES:
            yield from _load_rows(path, id, settings)
        else:
            yield _checked(_load_whole(path, id), source)
    except OSError as error:
        yield Skipped(source, f"the file cannot be read: {error.strerror or error}", source)
    except ThreefoldError as error:
        yield Skipped(source, str(error), source)


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise DocumentError(f"{path} {_instead(path)}")
    with path.open("rb") as file:
        return file.read(SNIFF_BYTES)


def _instead(path: Path) -> str:
    """What there is where a file was expected."""
    if path.exists():
        return "is not a regular file"
    return "is a broken link" if path.is_symlink() else "was there when its folder was read, and is gone"


def _load_whole(path: Path, id: str) -> Document:
    suffix = path.suffix.lower()
    if suffix in OFFICE_SUFFIXES:
        text, title = read_office(path)
    elif suffix in HTML_SUFFIXES:
        text, title = read_html(path.read_bytes(), str(path))
    elif suffix == NOTEBOOK_SUFFIX:
        text, title = read_notebook(path.read_bytes(), str(path))
    else:
        text = decode(path.read_bytes(), str(path))
        title = title_of(text) if suffix in _MARKDOWN_SUFFIXES else ""
    return Document(id, text, str(path), title)


def _load_rows(path: Path, id: str, options: Loading) -> Loaded:
    number = 0
    for number, row in read_rows(path, options.text_field):
        name = f"{path}:{number}"
        if isinstance(row, BadRow):
            yield Skipped(name, row.reason, str(path))
            continue
        try:
            yield _checked(_of_record(row, number, path, id, options), name)
        except DocumentError as error:
            yield Skipped(name, str(error), str(path))
    if not number:
        yield Skipped(str(path), "there are no rows in it", str(path), empty=True)


def _of_record(row: Mapping[str, Any], number: int, path: Path, id: str, options: Loading) -> Document:
    rest = dict(row)
    text = rest.pop(options.text_field, None)
    if not isinstance(text, str):
        raise DocumentError(f"the row has no text in the field {options.text_field!r}")
    key, title, language = (
        _plain(scalar(rest.pop(field, None), field))
        for field in (options.id_field, options.title_field, options.language_field)
    )
    return Document(f"{id}:{key or number}", text, str(path), title, language, rest)


def _plain(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _checked(document: Document, name: str) -> Document | Skipped:
    if not document.text.strip():
        return Skipped(name, "there is no text in it", document.source, empty=True)
    return prepare(document)

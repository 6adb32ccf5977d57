"""Lines of an upload -> documents, and what has become of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from threefold.ingest import AddReport
from threefold.serve.bodies import check_values
from threefold.serve.errors import RequestError, clipped
from threefold.types import Document

#: Reasons for what was not taken that the report names one by one.
NAMED = 1_000
#: Values that the metadata of one document may have.
VALUES = 32_768

_FIELDS = {"id": str, "text": str, "title": str, "source": str, "language": str, "metadata": dict}


class Total:
    """What has become of the blocks so far. A line or document that was not taken has a reason."""

    def __init__(self) -> None:
        self.documents = self.chunks = self.tokens = self.skipped = 0
        self.reasons: list[dict[str, Any]] = []
        self._added = self._replaced = self._unchanged = self._truncated = 0
        self._lines = 0
        self._ids: set[str] = set()
        self._began = time.monotonic()

    def documents_of(self, lines: Iterable[bytes]) -> Iterator[Document]:
        """The documents of the next lines."""
        for line in lines:
            self._lines += 1
            if not line.strip():
                continue
            try:
                document = _document(line)
                if document.id in self._ids:
                    raise ValueError(f"the id {document.id!r} occurred before in this upload")
            except ValueError as error:
                self._skip({"line": self._lines, "reason": str(error)})
            else:
                if document.text.strip():  # else it is not taken
                    self._ids.add(document.id)
                yield document

    def add(self, report: AddReport) -> None:
        """A block was added."""
        self._added += report.added
        self._replaced += report.replaced
        self._unchanged += report.unchanged
        self._truncated += report.truncated
        self.documents += report.added + report.replaced + report.unchanged + len(report.skipped)
        self.chunks += report.chunks
        self.tokens += report.tokens
        for one in report.skipped:
            self._skip({"id": one.path, "reason": one.reason})

    def _skip(self, why: dict[str, Any]) -> None:
        self.skipped += 1
        if len(self.reasons) < NAMED:
            self.reasons.append(why | {"reason": clipped(why["reason"])})

    def plain(self) -> dict[str, Any]:
        """The report."""
        return {
            "added": self._added,
            "replaced": self._replaced,
            "unchanged": self._unchanged,
            "skipped": self.skipped,
            "reasons": self.reasons,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "truncated": self._truncated,
            "seconds": round(time.monotonic() - self._began, 3),
        }


def _document(line: bytes) -> Document:
    """One line, or a ValueError that says what is wrong with it."""
    try:
        check_values(line, VALUES, "the line")
        given = orjson.loads(line)
    except RequestError as error:
        raise ValueError(str(error)) from None
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")
    unknown = sorted(set(given) - set(_FIELDS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}. Others belong into metadata")
    for name, kind in _FIELDS.items():
        if name in given and not isinstance(given[name], kind):
            raise ValueError(f"{name} must be {'an object' if kind is dict else 'text'}")
    missing = [name for name in ("id", "text") if not given.get(name)]
    if missing:
        raise ValueError(f"{missing[0]} is missing or empty")
    return Document(**given)

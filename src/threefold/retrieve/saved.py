"""Retrievers under names: one JSON file each in the folder of a collection, or in memory where there is no folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from threefold.errors import InputError, StoreCorruptError
from threefold.replacing import replacing
from threefold.retrieve.stages import Retriever

#: Names are files: bounded as those of collections, and no dot first, which is how a draft begins.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class SavedRetrievers:
    """The saved retrievers of one collection."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / "retrievers" if folder else None
        self._memory: dict[str, Retriever] = {}

    def save(self, name: str, retriever: Retriever) -> None:
        """Add or replace."""
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} is not a name for a retriever: use 1 to 64 letters, digits, dots, dashes and underscores"
            )
        if self._folder is None:
            self._memory[name] = retriever
            return
        self._folder.mkdir(exist_ok=True)
        with replacing(self._folder / f"{name}.json") as draft:
            draft.write_text(json.dumps(retriever.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def load(self, name: str) -> Retriever:
        """By name; an unknown one is an error that lists the known ones."""
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise InputError(f"there is no retriever {name!r}; saved are: {known}")
        if self._folder is None:
            return self._memory[name]
        path = self._folder / f"{name}.json"
        try:
            return Retriever.from_dict(json.loads(path.read_text(encoding="utf-8")), name)
        except ValueError as error:
            raise StoreCorruptError(f"{path} is not JSON: {error}. Save the retriever again") from error

    def names(self) -> list[str]:
        """All names, sorted."""
        if self._folder is None:
            return sorted(self._memory)
        files = (path.name for path in self._folder.glob("*.json"))
        return sorted(name.removesuffix(".json") for name in files if not name.startswith("."))

"""What a collection and its documents are, for people and reports."""

from __future__ import annotations

from dataclasses import dataclass

from threefold.config import Manifest, Settings
from threefold.types import Representation


@dataclass(frozen=True, slots=True)
class DocumentInfo(Settings):
    """A document of a collection, without its text."""

    id: str
    source: str
    title: str
    language: str
    chunks: int
    content_hash: str


@dataclass(frozen=True, slots=True)
class CollectionInfo(Settings):
    """What a collection is. `size_bytes` is 0 where it is not a folder."""

    name: str
    documents: int
    chunks: int
    representations: tuple[Representation, ...]
    size_bytes: int
    manifest: Manifest

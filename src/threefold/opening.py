"""Where collections are, and what it takes to open one: a folder or a server, and the manifest of the model."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import get_args

from threefold.config import Chunking, Manifest, MultiStorage
from threefold.errors import ConfigError, InputError
from threefold.paths import expanded
from threefold.store.folder import check_model, left_by_creation, manifest_path
from threefold.store.protocol import Store
from threefold.text.protocol import ModelCard, TextEncoder


def home() -> Path:
    """Where threefold keeps things: `$THREEFOLD_HOME`, by default `~/.threefold`."""
    return expanded(os.environ.get("THREEFOLD_HOME") or "~/.threefold")


def collection_folder(path_or_name: str | Path) -> Path:
    """A bare name is a folder of `$THREEFOLD_HOME/collections` (default `~/.threefold`); anything else is a path."""
    if isinstance(path_or_name, Path) or os.sep in path_or_name or "/" in path_or_name:
        return expanded(path_or_name)
    if path_or_name in ("", ".", ".."):
        raise InputError(
            f"{path_or_name!r} is not a name of a collection. Use a word like papers, or a path like ./papers"
        )
    return home() / "collections" / path_or_name


def chunking_for(card: ModelCard, chunking: Chunking | None) -> Chunking:
    """How documents are cut for a model, where nothing else is said; what it could not read is refused."""
    if chunking is None:
        return Chunking(max_tokens=min(Chunking().max_tokens, card.max_tokens))
    if chunking.max_tokens > card.max_tokens:
        raise ConfigError(
            f"chunks of {chunking.max_tokens} tokens, but {card.name!r} reads at most {card.max_tokens}. "
            "Choose a smaller max_tokens"
        )
    return chunking


def manifest_for(
    encoder: TextEncoder,
    chunking: Chunking | None = None,
    multi_storage: MultiStorage | None = None,
    multi_pool: int | None = None,
) -> Manifest:
    """What a new collection of this encoder is built with."""
    card = encoder.card
    chunking = chunking_for(card, chunking)
    if multi_storage is not None and multi_storage not in get_args(MultiStorage):
        known = ", ".join(get_args(MultiStorage))
        raise ConfigError(f"multi_storage {multi_storage!r}: expected one of {known} (--multi)")
    storage: MultiStorage = (multi_storage or "int8") if card.multi_dim else "none"
    if multi_pool not in (None, 1) and storage == "none":
        raise ConfigError(f"multi_pool {multi_pool}: the collection keeps no token vectors that could be pooled")
    return Manifest(
        # a folder by its whole path, so that the collection can be opened from any other
        model=os.path.abspath(card.name) if os.path.isdir(card.name) else card.name,
        model_hash=card.hash,
        tokenizer_hash=card.tokenizer_hash,
        dense_dim=card.dense_dim,
        multi_dim=0 if multi_storage == "none" else card.multi_dim,
        vocab=card.vocab,
        revision=card.revision,
        precision=card.precision,
        multi_storage=storage,
        multi_pool=1 if multi_pool is None else multi_pool,
        chunking=chunking,
    )


def open_folder(folder: Path, manifest: Manifest, create: bool) -> Store:
    """The embedded engine on a folder."""
    from threefold.store.edge import EdgeStore  # late: loads the engine

    if create and not manifest_path(folder).exists():
        _refuse_foreign_files(folder)
        return EdgeStore.create(folder, manifest)
    return EdgeStore.open(folder)


def _refuse_foreign_files(folder: Path) -> None:
    """A folder of documents is not silently made a collection as well."""
    foreign = sorted({entry.name for entry in folder.iterdir()} - left_by_creation(folder)) if folder.is_dir() else []
    if foreign:
        raise InputError(
            f"{folder} is not a collection and not empty (it has {foreign[0]}). Choose a new or an empty folder"
        )


def open_cluster(url: str, api_key: str | None, name: str, manifest: Manifest, create: bool) -> Store:
    """A collection on a server: Milvus by the scheme `milvus:`, `milvus+http:` or `milvus+https:`, else Qdrant.

    Without an api key, that of `$THREEFOLD_URL_KEY` is sent, if there is one.
    """
    key = api_key or os.environ.get("THREEFOLD_URL_KEY") or None
    if url.partition(":")[0].lower().partition("+")[0] == "milvus":
        return _open_milvus(url, key, name, manifest, create)
    from threefold.store.qdrant import QdrantStore, connect, exists  # late: an extra

    client = connect(url, api_key=key)
    if create and not exists(client, name):
        return QdrantStore.create(client, name, manifest)
    return QdrantStore.open(client, name)


def _open_milvus(url: str, key: str | None, name: str, manifest: Manifest, create: bool) -> Store:
    from threefold.store.milvus import MilvusStore, connect, exists  # late: an extra

    connection = connect(url, api_key=key)
    try:
        if create and not exists(connection, name):
            return MilvusStore.create(connection, name, manifest)
        return MilvusStore.open(connection, name)
    except BaseException:
        connection.close()  # releases a file of Milvus Lite
        raise


def check_settings(
    has: Manifest,
    wanted: Manifest,
    chunking: Chunking | None = None,
    multi_storage: MultiStorage | None = None,
    multi_pool: int | None = None,
) -> None:
    """Refuse another model, and settings that the collection was not built with."""
    given = {"chunking": chunking, "multi_storage": multi_storage, "multi_pool": multi_pool}
    for name, asked in given.items():
        if asked is not None and getattr(has, name) != asked:
            raise ConfigError(
                f"the collection was built with {name} {getattr(has, name)!r}, not {asked!r}. "
                "Leave the option out, or build a new collection"
            )
    if has.multi_storage == "none":
        wanted = dataclasses.replace(wanted, multi_dim=has.multi_dim)
    check_model(has, wanted)

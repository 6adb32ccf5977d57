"""Chunks that are encoded before they are indexed, by `threefold encode --chunks`, and found by `index --vectors`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from threefold.cli.bulk import Rows
from threefold.cli.show import note
from threefold.config import Chunking
from threefold.errors import InputError
from threefold.text.protocol import ModelCard, TextEncoder

if TYPE_CHECKING:
    from threefold.precomputed import PrecomputedEncoder
    from threefold.text.documents import Loading


def chunking_in(max_tokens: int | None, overlap: int | None) -> Chunking | None:
    """What `--max-tokens` and `--overlap` say; None: neither is given."""
    given = {"max_tokens": max_tokens, "overlap": overlap}
    said = {key: value for key, value in given.items() if value is not None}
    return Chunking(**said) if said else None


def chunks_of(
    place: Path,
    output: Path,
    loading: Loading,
    chunking: Chunking | None,
    model: tuple[str | None, str | None],
    skipped: list[str],
) -> Rows:
    """The chunks of files and folders, read and cut as `threefold index` does it. The model's weights are not opened:
    with Ray others have them.

    output   what is below it is no document
    model    --model, --revision
    skipped  what cannot be read is added
    """
    if not place.exists():
        raise InputError(f"{place} does not exist")

    def rows(card: ModelCard) -> Iterator[tuple[str, str]]:
        from threefold.encoder.sources import find
        from threefold.opening import chunking_for
        from threefold.text.chunks import chunk_document
        from threefold.text.documents import Skipped, load_files
        from threefold.text.tokenizer import Tokenizer

        sizes = chunking_for(card, chunking)
        tokenizer = Tokenizer.load(find(*model).folder)
        for item in load_files(place, loading, without=[output]):
            if isinstance(item, Skipped):
                skipped.append(f"{item.path}: {item.reason}")
                continue
            yield from ((chunk.id, chunk.text) for chunk in chunk_document(item, tokenizer, sizes))

    return rows


def precomputed(
    encoder: TextEncoder, vectors: Sequence[Path] | None, into: str, url: str | None, multi: str | None
) -> PrecomputedEncoder | None:
    """The encoder with what is in the files or folders of `--vectors`; None where none are given.

    into, url, multi  of the collection. Files that lack what a new one keeps are refused before its folder is made
    """
    if not vectors:
        return None
    from threefold.opening import collection_folder
    from threefold.precomputed import PrecomputedEncoder
    from threefold.store.folder import manifest_path

    found = PrecomputedEncoder(encoder, vectors, say=note)
    if url is None and not manifest_path(collection_folder(into)).exists():
        found.require([name for name in encoder.card.representations if (name, multi) != ("multi", "none")])
    return found

"""Collections that commands work on: the options that name one, and what opens it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli import options
from threefold.errors import InputError

if TYPE_CHECKING:
    from threefold.collection import Collection

Into = Annotated[str, typer.Option("--into", help="Name of the collection, or a folder.")]
In = Annotated[str, typer.Option("--in", help="Name of the collection, or a folder.")]
Url = Annotated[
    str | None, typer.Option(help="A server of Qdrant or Milvus instead of a folder.", envvar="THREEFOLD_URL")
]
Where = Annotated[str, typer.Option(help='Filter in JSON, such as {"language": "de"}.')]


def condition_in(where: str) -> dict[str, Any] | None:
    """The filter that `--where` writes."""
    if not where:
        return None
    try:
        condition = json.loads(where)
    except (ValueError, RecursionError) as error:
        raise InputError(f'--where is not JSON: {error}. Write it like {{"language": "de"}}') from error
    if not isinstance(condition, dict):
        raise InputError(f'--where must be a JSON object like {{"language": "de"}}; got {where}')
    return condition


@contextmanager
def existing(
    name: str,
    url: str | None,
    model: str | None,
    revision: str | None,
    device: str = "auto",
    precision: str = "auto",
    reranker: str | None = None,
) -> Iterator[Collection]:
    """A collection that is there, open until the end of the block."""
    from threefold.collection import Collection

    encoder = options.open_encoder(*model_of(name, url, model, revision, must_exist=True), device, precision)
    cross = options.open_reranker(reranker, None, device, precision) if reranker else None
    with Collection(name, encoder, create=False, url=url, reranker=cross) as collection:
        yield collection


def model_of(
    name: str, url: str | None, model: str | None, revision: str | None, *, must_exist: bool = False
) -> tuple[str | None, str | None]:
    """Model and revision: those that were given, or those that a collection of this machine was built with."""
    from threefold.opening import collection_folder
    from threefold.store.folder import manifest_path, read_manifest

    if model is not None or url is not None:
        return model, revision
    folder = collection_folder(name)
    if not must_exist and not manifest_path(folder).is_file():
        return None, revision
    manifest = read_manifest(folder)
    return manifest.model, revision or manifest.revision or None

"""Where a model comes from: the embedded one, a local folder, or the Hugging Face hub by name (`threefold.hub`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from threefold import hub
from threefold.errors import CheckpointError, InputError, OfflineError
from threefold.paths import expanded

#: The model that ships with the package.
EMBEDDED = "threefold-mini"

#: Revisions that this version of threefold was written against; another one is taken by `revision=`.
PINNED = {
    "BAAI/bge-m3": "5617a9f61b028005a4858fdac845db406aefb181",
    "BAAI/bge-reranker-v2-m3": "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
}

#: Files of a checkpoint that are read, besides its weights; what lies in other folders stays where it is.
_SETTINGS = re.compile(
    r"[^/]+\.json|sparse_linear\.pt|colbert_linear\.pt|sentencepiece\.bpe\.model|spiece\.model|vocab\.txt"
    r"|\w+_Pooling/config\.json"
)

#: Forms of the weights, the preferred one first, as `files.read_backbone` looks for them; one of them is fetched.
_WEIGHTS = tuple(
    re.compile(f"{stem}{shard}\\.{suffix}")
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin"))
    for shard in ("", r"-\d+-of-\d+")
)

#: Heads that a model has for certain: a snapshot without them was interrupted, and would open as another model.
_HEADS = {"BAAI/bge-m3": ("sparse_linear.pt", "colbert_linear.pt")}


class Source(NamedTuple):
    """A model folder, the name to call it by, and its revision on the hub (empty for local folders)."""

    folder: Path
    name: str
    revision: str


def embedded_folder() -> Path:
    """The folder of the embedded model inside the package."""
    return Path(__file__).parent.parent / "models" / "mini"


def find(model: str | os.PathLike[str] | None, revision: str | None = None) -> Source:
    """The embedded model for None, a folder if there is one, else the hub."""
    if model is None or model == EMBEDDED:
        _no_revision(EMBEDDED, revision)
        folder = embedded_folder()
        if not (folder / "threefold.json").is_file():
            raise CheckpointError(f"the embedded model is not in this installation: {folder} has no threefold.json")
        return Source(folder, EMBEDDED, "")
    if not str(model):
        raise InputError(f"the name of the model is empty; leave it out, or say {EMBEDDED!r}, for the embedded one")
    path = expanded(model)
    if path.is_dir():
        _no_revision(str(model), revision)
        return Source(path, str(model), "")
    name = str(model)
    if path.exists():
        raise CheckpointError(f"{name} is a file; expected the folder of a model")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{name!r} is neither a folder nor a name on the hub (owner/name). "
            f"Leave the model out, or say {EMBEDDED!r}, to use the embedded one"
        )
    return _download(name, revision or PINNED.get(name))


def _no_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"{name} is a folder and has no revisions; leave out revision={revision!r}")


def wanted(files: Iterable[str]) -> list[str]:
    """Of the files of a repository those that make up the model: settings, tokenizer, heads, one form of weights."""
    files = sorted(files)
    forms = ([file for file in files if form.fullmatch(file)] for form in _WEIGHTS)
    return [file for file in files if _SETTINGS.fullmatch(file)] + next(filter(None, forms), [])


def _download(name: str, revision: str | None) -> Source:
    from huggingface_hub.errors import HFValidationError

    at = f" at revision {revision}" if revision else ""
    repository = hub.Repository(
        name,
        revision,
        "model",
        what=name,
        no=CheckpointError,
        absent=f"model {name}{at}, and there is no folder of this name",
        way_out="; there is no folder of this name either. Download it once while online, or pass the folder of a copy",
    )
    try:
        return _source(name, hub.fetch(repository, wanted))
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a possible name on the hub: {error}") from error


def _source(name: str, folder: Path) -> Source:
    missing = [file for file in _HEADS.get(name, ()) if not (folder / file).is_file()]
    if missing:
        raise OfflineError(
            f"{name} is not complete in the local cache ({', '.join(missing)} missing in {folder}). "
            "Download it again while online"
        )
    return Source(folder, name, folder.name)

"""Where a model comes from: the embedded one, a local folder, or the Hugging Face hub by name.

The hub is asked which files there are, and those that are read are fetched. If it does not answer, the cache is taken.

Environment:
    THREEFOLD_OFFLINE=1, HF_HUB_OFFLINE=1   never download; a model that is not in the cache is an error
    HF_HOME, HF_HUB_CACHE                   where downloads are kept (huggingface_hub)
    HF_HUB_ETAG_TIMEOUT                     seconds to wait for the hub before the cache is taken (10)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from threefold.errors import CheckpointError, InputError, OfflineError
from threefold.evaluate.hub import absent_from_cache, hub_errors, offline, one_line, reason_of
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
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return _source(name, _cached(name, revision) if offline() else _fetched(name, revision))
    except LocalEntryNotFoundError as error:
        raise OfflineError(
            f"{name} {absent_from_cache(error)} and {reason_of(error)}; there is no folder of this name either. "
            "Download it once while online, or pass the folder of a copy"
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a possible name on the hub: {error}") from error
    except GatedRepoError as error:
        raise CheckpointError(f"{name} has conditions of use: accept them on its page and set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"the hub has no model {name}{at}, and there is no folder of this name: {one_line(error)}"
        ) from error
    except hub_errors() as error:
        raise OfflineError(f"{name} cannot be downloaded: {one_line(error)}") from error


def _fetched(name: str, revision: str | None) -> str:
    """The folder of a snapshot that has all that is wanted; the one in the cache where the hub does not help."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    patience = constants.HF_HUB_ETAG_TIMEOUT
    if revision and re.fullmatch("[0-9a-f]{40}", revision) and _listed(name, revision) is not None:
        try:
            return _cached(name, revision)  # a commit never changes: nothing to ask for
        except LocalEntryNotFoundError:
            pass  # it was interrupted
    try:
        # snapshot_download asks by itself too, but would wait for ever for a hub that does not answer
        info = HfApi().model_info(name, revision=revision, timeout=patience)
    except RevisionNotFoundError:
        raise
    except hub_errors() as error:
        try:
            return _cached(name, revision)
        except LocalEntryNotFoundError as absent:
            if isinstance(error, RepositoryNotFoundError):
                raise error from None
            raise absent from error
    files = wanted(each.rfilename for each in info.siblings or ())
    # by the branch, not its commit: the cache remembers what a branch was only if it is asked for by name
    return snapshot_download(name, revision=revision, allow_patterns=files, etag_timeout=patience)


def _cached(name: str, revision: str | None) -> str:
    """The folder of a snapshot in the cache. Newer hub libraries check that it has every file."""
    from huggingface_hub import snapshot_download

    files = _listed(name, revision)
    patterns = None if files is None else wanted(files)
    return snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True)


def _listed(name: str, revision: str | None) -> list[str] | None:
    """Paths of the repository as the cache remembers them; older hub libraries remember nothing."""
    import huggingface_hub

    remembered = getattr(huggingface_hub, "get_cached_repo_tree", None)
    if remembered is None:
        return None
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in remembered(name, revision=revision)]
    except (CachedRepoTreeNotFoundError, OSError):
        return None


def _source(name: str, folder: str) -> Source:
    missing = [file for file in _HEADS.get(name, ()) if not (Path(folder) / file).is_file()]
    if missing:
        raise OfflineError(
            f"{name} is not complete in the local cache ({', '.join(missing)} missing in {folder}). "
            "Download it again while online"
        )
    return Source(Path(folder), name, Path(folder).name)

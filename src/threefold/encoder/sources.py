"""Where a model comes from: the embedded one, a local folder, or the Hugging Face hub by name.

Environment:
    THREEFOLD_OFFLINE=1, HF_HUB_OFFLINE=1   never download; a model that is not in the cache is an error
    HF_HOME, HF_HUB_CACHE                   where downloads are kept (huggingface_hub)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from threefold.errors import CheckpointError, InputError, OfflineError

#: The model that ships with the package.
EMBEDDED = "threefold-mini"

#: Revisions that this version of threefold was written against; another one is taken by `revision=`.
PINNED = {
    "BAAI/bge-m3": "5617a9f61b028005a4858fdac845db406aefb181",
    "BAAI/bge-reranker-v2-m3": "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
}

#: Files of a checkpoint that are read; ONNX exports and pictures stay where they are.
_PATTERNS = [
    "*.json", "*.safetensors", "pytorch_model*.bin", "sparse_linear.pt", "colbert_linear.pt",
    "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "1_Pooling/*",
]  # fmt: skip


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
    path = Path(model).expanduser()
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


def offline() -> bool:
    """Whether downloads are forbidden."""
    truth = {"1", "true", "yes", "on"}
    return any(os.environ.get(key, "").lower() in truth for key in ("THREEFOLD_OFFLINE", "HF_HUB_OFFLINE"))


def _download(name: str, revision: str | None) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=_PATTERNS, local_files_only=offline())
    except LocalEntryNotFoundError as error:
        reason = "offline mode is on" if offline() else "the hub cannot be reached"
        raise OfflineError(
            f"{name} is not in the local cache and {reason}. Download it once while online, "
            "or pass the folder of a copy"
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a possible name on the hub: {error}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(f"the hub has no model {name}{at}: {error}") from error
    except OSError as error:
        raise OfflineError(f"{name} cannot be downloaded: {error}") from error
    return Source(Path(folder), name, Path(folder).name)

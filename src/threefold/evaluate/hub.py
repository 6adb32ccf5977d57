"""Data sets on the Hugging Face hub as plain files: no loading scripts, no shell, no other server.

Files are kept by huggingface_hub (`HF_HOME`, `HF_HUB_CACHE`). What was downloaded is compared with the hub's own
checksum before it is read: a file in that cache is named by its SHA-256 (large files) or by its git blob hash.

Environment:
    THREEFOLD_OFFLINE=1, HF_HUB_OFFLINE=1   never download; what is not in the cache is an error
    HF_ENDPOINT                             another hub, such as a mirror
    HF_TOKEN                                for data sets with conditions of use
    HF_HUB_ETAG_TIMEOUT                     seconds to wait for the hub before the cache is taken (10)
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from threefold.errors import EvaluationError, OfflineError

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class HubFiles:
    """Files of one data set.

    repo      owner/name
    revision  the commit that was looked up when the loader was written; "main": no commit is known
    patterns  shell patterns of paths in the repository; each must match at least one file
    """

    repo: str
    revision: str
    patterns: tuple[str, ...]


def fetch(files: HubFiles, data: Path | None = None) -> Path:
    """The folder that holds the files.

    data  a folder of copies made by hand, `DATA/owner/name/...`; nothing is downloaded then
    """
    if data is not None:
        folder = data / files.repo
        if not folder.is_dir():
            raise EvaluationError(f"{folder} does not exist; expected a copy of the data set {files.repo} there")
    else:
        folder = _download(files)
    missing = [pattern for pattern in files.patterns if not any(folder.glob(pattern))]
    if missing:
        where = f"{folder}: no file {' or '.join(missing)}"
        if data is None and offline():
            raise OfflineError(f"{where} in the cache and offline mode is on. Download {files.repo} once while online")
        raise EvaluationError(f"{where}; the data set {files.repo} has another layout than expected")
    if data is None:
        for path in matches(folder, files):
            check_blob(path)
    return folder


def matches(folder: Path, files: HubFiles) -> Iterator[Path]:
    """Every file of the folder that a pattern names, in order of name."""
    yield from sorted({path for pattern in files.patterns for path in folder.glob(pattern) if path.is_file()})


def offline() -> bool:
    """Whether downloads are forbidden."""
    return switched_on("THREEFOLD_OFFLINE") or switched_on("HF_HUB_OFFLINE")


def switched_on(variable: str) -> bool:
    """Whether a variable of the environment says yes."""
    return os.environ.get(variable, "").lower() in {"1", "true", "yes", "on"}


def hub_errors() -> tuple[type[Exception], ...]:
    """What a look-up or a download raises where the network or the hub fails.

    requests, under older hub libraries, raises `OSError`s; httpx and httpx2, under newer ones, do not. hf_xet, which
    moves large files, raises `RuntimeError`s.
    """
    loaded = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, RuntimeError, *(module.HTTPError for module in loaded), *(module.InvalidURL for module in loaded))


def reason_of(error: BaseException | None) -> str:
    """Why nothing came from the hub, from the error or from what caused it."""
    if offline():
        return "offline mode is on"
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return f"the hub answered with HTTP {status}"
        error = error.__cause__
    return "the hub cannot be reached"


def absent_from_cache(error: BaseException) -> str:
    """What of a repository the cache lacks: all of it, or the files that newer hub libraries name."""
    found = re.search(r"\d+ file\(s\) are missing \(.*?\)(?=\. )", str(error))
    return f"is not complete in the local cache ({found[0]})" if found else "is not in the local cache"


def one_line(error: BaseException) -> str:
    """The message without its line breaks; the kind of error where there is none."""
    return " ".join(str(error).split()) or type(error).__name__


def check_blob(path: Path) -> None:
    """Compare a file of the hub's cache with the hash that is its name there.

    A file that is no link into `blobs/` (a system without links) has no such name and is left alone.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs":
        return
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)  # git's own header
    else:
        raise EvaluationError(f"{blob} is not named by a hash; delete it and download it again")
    with blob.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        raise EvaluationError(f"{path} is damaged: its hash is {digest.hexdigest()}, not {blob.name}. Delete {blob}")


def _download(files: HubFiles) -> Path:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(_snapshot(files, local_files_only=True) if offline() else _fetched(files))
    except LocalEntryNotFoundError as error:
        raise OfflineError(
            f"the data set {files.repo} {absent_from_cache(error)} and {reason_of(error)}{_patience(error)}. "
            "Download it once while online, or give a folder of copies with --data"
        ) from error
    except GatedRepoError as error:
        raise EvaluationError(
            f"the data set {files.repo} has conditions of use: accept them on its page and set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise EvaluationError(f"the hub has no data set {files.repo} at revision {files.revision}: {error}") from error
    except hub_errors() as error:
        raise OfflineError(f"the data set {files.repo} cannot be downloaded: {one_line(error)}") from error


def _fetched(files: HubFiles) -> str:
    """The folder of a snapshot; the one in the cache where the hub does not help."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # snapshot_download asks by itself too, but would wait for ever for a hub that does not answer
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        api.dataset_info(files.repo, revision=files.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RevisionNotFoundError:
        raise
    except hub_errors() as error:
        try:
            return _snapshot(files, local_files_only=True)
        except LocalEntryNotFoundError as absent:
            if isinstance(error, RepositoryNotFoundError):
                raise error from None
            raise absent from error
    return _snapshot(files, local_files_only=False)


def _snapshot(files: HubFiles, *, local_files_only: bool) -> str:
    from huggingface_hub import constants, snapshot_download

    return snapshot_download(
        files.repo,
        repo_type="dataset",
        revision=files.revision,
        allow_patterns=list(files.patterns),
        local_files_only=local_files_only,
        etag_timeout=constants.HF_HUB_ETAG_TIMEOUT,
        endpoint=os.environ.get("HF_ENDPOINT"),
    )


def _patience(error: BaseException | None) -> str:
    """How long the hub was waited for, where that was why nothing came."""
    from huggingface_hub import constants

    while error is not None and "Timeout" not in type(error).__name__:  # of requests, httpx or httpx2
        error = error.__cause__
    return "" if error is None else f" (no answer in {constants.HF_HUB_ETAG_TIMEOUT} s: HF_HUB_ETAG_TIMEOUT)"

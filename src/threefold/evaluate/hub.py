"""Data sets on the Hugging Face hub as plain files: no loading scripts, no shell, no other server.

Files are kept by huggingface_hub (`threefold.hub`). What was downloaded is compared with the hub's own checksum before
it is read: a file in that cache is named by its SHA-256 (large files) or by its git blob hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from threefold import hub
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
        if data is None and hub.offline():
            raise OfflineError(f"{where} in the cache and offline mode is on. Download {files.repo} once while online")
        raise EvaluationError(f"{where}; the data set {files.repo} has another layout than expected")
    if data is None:
        for path in matches(folder, files):
            check_blob(path)
    return folder


def matches(folder: Path, files: HubFiles) -> Iterator[Path]:
    """Every file of the folder that a pattern names, in order of name."""
    yield from sorted({path for pattern in files.patterns for path in folder.glob(pattern) if path.is_file()})


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
    repository = hub.Repository(
        files.repo,
        files.revision,
        "dataset",
        what=f"the data set {files.repo}",
        no=EvaluationError,
        absent=f"data set {files.repo} at revision {files.revision}",
        way_out=". Download it once while online, or give a folder of copies with --data",
    )
    return hub.fetch(repository, lambda _: files.patterns)

"""Files of a model or a data set on the Hugging Face hub, by huggingface_hub, in its cache.

The hub is asked which files there are, and those that are wanted are fetched. If it does not answer, the cache is
taken. Nothing waits for ever: a hub that is silent, at whichever request, is given up.

Environment:
    THREEFOLD_OFFLINE=1, HF_HUB_OFFLINE=1   never download; what is not in the cache is an error
    HF_HOME, HF_HUB_CACHE                   where downloads are kept
    HF_ENDPOINT, HF_TOKEN                   another hub, such as a mirror; who you are there
    HF_HUB_ETAG_TIMEOUT                     seconds that the hub may be silent, at the first request before the cache
                                            is taken, at a later one before it is asked again, six times in all (10)
    HF_HUB_DOWNLOAD_TIMEOUT                 the same within the contents of a file (10)
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

from threefold.errors import OfflineError, ThreefoldError

#: Paths of a repository -> those that are fetched, or shell patterns of them.
Choose = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Repository:
    """What is wanted of the hub, and what is said where it cannot be had.

    name      owner/name
    revision  a branch or a commit; None: the main branch
    what      its name in messages, such as "the data set owner/name"
    no        the error where the hub has no such thing, or does not give it to everybody
    absent    said in addition where the hub has no such thing
    way_out   what to do while the hub does not help
    """

    name: str
    revision: str | None
    kind: Literal["model", "dataset"]
    what: str
    no: type[ThreefoldError]
    absent: str
    way_out: str


def fetch(repository: Repository, choose: Choose) -> Path:
    """The folder of a snapshot that has what is chosen; the one in the cache where the hub does not help."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what, absent = repository.what, repository.absent
    try:
        return Path(_cached(repository, choose) if offline() else _fetched(repository, choose))
    except LocalEntryNotFoundError as error:
        raise OfflineError(
            f"{what} {_absent_from_cache(error)} and {_reason_of(error)}{_patience(error)}{repository.way_out}"
        ) from error
    except GatedRepoError as error:
        raise repository.no(f"{what} has conditions of use: accept them on its page and set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise repository.no(f"the hub has no {absent}: {_one_line(error)}") from error
    except hub_errors() as error:
        raise OfflineError(f"{what} cannot be downloaded: {_one_line(error)}{_patience(error)}") from error


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


# ---- the library ------------------------------------------------------------------------------------------


def _fetched(repository: Repository, choose: Choose) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if re.fullmatch("[0-9a-f]{40}", repository.revision or "") and _listed(repository) is not None:
        try:
            return _cached(repository, choose)  # a commit never changes: nothing to ask for
        except LocalEntryNotFoundError:
            pass  # it was interrupted
    try:
        ask = getattr(HfApi(endpoint=os.environ.get("HF_ENDPOINT")), f"{repository.kind}_info")
        info = ask(repository.name, revision=repository.revision, timeout=_seconds())
    except RevisionNotFoundError:
        raise
    except hub_errors() as error:
        try:
            return _cached(repository, choose)
        except LocalEntryNotFoundError as absent:
            if isinstance(error, RepositoryNotFoundError):
                raise error from None
            raise absent from error
    with _impatient():
        return _snapshot(repository, choose([each.rfilename for each in info.siblings or ()]))


def _cached(repository: Repository, choose: Choose) -> str:
    """The folder of a snapshot in the cache. Newer hub libraries check that it has every file."""
    files = _listed(repository)
    return _snapshot(repository, None if files is None else choose(files), local_files_only=True)


def _snapshot(repository: Repository, patterns: Sequence[str] | None, *, local_files_only: bool = False) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(
        repository.name,
        repo_type=repository.kind,
        # by the branch, not its commit: the cache remembers what a branch was only if it is asked for by name
        revision=repository.revision,
        allow_patterns=None if patterns is None else list(patterns),
        local_files_only=local_files_only,
        etag_timeout=_seconds(),
        endpoint=os.environ.get("HF_ENDPOINT"),
    )


def _listed(repository: Repository) -> list[str] | None:
    """Paths of the repository as the cache remembers them; older hub libraries remember nothing."""
    import huggingface_hub

    remembered = getattr(huggingface_hub, "get_cached_repo_tree", None)
    if remembered is None:
        return None
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        files = remembered(repository.name, repo_type=repository.kind, revision=repository.revision)
        return [file.path for file in files]
    except (CachedRepoTreeNotFoundError, OSError):
        return None


# ---- patience ---------------------------------------------------------------------------------------------

_hooks = threading.Lock()


def _seconds() -> float:
    from huggingface_hub import constants

    return constants.HF_HUB_ETAG_TIMEOUT


@contextmanager
def _impatient() -> Iterator[None]:
    """Inside, no request to the hub waits for an answer without end.

    `snapshot_download` asks for the commit and for the list of files with no limit, and offers none; what it asks
    about a file it asks again with a limit of a minute, six times.
    """
    from huggingface_hub import get_session

    session: Any = get_session()
    if hasattr(session, "event_hooks"):  # httpx: shared by all threads
        hook = partial(_limit, seconds=_seconds())
        _change_hooks(session, lambda hooks: [*hooks, hook])
        try:
            yield
        finally:
            _change_hooks(session, lambda hooks: [one for one in hooks if one is not hook])
    else:  # requests, of older hub libraries: one session per thread
        send, seconds = session.send, _seconds()
        session.send = lambda request, **how: send(request, **{**how, "timeout": how.get("timeout") or seconds})
        try:
            yield
        finally:
            del session.send


def _limit(request: Any, *, seconds: float) -> None:
    """Give a request the limits that it does not have, and a question about a file (HEAD) no longer ones than ours."""
    limits: dict[str, float | None] = {"connect": None, "read": None, "write": None, "pool": None}
    limits |= request.extensions.get("timeout", {})
    longest = seconds if request.method == "HEAD" else inf
    request.extensions["timeout"] = {
        name: seconds if limit is None else min(limit, longest) for name, limit in limits.items()
    }


def _change_hooks(session: Any, change: Callable[[list[Any]], list[Any]]) -> None:
    with _hooks:
        session.event_hooks = {**session.event_hooks, "request": change(session.event_hooks.get("request", []))}


# ---- words ------------------------------------------------------------------------------------------------


def _reason_of(error: BaseException | None) -> str:
    """Why nothing came from the hub, from the error or from what caused it."""
    if offline():
        return "offline mode is on"
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return f"the hub answered with HTTP {status}"
        error = error.__cause__
    return "the hub cannot be reached"


def _patience(error: BaseException | None) -> str:
    """How long the hub was waited for, where that was why nothing came."""
    while error is not None and "Timeout" not in type(error).__name__:  # of requests, httpx or httpx2
        error = error.__cause__
    return "" if error is None else f" (no answer in {_seconds()} s: HF_HUB_ETAG_TIMEOUT)"


def _absent_from_cache(error: BaseException) -> str:
    """What of a repository the cache lacks: all of it, or the files that newer hub libraries name."""
    found = re.search(r"\d+ file\(s\) are missing \(.*?\)(?=\. )", str(error))
    return f"is not complete in the local cache ({found[0]})" if found else "is not in the local cache"


def _one_line(error: BaseException) -> str:
    """The message without its line breaks; the kind of error where there is none."""
    return " ".join(str(error).split()) or type(error).__name__

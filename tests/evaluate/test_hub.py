"""Downloads, from a hub that runs in the test: the four requests that huggingface_hub makes."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from tests.evaluate import copies
from tests.web import Answering, serving

from threefold.errors import EvaluationError, OfflineError
from threefold.evaluate.hub import HubFiles, check_blob, fetch
from threefold.evaluate.miracl import CORPUS_REVISION, QUERIES_REVISION
from threefold.evaluate.tasks import named_tasks

COMMITS = {"miracl/miracl": QUERIES_REVISION, "miracl/miracl-corpus": CORPUS_REVISION}


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(Answering):
    folder: Path
    gated = False
    silent = False
    asked = 0
    tires_after = 10**9
    awake = threading.Event()

    def answer(self) -> None:
        type(self).asked += 1
        if self.silent or self.asked > self.tires_after:
            self.awake.wait(20)
            return
        parts = self.path.split("?")[0].strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[1:3])
        if self.gated:
            return self.send(403, b"", {"X-Error-Code": "GatedRepo"})
        if repo not in COMMITS:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api":
            root = self.folder / repo
            files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            tree = [{"type": "file", "path": at, "size": len(data), "oid": blob(data)} for at, data in files.items()]
            info: Any = {"id": repo, "sha": COMMITS[repo], "siblings": [{"rfilename": name} for name in files]}
            info = tree if "tree" in parts else info
            return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        data = (self.folder / repo / "/".join(parts[5:])).read_bytes()
        self.send(200, data, {"ETag": f'"{blob(data)}"', "X-Repo-Commit": COMMITS[repo]})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub with the copy of MIRACL, and an empty cache."""
    awake = threading.Event()
    handler = type("OneHub", (Hub,), {"folder": copies.miracl(tmp_path / "hub"), "awake": awake})
    with serving(handler) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("THREEFOLD_OFFLINE", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield handler
        awake.set()


def load() -> Any:
    (task,) = named_tasks("miracl:sw")
    return task.load()


def test_download_then_offline(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    with pytest.raises(OfflineError, match="miracl/miracl is not in the local cache and offline mode is on"):
        load()
    monkeypatch.delenv("THREEFOLD_OFFLINE")
    task = load()
    assert len(task.documents) == 3
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    assert load().fingerprint() == task.fingerprint()


def test_a_damaged_file_is_never_read(hub: type[Hub], tmp_path: Path) -> None:
    load()
    path = next((tmp_path / "cache").rglob("docs-0.jsonl.gz"))
    path.resolve().write_bytes(gzip.compress(b'{"docid": "1#0", "text": "other"}'))
    with pytest.raises(EvaluationError, match=r"docs-0.jsonl.gz is damaged: its hash is \w+, not \w+. Delete"):
        load()


def test_what_the_hub_has_not(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="the hub has no data set owner/absent at revision main"):
        fetch(HubFiles("owner/absent", "main", ("x",)))
    with pytest.raises(EvaluationError, match=r"no file nothing\.tsv; the data set miracl/miracl has another layout"):
        fetch(HubFiles("miracl/miracl", QUERIES_REVISION, ("nothing.tsv",)))
    load()
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    load_other = HubFiles("miracl/miracl", QUERIES_REVISION, ("other.tsv",))
    with pytest.raises(OfflineError, match=r"no file other\.tsv in the cache and offline mode is on"):
        fetch(load_other)


def test_conditions_of_use(hub: type[Hub]) -> None:
    hub.gated = True
    with pytest.raises(EvaluationError, match="miracl/miracl has conditions of use: accept them on its page"):
        load()


def test_a_hub_that_cannot_be_reached(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library tries again for 23 seconds
    with pytest.raises(OfflineError, match="miracl/miracl"):
        load()


def test_a_hub_that_never_answers(hub: type[Hub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = load()
    hub.silent = True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    assert load().fingerprint() == task.fingerprint()
    shutil.rmtree(tmp_path / "cache")
    said = r"miracl/miracl is not in .* the hub cannot be reached \(no answer in 0\.2 s: HF_HUB_ETAG_TIMEOUT\)\. Downl"
    with pytest.raises(OfflineError, match=said):
        load()


@pytest.mark.parametrize("answered", range(4))
def test_a_hub_that_falls_silent(hub: type[Hub], answered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """About the data set, its commit, its files, the first of them: whatever is asked last is not waited for."""
    hub.tires_after = answered
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library tries again for 23 seconds
    with pytest.raises(
        OfflineError, match=r"the data set miracl/miracl .*\(no answer in 0\.1 s: HF_HUB_ETAG_TIMEOUT\)"
    ):
        load()
    hub.tires_after = 10**9
    assert len(load().documents) == 3


def test_limits_are_for_our_downloads_alone(hub: type[Hub]) -> None:
    if not hasattr(huggingface_hub.get_session(), "event_hooks"):
        pytest.skip("older libraries have a session per thread")
    hooks = huggingface_hub.get_session().event_hooks["request"]
    load()
    assert huggingface_hub.get_session().event_hooks["request"] == hooks


@pytest.mark.parametrize("error", [httpx.ReadError("cut off"), OSError("cut off"), RuntimeError("cut\noff")])
def test_a_connection_that_breaks(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(siblings=[]))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(OfflineError, match=r"^the data set owner/name cannot be downloaded: cut off$"):
        fetch(HubFiles("owner/name", "main", ("x",)))


@pytest.mark.parametrize(
    ("status", "reason"), [(500, "the hub answered with HTTP 500"), (None, "the hub cannot be reached")]
)
def test_a_hub_that_fails_is_not_out_of_reach(status: int | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        failed = OSError("failed")
        if status:
            failed.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
        raise LocalEntryNotFoundError("not found") from failed

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(siblings=[]))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.delenv("THREEFOLD_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(OfflineError, match=f"not in the local cache and {reason}"):
        fetch(HubFiles("owner/name", "main", ("x",)))


def test_files_that_are_missing_are_named(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(huggingface_hub, "get_cached_repo_tree"):
        pytest.skip("older libraries do not know")
    load()
    next((tmp_path / "cache").rglob("docs-0.jsonl.gz")).unlink()
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"is not complete in the local cache \(1 file\(s\) are missing \(.*docs-0"):
        load()


def test_copies_made_by_hand(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"owner/name does not exist; expected a copy of the data set owner/name"):
        fetch(HubFiles("owner/name", "main", ("x",)), tmp_path)
    copies.write(tmp_path / "owner/name/x", "1")
    assert fetch(HubFiles("owner/name", "main", ("x",)), tmp_path) == tmp_path / "owner/name"


def test_hashes_of_large_and_small_files(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    for hash in (
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
    ):
        copies.write(blobs / hash, "hello")  # sha256 of "hello"; `git hash-object` of it
        check_blob(blobs / hash)
    copies.write(blobs / "etag", "hello")
    with pytest.raises(EvaluationError, match="not named by a hash"):
        check_blob(blobs / "etag")
    copies.write(tmp_path / "plain", "hello")
    check_blob(tmp_path / "plain")

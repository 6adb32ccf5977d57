from __future__ import annotations

import hashlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from tests.web import Answering, serving

from threefold.encoder import sources
from threefold.encoder.sources import PINNED, find, wanted
from threefold.errors import CheckpointError, InputError, OfflineError
from threefold.hub import hub_errors, offline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of huggingface_hub


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and sockets that fail the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "BAAI/bge-m3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find("BAAI/bge-m3") == (Path("BAAI/bge-m3"), "BAAI/bge-m3", "")
    assert find(tmp_path).folder == tmp_path


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no revisions; leave out revision='main'"):
        find(tmp_path, "main")


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.bin is a file; expected the folder of a model"):
        find(tmp_path / "model.bin")


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(InputError, match="the name of the model is empty"):
        find("")


@pytest.mark.parametrize("name", ["bge-m3", "./none/here", "/none/here", "~/none/here", "a/b/c"])
def test_neither_folder_nor_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder nor a name on the hub"):
        find(name)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("variable", ["THREEFOLD_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_never_touches_the_network(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError, match="nobody/nothing is not in the local cache and offline mode is on"):
        find("nobody/nothing")


@pytest.mark.usefixtures("no_network")
def test_impossible_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"'no body/no\.\.thing' is neither a folder nor a possible name"):
        find("no body/no..thing")


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("TRUE", True), ("0", False), ("", False), ("no", False)])
def test_what_counts_as_offline(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("THREEFOLD_OFFLINE", value)
    assert offline() is expected


def test_the_revision_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(sources, "_HEADS", {})

    def download(name: str, *, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(tmp_path / "0123abc")

    answering(monkeypatch)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find("BAAI/bge-m3").revision == "0123abc"
    find("BAAI/bge-m3", "main")
    find("someone/else")
    assert asked == [("BAAI/bge-m3", PINNED["BAAI/bge-m3"]), ("BAAI/bge-m3", "main"), ("someone/else", None)]


def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has every model, with one file."""
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename="config.json")])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("disk full"), "disk full"),
        (httpx.RemoteProtocolError("peer closed connection\nwithout the body"), "connection without the body"),
        (httpx.ReadError(""), "ReadError"),
        (RuntimeError("Data processing error: CAS service"), "CAS service"),  # hf_xet
    ],
)
def test_a_network_that_fails_is_an_error_of_ours(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    answering(monkeypatch)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(OfflineError, match=f"^someone/else cannot be downloaded: .*{message}$"):
        find("someone/else")


def test_errors_of_the_installed_hub_library_are_known() -> None:
    library = getattr(huggingface_hub.hf_api, "httpx2", None) or getattr(huggingface_hub.hf_api, "httpx", None)
    if library is not None:  # older ones use requests, whose errors are OSErrors
        assert issubclass(library.TransportError, hub_errors())


# ---- a hub that runs in the test -------------------------------------------------------------------------

COMMIT = "0123456789" * 4
ROOT = ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "sparse_linear.pt"]
ELSEWHERE = [
    "onnx/model.safetensors", "onnx/config.json", "checkpoint-100/config.json", "checkpoint-100/sparse_linear.pt",
    "README.md", "training_args.bin", "adapter_model.safetensors", "1_Pooling/more/config.json",
]  # fmt: skip


class Hub(Answering):
    """someone/else with the files of `files`; `mood` is what it does instead of answering."""

    files: tuple[str, ...] = ()
    mood = ""
    awake = threading.Event()

    def answer(self) -> None:
        if self.mood == "silent":
            self.awake.wait(20)
            return
        if self.mood == "tired":  # this is its last answer
            type(self).mood = "silent"
        parts = self.path.split("?")[0].strip("/").split("/")
        if self.mood == "broken":
            return self.send(500)
        if "/".join(parts[2:4] if parts[0] == "api" else parts[:2]) != "someone/else":
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api":
            tree = [{"type": "file", "path": at, "size": len(at), "oid": self._hash(at)} for at in self.files]
            info = {"id": "someone/else", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            data = json.dumps(tree if "tree" in parts else info).encode()
            return self.send(200, data, {"Content-Type": "application/json"})
        name = "/".join(parts[4:])
        self.send(200, name.encode(), {"ETag": f'"{self._hash(name)}"', "X-Repo-Commit": COMMIT})

    def _hash(self, name: str) -> str:
        return hashlib.sha1(name.encode()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """The hub, and an empty cache."""
    awake = threading.Event()
    handler = type("OneHub", (Hub,), {"files": (*ROOT, "model.safetensors", *ELSEWHERE), "awake": awake})
    with serving(handler) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        for module in ("constants", "file_download"):  # older libraries have the address in both
            template = address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
        monkeypatch.delenv("THREEFOLD_OFFLINE", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield handler
        awake.set()


def fetched(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_only_the_files_of_the_model_are_fetched(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files += ("pytorch_model.bin", "model-00001-of-00002.safetensors")
    folder = find("someone/else").folder
    assert fetched(folder) == sorted([*ROOT, "model.safetensors"])
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    assert find("someone/else") == (folder, "someone/else", COMMIT)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["pytorch_model.bin", "pytorch_model.bin.index.json"], ["pytorch_model.bin.index.json", "pytorch_model.bin"]),
        (["pytorch_model.bin", "model-00001-of-00001.safetensors"], ["model-00001-of-00001.safetensors"]),
        (["pytorch_model-00001-of-00002.bin", "x/model.safetensors"], ["pytorch_model-00001-of-00002.bin"]),
        (["model.onnx", "model.fp16.safetensors"], []),
    ],
)
def test_one_form_of_weights_is_wanted(there: list[str], expected: list[str]) -> None:
    assert wanted(there) == expected


@pytest.mark.parametrize("revision", [None, COMMIT])
@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("silent", r"the hub cannot be reached \(no answer in 1 s: HF_HUB_ETAG_TIMEOUT\)"),
        ("broken", "the hub answered with HTTP 500"),
    ],
)
def test_a_hub_that_does_not_answer_leaves_the_cache(
    hub: type[Hub], mood: str, reason: str, revision: str | None, tmp_path: Path
) -> None:
    first = find("someone/else", revision)
    hub.mood = mood
    assert find("someone/else", revision) == first
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(OfflineError, match=f"someone/else is not in the local cache and {reason}; there is no folder"):
        find("someone/else", revision)


def test_a_hub_that_falls_silent(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.mood = "tired"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library tries again for 23 seconds
    with pytest.raises(OfflineError, match=r"someone/else is not in .* \(no answer in 0\.1 s: HF_HUB_ETAG_TIMEOUT\); "):
        find("someone/else")


@pytest.mark.skipif(not hasattr(huggingface_hub, "get_cached_repo_tree"), reason="older libraries do not know")
@pytest.mark.parametrize("how", ["offline", "silent"])
def test_a_snapshot_with_gaps_is_not_opened(hub: type[Hub], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find("someone/else").folder
    (folder / "sparse_linear.pt").unlink()
    hub.mood = how
    if how == "offline":
        monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    with pytest.raises(
        OfflineError, match=r"not complete in the local cache \(1 file\(s\) are missing \(sparse_linear\.pt\)\) and"
    ):
        find("someone/else")
    monkeypatch.delenv("THREEFOLD_OFFLINE", raising=False)
    hub.mood = ""
    assert (find("someone/else").folder / "sparse_linear.pt").is_file()


def test_heads_that_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older hub libraries take any snapshot for a whole one."""
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    (tmp_path / "sparse_linear.pt").write_bytes(b"")
    with pytest.raises(OfflineError, match=r"not complete in the local cache \(colbert_linear\.pt missing in "):
        find("BAAI/bge-m3")


def test_a_name_that_is_neither_on_the_hub_nor_here(hub: type[Hub]) -> None:
    with pytest.raises(
        CheckpointError, match=r"^the hub has no model out/model, and there is no folder of this name: "
    ):
        find("out/model")


def test_an_installation_without_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "embedded_folder", lambda: tmp_path)
    with pytest.raises(CheckpointError, match="the embedded model is not in this installation"):
        find(None)

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from threefold.encoder import sources
from threefold.encoder.sources import PINNED, find, offline
from threefold.errors import CheckpointError, InputError, OfflineError

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

    def download(name: str, *, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(tmp_path / "0123abc")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find("BAAI/bge-m3").revision == "0123abc"
    find("BAAI/bge-m3", "main")
    find("someone/else")
    assert asked == [("BAAI/bge-m3", PINNED["BAAI/bge-m3"]), ("BAAI/bge-m3", "main"), ("someone/else", None)]


def test_a_network_that_fails_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(OfflineError, match="someone/else cannot be downloaded: disk full"):
        find("someone/else")


def test_an_installation_without_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "embedded_folder", lambda: tmp_path)
    with pytest.raises(CheckpointError, match="the embedded model is not in this installation"):
        find(None)

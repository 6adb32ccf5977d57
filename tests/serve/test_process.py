"""`threefold serve` as a process: a real encoder on a tiny checkpoint, signals, errors of the command line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.encoder.checkpoints import bge_m3
from tests.serve.fakes import serving

from threefold.cli.main import main
from threefold.collection import Collection
from threefold.encoder.encoder import Encoder
from threefold.errors import InputError, StoreError, WorkerError
from threefold.serve.draining import CutOff
from threefold.serve.keys import create_key
from threefold.serve.ledger import Ledger
from threefold.serve.run import listen, make_server
from threefold.serve.settings import ModelSettings, ServeConfig
from threefold.types import Document

Running = subprocess.Popen[str]

WAIT_S = 90.0
TEXTS = ["The quick brown fox", "搜索引擎把文档切成段落。"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bge_m3(tmp_path_factory.mktemp("models") / "tiny-m3")


@contextmanager
def process(
    *arguments: str, program: Sequence[str] = ("-m", "threefold"), name: str = "serve"
) -> Iterator[tuple[Running, str]]:
    """The command on a free port, and its address."""
    command = [sys.executable, *program, name, "--port", "0", "--device", "cpu", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stderr is not None
        said = ""
        address = None
        for line in running.stderr:
            said += line
            address = re.search(r"at\s+(https?://\S+)", said)
            if address:
                break
        assert address, said
        try:
            yield running, address.group(1)
        finally:
            running.kill()


def test_a_real_encoder_behind_every_contract(folder: Path) -> None:
    encoder = Encoder(folder, device="cpu", precision="float32")
    expected = encoder.encode(TEXTS)
    assert expected.dense is not None
    assert expected.sparse is not None
    name = encoder.card.name
    with process("--model", str(folder), "--precision", "float32") as (_, url), httpx.Client(base_url=url) as client:
        body = {"model": name, "input": TEXTS, "embedding_types": ["dense", "sparse", "multi_vector"]}
        data = client.post("/v1/embeddings", json=body).json()["data"]
        np.testing.assert_allclose([item["embedding"] for item in data], expected.dense, atol=1e-5)
        for i, item in enumerate(data):
            sparse = item["sparse_embedding"]
            found = dict(zip(sparse["indices"], sparse["values"], strict=True))
            assert found == pytest.approx(expected.sparse.row(i), abs=1e-5)
        states = client.post("/embed_all", json={"inputs": TEXTS[0]}).json()[0]
        first = np.array(states[0]) / np.linalg.norm(states[0])
        np.testing.assert_allclose(first, expected.dense[0], atol=1e-5)
        ranks = client.post("/rerank", json={"query": TEXTS[0], "texts": TEXTS}).json()
        assert ranks[0]["index"] == 0


def test_sigterm_answers_what_is_running_and_ends_well(folder: Path) -> None:
    with process("--model", str(folder)) as (running, url), httpx.Client(base_url=url, timeout=WAIT_S) as client:
        name = client.get("/v1/models").json()["data"][0]["id"]
        body = {"model": name, "input": ["fox dog box " * 300] * 12, "priority": "bulk"}
        with ThreadPoolExecutor() as pool:
            request = pool.submit(client.post, "/v1/embeddings", json=body)
            while "threefold_ready{" in (text := httpx.get(f"{url}/metrics").text):
                batches = re.search(r'threefold_batch_texts_count\{model="[^"]+"\} (\S+)', text)
                waiting = re.search(r'threefold_queued_tokens\{model="[^"]+"\} (\S+)', text)
                if (waiting and float(waiting[1]) > 0) or (batches and float(batches[1]) > 0):
                    break
            running.send_signal(signal.SIGTERM)
            response = request.result(WAIT_S)
        assert response.status_code == 200
        assert len(response.json()["data"]) == 12
        assert running.wait(WAIT_S) == 0


@pytest.mark.parametrize("busy", [False, True])
def test_a_second_ctrl_c_ends_at_once_and_in_order(folder: Path, tmp_path: Path, busy: bool) -> None:
    """A habit, and the way out where an answer takes long: no traceback, and what is open is closed."""
    flags = ("--model", str(folder), "--collections", str(tmp_path / "c"))
    with process(*flags) as (running, url), httpx.Client(base_url=url, timeout=WAIT_S) as client, ExitStack() as stack:
        client.put("/collections/papers").raise_for_status()
        if busy:
            host, port = url.removeprefix("http://").split(":")
            waiting = stack.enter_context(socket.create_connection((host, int(port)), timeout=WAIT_S))
            waiting.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")  # and no more
        running.send_signal(signal.SIGINT)
        time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0  # drain_s is 30
        assert running.stderr is not None
        assert "Traceback" not in (said := running.stderr.read()), said
    with Collection(tmp_path / "c" / "default" / "papers", Encoder(folder, device="cpu"), create=False) as papers:
        assert papers.count() == 0


def test_what_lasts_longer_than_the_server_drains_ends_in_order(folder: Path, tmp_path: Path) -> None:
    flags = ("--model", str(folder), "--collections", str(tmp_path / "c"), "--set", "drain_s=1")
    with process(*flags) as (running, url), ExitStack() as connections:
        host, port = url.removeprefix("http://").split(":")
        assert httpx.put(f"{url}/collections/aa").status_code == 201
        upload, body = (connections.enter_context(socket.create_connection((host, int(port)), WAIT_S)) for _ in "ab")
        upload.sendall(b"POST /collections/aa/documents HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        upload.sendall(b'1c\r\n{"id": "a", "text": "a fox"}\r\n2\r\n\n\n\r\n')
        body.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert upload.recv(1000).startswith(b"HTTP/1.1 200 ")
        while httpx.get(f"{url}/collections/aa").json()["chunks"] == 0:
            pass  # what has come is stored after a moment
        running.send_signal(signal.SIGTERM)
        assert running.stderr is not None
        written = running.stderr.read()
        assert running.wait(WAIT_S) == 0
        rest = upload.makefile("rb").read()
        assert body.recv(1000).startswith(b"HTTP/1.1 503 ")
    assert b"the server is shutting down; what was stored stays" in rest
    assert rest.endswith(b"\r\n0\r\n\r\n")
    assert "Traceback" not in written
    assert written.count("/embed 503") == 1


def test_an_answer_that_nobody_reads_is_a_line_when_the_server_stops(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make_server(ServeConfig())

    async def stuck(*_: object) -> None:
        await asyncio.Event().wait()

    async def cancelled() -> None:
        task = asyncio.ensure_future(CutOff(stuck, server)({}, stuck, stuck))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    server.draining = True
    asyncio.run(cancelled())
    assert [record.getMessage() for record in caplog.records] == [
        "an answer was broken off: it was not read within drain_s=30"
    ]


def test_prompts_of_models(folder: Path) -> None:
    """Those of the settings, before texts whose request says what they are; their tokens are counted."""
    further = ModelSettings(str(folder), name="further", document_prompt="quick brown ")
    config = ServeConfig(
        model=str(folder), device="cpu", precision="float32", query_prompt="lazy dog ", models=(further,)
    )
    plain = Encoder(folder, device="cpu", precision="float32")
    tokens = {text: int(plain.tokenizer.count([text])[0]) for text in ("fox", "lazy dog fox", "quick brown fox")}
    assert len(set(tokens.values())) > 1
    with serving(make_server(config)) as url, httpx.Client(base_url=url, timeout=WAIT_S) as client:
        main, *_ = [one["id"] for one in client.get("/v1/models").json()["data"]]
        for model, kind, read in [
            (main, None, "fox"),
            (main, "query", "lazy dog fox"),
            (main, "document", "fox"),
            ("further", "query", "fox"),
            ("further", "passage", "quick brown fox"),
        ]:
            body = {"model": model, "input": "fox", **({"input_type": kind} if kind else {})}
            answer = client.post("/v1/embeddings", json=body).json()
            expected = plain.encode([read]).dense
            assert expected is not None
            np.testing.assert_allclose(answer["data"][0]["embedding"], expected[0], atol=1e-5)
            assert answer["usage"] == {"prompt_tokens": tokens[read], "total_tokens": tokens[read]}
        tei = client.post("/embed", json={"inputs": "fox", "prompt_name": "query"})
        np.testing.assert_allclose(tei.json()[0], plain.encode(["lazy dog fox"]).dense[0], atol=1e-5)  # type: ignore[index]
        assert tei.headers["x-compute-tokens"] == str(tokens["lazy dog fox"])
        cohere = {"model": "further", "texts": ["fox"], "input_type": "search_document"}
        billed = client.post("/v2/embed", json=cohere).json()["meta"]["billed_units"]["input_tokens"]
        assert billed == tokens["quick brown fox"]


#: A GPU that fails at the first text of more than 30 tokens, and then always.
LOSES_ITS_GPU = """
import sys
from threefold.cli.main import main
from threefold.encoder.encoder import Encoder
encode_tokens, lost = Encoder.encode_tokens, []
def broken(self, tokens, *rest, **options):
    if lost or tokens.lengths.max(initial=0) > 30 and "w w w" in self.tokenizer.decode(tokens[0].tolist()):
        lost.append(1)
        raise RuntimeError("CUDA error: device-side assert triggered")
    return encode_tokens(self, tokens, *rest, **options)
Encoder.encode_tokens = broken
sys.exit(main())
"""


def test_a_server_whose_gpu_is_lost_ends(folder: Path) -> None:
    program = ("-c", LOSES_ITS_GPU)
    with process("--model", str(folder), program=program) as (running, url), httpx.Client(base_url=url) as client:
        assert client.post("/embed", json={"inputs": "fox"}).status_code == 200
        answer = client.post("/embed", json={"inputs": "w " * 200})
        assert answer.status_code == 503
        assert "the GPU of this server failed" in answer.text
        assert running.wait(WAIT_S) == WorkerError.exit_code
        assert running.stderr is not None
        said = running.stderr.read()
    assert "the device is lost, and with it this process: CUDA error: device-side assert triggered" in said


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed")
def test_tls_by_flags(folder: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    flags = ("--set", f"tls_cert={certificate}", "--set", f"tls_key={key}")
    with process("--model", str(folder), *flags) as (_, url):
        assert url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert httpx.post(f"{url}/embed", json={"inputs": TEXTS}, verify=trusting).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/health")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url.replace('https', 'http')}/health")


def test_certificates_that_cannot_be_read_are_said_before_an_address(folder: Path, tmp_path: Path) -> None:
    flags = ["--set", f"tls_cert={tmp_path / 'a'}", "--set", f"tls_key={tmp_path / 'b'}", "--port", "0"]
    command = [sys.executable, "-m", "threefold", "serve", "--model", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2
    assert "cannot be used: [Errno 2]" in done.stderr.replace("\n", " ")
    assert "https://" not in done.stdout + done.stderr


def test_two_models_and_usage_that_outlives_a_kill(folder: Path, tmp_path: Path) -> None:
    """One config file; the second model is loaded by the first request for it; what was used is on disk in a second."""
    keys, usage = tmp_path / "keys.json", tmp_path / "usage.sqlite"
    secret, key = create_key(keys, "ann", ["embed", "metrics"])
    file = tmp_path / "serve.toml"
    file.write_text(
        f'[serve]\nmodel = "{folder}"\nkeys_file = "{keys}"\nusage_file = "{usage}"\n'
        f"[serve.prices.second]\nembed = 1.0\n"
        f'[[serve.models]]\npath = "{folder}"\nname = "second"\nprecision = "float32"\n',
        encoding="utf-8",
    )
    headers = {"authorization": f"Bearer {secret}"}
    with (
        process("--config", str(file)) as (running, url),
        httpx.Client(base_url=url, timeout=WAIT_S, headers=headers) as client,
    ):
        states = {one["id"]: one["state"] for one in client.get("/v1/models").json()["data"]}
        assert states == {str(folder): "ready", "second": "unloaded"}
        answer = client.post("/v1/embeddings", json={"model": "second", "input": TEXTS}).json()
        expected = Encoder(folder, device="cpu", precision="float32").encode(TEXTS).dense
        assert expected is not None
        np.testing.assert_allclose([one["embedding"] for one in answer["data"]], expected, atol=1e-5)
        bytes_loaded = re.search(r'model_bytes\{model="second"\} (\S+)', client.get("/metrics").text)
        assert bytes_loaded
        assert float(bytes_loaded[1]) > 1_000
        ledger = Ledger(usage)
        while not ledger.keys():
            pass
        running.kill()
        running.wait(WAIT_S)
        ((slot, amount),) = ledger.usage("2000-01-01", "2999-12-31")
        ledger.close()
    tokens = answer["usage"]["total_tokens"]
    assert (slot.key, slot.model, slot.route) == (key.id, "second", "/v1/embeddings")
    assert (amount.requests, amount.tokens, amount.picos) == (1, tokens, tokens * 1_000_000)


def test_with_a_log_in_json_every_line_is_json(folder: Path) -> None:
    flags = ("--log-format", "json", "--also", "some/model")
    command = [sys.executable, "-m", "threefold", "serve", "--port", "0", "--device", "cpu", "--model", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stderr is not None
        written = []
        for line in running.stderr:
            written.append(line)
            if "Application startup complete" in line:  # from here on signals are heard
                running.send_signal(signal.SIGTERM)
        assert running.wait(WAIT_S) == 0
    lines = [json.loads(line) for line in written]
    said = [line["message"] for line in lines if line["logger"] == "threefold.cli.serve"]
    assert [text.split()[0] for text in said[:2]] == ["serving", "further"]
    assert "tokens/s when warming up" in said[2]
    assert len(said) == 4


def test_with_a_log_in_json_a_failed_start_is_json_too(folder: Path, tmp_path: Path) -> None:
    """Whatever asked for JSON, and also where the settings cannot be read otherwise."""
    file = tmp_path / "serve.toml"
    file.write_text('[serve]\nlog_format = "json"\nnonsense = 1\n', encoding="utf-8")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        taken = _failed("--log-format", "json", "--model", str(folder), "--port", port)
    assert f"cannot listen on 127.0.0.1:{port}" in taken["message"]
    assert (taken["level"], taken["logger"]) == ("error", "threefold.cli.serve")
    assert "unknown setting 'nonsense'" in _failed("--config", str(file))["message"]
    assert "max_inputs" in _failed("--set", "max_inputs=0", THREEFOLD_SERVE_LOG_FORMAT="json")["message"]
    missing = _failed("--set", "log_format=json", "--model", str(tmp_path), "--port", "0", status=3)
    assert str(tmp_path) in missing["message"]


def _failed(*flags: str, status: int = 2, **environment: str) -> dict[str, str]:
    """The last line of a server that did not start; those before it are JSON as well."""
    command = [sys.executable, "-m", "threefold", "serve", "--device", "cpu", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, env=environment)
    assert (done.returncode, done.stdout) == (status, "")
    said: list[dict[str, str]] = [json.loads(line) for line in done.stderr.splitlines()]
    return said[-1]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "No space left"),
        (ZeroDivisionError("secret"), 1, "an unexpected error"),
    ],
)
def test_whatever_ends_the_start_is_one_line_of_json(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr("threefold.serve.run.serve", failing)
    for logger in map(logging.getLogger, ("threefold", "uvicorn.error")):
        for name in ("handlers", "level", "propagate"):  # as they were, afterwards
            monkeypatch.setattr(logger, name, getattr(logger, name))
    try:
        ended = main(["serve", "--log-format", "json"])
    except SystemExit as exit:
        ended = int(str(exit.code))
    assert ended == status
    line = json.loads(capsys.readouterr().err)
    assert said in line["message"]
    assert ("ZeroDivisionError" in line.get("error", "")) == (status == 1)


def test_small_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY only where the protocol is TCP by name; without it every answer waits 40 ms."""
    with listen(ServeConfig(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--model", str(folder), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_collection_in_a_browser(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read and never changed, whatever its name, and left as it was."""
    monkeypatch.setenv("THREEFOLD_HOME", str(tmp_path / "home"))
    place = tmp_path / "my papers.2"
    with Collection(place, Encoder(folder, device="cpu", precision="float32")) as papers:
        papers.add([Document("fox", "The quick brown fox.")])
    with (
        process("--in", str(place), name="browse") as (running, url),
        httpx.Client(base_url=url.removesuffix("/ui"), timeout=WAIT_S) as client,
    ):
        assert url.endswith("/ui")
        with pytest.raises(StoreError, match="another process has this collection open"):  # from the start
            Collection(place, Encoder(folder, device="cpu", precision="float32"), create=False)
        assert client.get("/ui").status_code == 200
        assert client.get("/ui", headers={"host": "localhost:1"}).status_code == 200
        for host in ("papers.example", "127.0.0.1.papers.example:80", "localhost.example"):  # DNS rebinding
            assert client.get("/collections", headers={"host": host}).status_code == 421
        assert client.get("/collections").json() == {"collections": [{"name": "my-papers-2"}]}
        hits = client.post("/collections/my-papers-2/search", json={"query": "fox", "why": True}).json()["hits"]
        assert [hit["id"] for hit in hits] == ["fox#0"]
        more = client.post("/collections/my-papers-2/recommend", json={"like": ["fox"]}).json()["hits"]
        assert more == []
        refused = [
            client.put("/collections/x"),
            client.delete("/collections/my-papers-2"),
            client.post("/collections/my-papers-2/documents", content='{"id": "a", "text": "b"}'),
            client.post("/collections/my-papers-2/documents/delete", json={"ids": ["fox"]}),
            client.post("/v1/embeddings", json={"input": "x"}),
        ]
        assert [one.status_code for one in refused] == [405, 405, 405, 404, 404]
        running.send_signal(signal.SIGINT)
        assert running.wait(WAIT_S) == 0
    with Collection(place, Encoder(folder, device="cpu", precision="float32"), create=False) as papers:
        assert papers.count() == 1


def test_a_collection_in_a_browser_of_the_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a browser is waited for until it ends; the page is answered meanwhile, and others are told who may read."""
    with Collection(tmp_path / "papers", Encoder(folder, device="cpu", precision="float32")) as papers:
        papers.add([Document("fox", "The quick brown fox.")])
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    looks = f"pathlib.Path({str(seen)!r}).write_text(str(request.urlopen(sys.argv[1], timeout={WAIT_S}).status))"
    browser.write_text(f"#!{sys.executable}\nimport pathlib, sys\nfrom urllib import request\n{looks}\n")
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    with process("--in", str(tmp_path / "papers"), "--host", "0.0.0.0", "--open", name="browse") as (running, url):
        assert running.stderr is not None
        assert "whoever reaches this address may read the collection" in running.stderr.readline()
        port = url.removesuffix("/ui").rpartition(":")[2]
        asked = httpx.get(f"http://127.0.0.1:{port}/collections", headers={"host": "desk.lan"}, timeout=WAIT_S)
        assert asked.status_code == 200
        for line in running.stderr:
            if "GET /ui 200" in line:
                break
        running.send_signal(signal.SIGINT)
        assert running.wait(WAIT_S) == 0
    assert seen.read_text() == "200"


def test_an_address_of_ipv6_can_be_opened(folder: Path) -> None:
    try:
        listen(ServeConfig(host="::1", port=0)).close()
    except InputError:
        pytest.skip("there is no IPv6 here")
    with process("--model", str(folder), "--host", "::1") as (_, url):
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}/health", timeout=WAIT_S).status_code == 200


def test_a_collection_that_is_open_elsewhere(folder: Path, tmp_path: Path) -> None:
    """Said at once, by its own name."""
    with Collection(tmp_path / "papers", Encoder(folder, device="cpu", precision="float32")):
        command = [sys.executable, "-m", "threefold", "browse", "--in", str(tmp_path / "papers"), "--device", "cpu"]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 4
    assert "error: papers: another process has this collection open" in done.stderr


def test_what_cannot_be_browsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    for place in ("docs", "absent"):
        assert main(["browse", "--in", str(tmp_path / place)]) == 4
        assert str(tmp_path / place) in capsys.readouterr().err.replace("\n", "")


def test_keys_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.json")
    assert main(["keys", "create", "someone", "--file", file, "--scopes", "embed", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert main(["keys", "create", "other", "--file", file]) == 0
    assert capsys.readouterr().out.startswith("tf-")
    assert main(["keys", "list", "--file", file, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [key["name"] for key in listed] == ["someone", "other"]
    assert made["key"] not in json.dumps(listed)
    assert main(["keys", "revoke", made["id"], "--file", file]) == 0
    assert main(["keys", "list", "--file", file]) == 0
    assert made["id"] not in capsys.readouterr().out


def test_settings_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--show-config", "--port", "9", "--set", "limits.batch_s=0.5", "--cors", "*"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["port"], shown["limits"]["batch_s"], shown["cors_origins"]) == (9, 0.5, ["*"])
    assert main(["serve", "--show-config", "--also", "a/b", "--also", "c/d", "--set", "model_memory_mb=7"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in shown["models"]] == ["a/b", "c/d"]
    assert shown["model_memory_mb"] == 7
    assert main(["serve", "--show-config", "--set", "port"]) == 2
    assert "--set port: expected name=value" in capsys.readouterr().err


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("threefold.cli.serve.find_spec", lambda name: None if name == "uvicorn" else object())
    assert main(["serve"]) == 7
    assert 'pip install "threefold[server]"' in capsys.readouterr().err.replace("\n", " ")

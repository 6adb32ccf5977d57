"""`threefold serve` on a real Ray Serve of this machine, two replicas of one core each; the embedded model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
import pytest
from tests.integrations.local_ray import MARK, local_ray

from threefold.cli import ray_serve as command
from threefold.encoder.encoder import Encoder
from threefold.errors import ConfigError, InputError, MissingExtraError, UnavailableError
from threefold.integrations import ray_serve
from threefold.integrations.ray_serve import ONGOING, Replica, deployment
from threefold.serve.hosted import REFUSED, Application, Hosted, hosted

TEXTS = ["What is BGE M3?", "Définition de BM25", "搜索引擎把文档切成段落。"]
WAIT_S = 60.0
needs_ray = pytest.mark.peers
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # Ray's


@pytest.fixture(scope="module")
def ray() -> Any:
    """A cluster of one machine that this process is connected to."""
    return local_ray()


@pytest.fixture(scope="module")
def port() -> int:
    """A free one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def serve(ray: Any, port: int) -> Iterator[Any]:
    """Ray Serve."""
    from ray import serve

    started: Any = serve
    started.start(http_options={"host": "127.0.0.1", "port": port})
    yield started
    started.shutdown()


@pytest.fixture(scope="module")
def address(serve: Any, port: int, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two replicas behind Ray's proxy, by what `serve run` calls."""
    file = tmp_path_factory.mktemp("serve") / "threefold.toml"
    file.write_text('[serve]\nprecision = "float32"\nserved_names = ["small"]\n')
    with mock.patch.object(ray_serve, "LOOK_S", 1.0):  # a replica that is killed is missed sooner
        app = command.app({"config": str(file), "replicas": "2", "max_inputs": "2_000"})
    serve.run(app, name="threefold")
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=WAIT_S) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    found = Encoder(device="cpu", precision="float32").encode(TEXTS).dense
    assert found is not None
    return np.asarray(found)


def replicas() -> set[int]:
    """Their processes."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            named = (folder / "cmdline").read_bytes().startswith(b"ray::ServeReplica:threefold")
            if named and f"{MARK}=1".encode() in (folder / "environ").read_bytes():
                found.add(int(folder.name))
    return found


def running(serve: Any) -> int:
    """How many replicas Ray gives requests to."""
    return int(serve.status().applications["threefold"].deployments["threefold"].replica_states.get("RUNNING", 0))


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert what()


# ---- with Ray ------------------------------------------------------------------------------------------


@needs_ray
def test_the_clients_of_others_get_the_vectors_of_the_library(address: str, expected: np.ndarray) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    for model in ("threefold-mini", "small"):
        data = client.embeddings.create(model=model, input=TEXTS).data
        np.testing.assert_allclose([one.embedding for one in data], expected, atol=1e-5)
    found = httpx.post(f"{address}/embed", json={"inputs": TEXTS[0]}, timeout=WAIT_S).json()
    np.testing.assert_allclose(found, expected[:1], atol=1e-5)
    ranks = httpx.post(f"{address}/rerank", json={"query": "foxes", "texts": ["BM25", "A fox."]}, timeout=WAIT_S)
    assert ranks.json()[0]["index"] == 1


@needs_ray
def test_errors_and_headers_are_ours(http: httpx.Client) -> None:
    refused = http.post("/v1/embeddings", json={"model": "none", "input": "fox"}, headers={"x-request-id": "mine"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert refused.headers.get_list("x-request-id") == ["mine"]
    assert len(http.get("/health").headers.get_list("x-request-id")) == 1
    assert http.get("/nothing").json()["error"]["message"] == "there is no route /nothing"
    metrics = http.get("/metrics")
    assert (metrics.status_code, "one of several servers" in metrics.json()["error"]) == (404, True)


@needs_ray
def test_bodies_that_stream_and_large_answers(http: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"model": "threefold-mini", "input": ['
        for number in range(1_000):
            yield b'"text number %d",' % number
        yield b'"the last"], "embedding_types": ["multi_vector"], "multi_vector_dtype": "float32"}'

    answer = http.post("/v1/embeddings", content=body())
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 1_001
    assert len(answer.content) > 3_000_000
    too_many = http.post("/embed", json={"inputs": ["fox"] * 2_001})
    assert (too_many.status_code, too_many.json()["error_type"]) == (422, "Validation")


@needs_ray
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_killed_replica_is_replaced_while_requests_go_on(serve: Any, address: str, expected: np.ndarray) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=3)
    answered, over, errors = [0], threading.Event(), list[Exception]()

    def ask() -> None:
        while not over.is_set():
            try:
                vector = client.embeddings.create(model="small", input=TEXTS[0]).data[0].embedding
                np.testing.assert_allclose(vector, expected[0], atol=1e-5)
            except Exception as error:
                errors.append(error)
            answered[0] += 1

    before = replicas()
    assert len(before) == 2
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        wait_for(lambda: answered[0] > 5)
        killed = before.pop()
        os.kill(killed, signal.SIGKILL)
        done = answered[0]
        wait_for(lambda: len(replicas() - {killed}) == 2 and running(serve) == 2)
    finally:
        over.set()
        asking.join()
    assert errors == []
    assert answered[0] > done + 5
    assert before < replicas()
    # Both answer: one was made seconds after the other.
    models = [httpx.get(f"{address}/v1/models", timeout=WAIT_S).json() for _ in range(40)]
    assert len({one["data"][0]["created"] for one in models}) == 2


@needs_ray
def test_what_is_running_is_answered_when_replicas_end(serve: Any, http: httpx.Client) -> None:
    """The last one: it takes the application away."""
    ending = threading.Event()
    answers: list[httpx.Response] = []

    def body() -> Iterator[bytes]:
        yield b'{"model": "small", "input": ["a fox",'
        assert ending.wait(WAIT_S)
        time.sleep(1.0)
        yield b'"a den"]}'

    asking = threading.Thread(target=lambda: answers.append(http.post("/v1/embeddings", content=body())))
    asking.start()
    time.sleep(0.5)
    ending.set()
    serve.delete("threefold")
    asking.join()
    assert [len(one.json()["data"]) for one in answers] == [2]
    assert http.get("/health").status_code == 404


@needs_ray
def test_why_a_replica_does_not_start_is_what_ray_says(serve: Any) -> None:
    app = deployment(hosted(None, {"model": "/nonexistent/x"}, {}), cpus=0, max_constructor_retry_count=1)
    with pytest.raises(RuntimeError):
        serve.run(app, name="wrong", route_prefix="/wrong")
    status = serve.status().applications["wrong"].deployments["threefold"]
    assert "CheckpointError" in status.message
    assert "/nonexistent/x" in status.message
    serve.delete("wrong")


# ---- without Ray ---------------------------------------------------------------------------------------


class Serve:
    """Ray Serve, as far as an application is bound; notes what it is told."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def ingress(self, app: Callable[[], Any]) -> Callable[[type], type]:
        return lambda replica: replica

    def deployment(self, **options: Any) -> Callable[[type], Serve]:
        self.told = options
        return lambda replica: self

    def bind(self, one: Hosted, threads: int) -> tuple[dict[str, Any], Hosted, int]:
        return self.told, one, threads


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_serve, "serve_package", Serve)


def test_what_ray_is_told(bound: None) -> None:
    told, one, threads = deployment(hosted(None, {"drain_s": 20}, {}), replicas=4, cpus=8)
    assert told["num_replicas"] == 4
    assert told["ray_actor_options"] == {"num_cpus": 8, "num_gpus": 0}
    assert told["max_ongoing_requests"] == ONGOING
    assert told["graceful_shutdown_timeout_s"] > 20
    assert (one.settings["device"], threads) == ("cpu", 8)
    scaled = {"min_replicas": 1, "max_replicas": 9}
    told, one, threads = deployment(
        hosted(None, {}, {}), cpus=0.5, gpus=1, autoscaling_config=scaled, max_ongoing_requests=9
    )
    assert "num_replicas" not in told
    assert (told["autoscaling_config"], told["max_ongoing_requests"]) == (scaled, 9)
    assert (one.settings["device"], threads) == ("cuda", 1)


def test_the_command_reads_files_and_settings(bound: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "threefold.toml"
    file.write_text(
        '[serve]\nmodel = "a"\ndrain_s = 5\n[[serve.models]]\npath = "b"\n[serve.limits]\nbatch_tokens = 64'
    )
    monkeypatch.setenv("THREEFOLD_SERVE_MAX_INPUTS", "7")
    given = {"config": str(file), "replicas": "3", "gpus": 1, "drain_s": "9", "limits.queued_tokens": "50"}
    told, one, _ = command.app(given)
    assert (told["num_replicas"], told["ray_actor_options"]["num_gpus"]) == (3, 1)
    settings = one.settings
    assert (settings["model"], settings["drain_s"], settings["max_inputs"]) == ("a", 9, 7)
    assert (settings["models"][0]["path"], settings["models"][0]["device"]) == ("b", "")
    assert (settings["limits"]["batch_tokens"], settings["limits"]["queued_tokens"]) == (64, 50)
    monkeypatch.setenv("THREEFOLD_SERVE_CONFIG", str(file))
    assert command.app({})[1].drain_s == 5
    with pytest.raises(InputError, match="replicas: expected a number, got 'many'"):
        command.app({"replicas": "many"})
    with pytest.raises(InputError, match="replicas must be at least 1"):
        command.app({"replicas": 0})
    with pytest.raises(ConfigError, match="unknown setting 'replica'"):
        command.app({"replica": 2})


@pytest.mark.parametrize("name", REFUSED)
def test_what_several_servers_cannot_keep_is_refused(name: str) -> None:
    values: dict[str, Any] = {"host": "0.0.0.0", "port": 9_000}
    given = {name: values.get(name, "somewhere")} | ({"tls_cert": "a", "tls_key": "b"} if "tls" in name else {})
    with pytest.raises(ConfigError, match="tls_cert is not for" if "tls" in name else f"{name} is not for"):
        hosted(None, given, {})
    hosted(None, {"host": "127.0.0.1", "port": 8_000, "collections": "", "keys_file": ""}, {})  # as if not given


@pytest.mark.parametrize(
    ("device", "gpus", "said"),
    [
        ("cuda:1", 1, "'cuda:1': each process is given its GPU"),
        ("mps", 0, "use auto, cpu or cuda"),
        ("cuda", 0, "no process is given a GPU; say gpus=1"),
        ("cpu", 1, "a GPU that nothing would use"),
    ],
)
def test_devices_that_do_not_fit(bound: None, device: str, gpus: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        deployment(hosted(None, {"device": device}, {}), gpus=gpus)
    if device != "cpu":  # beside a GPU a further model may be on the CPU
        with pytest.raises(ConfigError, match=said):
            deployment(hosted(None, {"models": [{"path": "b", "device": device}]}, {}), gpus=gpus)


def test_another_version_is_refused() -> None:
    with pytest.raises(InputError, match=r"the settings are of 0\.0\.1; install the same"):
        asyncio.run(Hosted(hosted(None, {}, {}).settings, "0.0.1").open(1))


def test_health_is_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        why: str | None = None

        def problem(self) -> str | None:
            return self.why

    class Running(Application):
        def __init__(self) -> None:
            self._server: Any = Told()

    app = Running()
    monkeypatch.setattr(Replica, "running", app, raising=False)
    asyncio.run(Replica.check_health(object.__new__(Replica)))
    app._server.why = "the worker is dead"
    with pytest.raises(UnavailableError, match="the worker is dead"):
        asyncio.run(Replica.check_health(object.__new__(Replica)))


def test_nothing_heavy_is_loaded_before_a_replica_opens() -> None:
    """So that its variables are set before PyTorch is."""
    code = "import sys, threefold.serve.hosted, threefold.integrations.ray_serve; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "threefold\[ray-serve\]"'):
        deployment(hosted(None, {}, {}))

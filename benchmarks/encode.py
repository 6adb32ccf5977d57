"""How fast texts become vectors: threefold and its peers on the same texts and the same random checkpoint.

    python benchmarks/encode.py [--size full] [--passages 64] [--rounds 3] [--contenders "threefold bfloat16,..."]
    python benchmarks/encode.py --device cuda --passages 2048                 # on a GPU, against its peers there
    python benchmarks/encode.py --limit avx2     # as on a processor with fewer instructions
    python benchmarks/encode.py --quick          # a small network, a minute or two; shows the method, not the product

Every contender is a process of its own with all cores to itself in turn: in each round each contender runs each
workload once, so that whatever else the machine does hits all alike. Workloads, in tokens of XLM-R:
  A  passages, lognormal, mean about 120 tokens, at most 512      B  one query of 12 tokens (latency, many times)
  C  one document of 8,192 tokens                                  D  64 queries of 12 tokens
each dense only and with all three outputs where the contender has them. What took longer than `--patience` seconds is
run in one round only. On a GPU each contender runs a workload once before it is timed: there every new size chooses
kernels and makes buffers, once. The machine's matrix product rate is measured in the same run, in each kind of numbers;
utilisation is useful FLOPs / that rate, of the layers' products and, in brackets, with those of attention, which grow
with length. Prints a table of medians and ratios, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encode_peers import CONTENDERS, DENSE, Contender
from limited import LIMITS, UNLIMITED, limit
from machine import machine
from random_checkpoint import SIZES, VOCAB, checkpoint

from threefold.encoder.bench import most_bytes

ROOT = Path(__file__).parent.parent
#: One query is over in milliseconds: it is run so many times, and its latency is a distribution.
REPEATS = {"B": 30}


# ---- the texts -------------------------------------------------------------------------------------------


def text(rng: np.random.Generator, tokens: int) -> str:
    """A text of exactly so many tokens, the two special ones included."""
    return " ".join(f"w{i}" for i in rng.integers(0, VOCAB, tokens - 2))


def workloads(passages: int, longest: int) -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(100), 0.6, passages), 8, 512).astype(int)
    return {
        "A": [text(rng, int(n)) for n in lengths],
        "B": [text(rng, 12)],
        "C": [text(rng, longest)],
        "D": [text(rng, 12) for _ in range(64)],
    }


def tokens_of(texts: list[str]) -> int:
    return sum(len(one.split()) + 2 for one in texts)


def attention_flops(texts: list[str], hidden: int, layers: int) -> int:
    """Of scores and of what they weigh: each is t x t x d multiply-adds for a text of t tokens, in every layer."""
    return 4 * hidden * layers * sum((len(one.split()) + 2) ** 2 for one in texts)


# ---- one contender at a time -----------------------------------------------------------------------------


def serve(pipe: Connection, name: str, folder: str, device: str, limited: str) -> None:
    """One contender in its own process: load, then time what it is told to."""
    limit(limited)
    try:
        start = time.perf_counter()
        contender = CONTENDERS[device][name]
        run = contender.build(folder, *contender.options)
        opening = time.perf_counter() - start
        run(["w1 w2 w3"], DENSE)  # first use
    except Exception as error:  # a peer may fail in any way that it likes: the others go on
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(opening)
    warm: set[tuple[str, int, tuple[str, ...]]] = set()
    while (job := pipe.recv()) is not None:
        texts, outputs, repeats = job
        if device == "cuda" and (size := (texts[0], len(texts), outputs)) not in warm:
            run(texts, outputs)
            warm.add(size)
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            run(texts, outputs)
            taken.append(round(time.perf_counter() - start, 5))
        pipe.send((taken, most_bytes(torch.device(device)) // 2**20))


class Field:
    """The contenders, each in its process, waiting."""

    def __init__(
        self,
        contenders: dict[str, Contender],
        names: list[str],
        folder: str,
        numbers: set[str],
        device: str,
        limited: str,
    ) -> None:
        self.contenders = contenders
        self.workers: dict[str, tuple[Any, Any]] = {}
        self.opening: dict[str, float] = {}
        self.absent: dict[str, str] = {}
        self.memory: dict[str, int] = {}
        context = mp.get_context("spawn")
        for name in names:
            if self.contenders[name].missing:
                self.absent[name] = self.contenders[name].missing
                continue
            if limited and self.contenders[name].needs in UNLIMITED:
                self.absent[name] = f"cannot be limited to {limited}"
                continue
            if self.contenders[name].numbers not in numbers:
                self.absent[name] = f"there are no instructions for {self.contenders[name].numbers} here"
                continue
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, name, folder, device, limited), daemon=True)
            process.start()
            answer = ours.recv()
            if isinstance(answer, str):
                self.absent[name] = answer.splitlines()[0][:200]
                process.join()
                continue
            self.opening[name] = round(answer, 2)
            self.workers[name] = (ours, process)
            print(f"{name:32} opened in {answer:6.2f} s", flush=True)

    def run(self, name: str, texts: list[str], outputs: tuple[str, ...], repeats: int) -> list[float]:
        """Seconds of each repeat."""
        pipe = self.workers[name][0]
        pipe.send((texts, outputs, repeats))
        taken, self.memory[name] = pipe.recv()
        return taken  # type: ignore[no-any-return]

    def close(self) -> None:
        for pipe, process in self.workers.values():
            pipe.send(None)
            process.join()


def alternate(
    field: Field, jobs: dict[str, list[str]], rounds: int, patience: float
) -> Iterator[dict[str, dict[str, list[float]]]]:
    """{contender: {workload and outputs: seconds}} after each workload; one contender at a time has the machine."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in field.workers}
    for number in range(rounds):
        for key, texts in jobs.items():
            for name in field.workers:
                for outputs in field.contenders[name].kinds:
                    kind = f"{key} {'all' if len(outputs) > 1 else 'dense'}"
                    found = seconds[name].setdefault(kind, [])
                    if found and max(found) > patience:
                        continue
                    taken = field.run(name, texts, outputs, REPEATS.get(key, 1))
                    found += taken
                    print(f"round {number + 1}: {name:32} {kind:8} {statistics.median(taken):9.3f} s", flush=True)
            yield seconds


# ---- what the machine can do -----------------------------------------------------------------------------


def gpu_rates(device: str = "cuda", rows: int = 65_536, repeats: int = 20) -> dict[str, float]:
    """`matrix_rates` of a GPU: many products told at once, so that telling them costs nothing. The best of three sizes:
    the two of a feed-forward layer on a whole batch, and a square one, for those need not reach what the GPU can."""
    sizes = ((rows, 1024, 4096), (rows, 4096, 1024), (rows // 8, rows // 8, rows // 8))
    rates = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = [_gpu_rate(m, k, n, dtype, device, repeats) for m, k, n in sizes]
        rates[str(dtype).removeprefix("torch.")] = max(found)
    return rates


def _gpu_rate(m: int, k: int, n: int, dtype: torch.dtype, device: str, repeats: int) -> float:
    """FLOP/s of (m, k) @ (k, n): the median of some series, the first two left out."""
    a, b = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (k, n)))
    out = torch.empty(m, n, device=device, dtype=dtype)
    taken = []
    for _ in range(8):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) / repeats)
    return 2 * m * k * n / statistics.median(taken[2:])


def matrix_rates(rows: int = 2048) -> dict[str, float]:
    """FLOP/s of plain products of the size of the feed-forward layer: the median of many, buffers warm.

    bfloat16 only where the processor has instructions for it: emulated, one product takes half a minute.
    """
    from threefold.encoder.products import _MIDDLE, Int8Product, fast_bfloat16, has_int8
    from threefold.encoder.stored import Stored

    a, b = torch.randn(rows, 1024), torch.randn(1024, 4096)
    runs: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16) if fast_bfloat16() else (torch.float32,):
        x, y = a.to(dtype), b.to(dtype)
        out = torch.empty(rows, 4096, dtype=dtype)
        runs[str(dtype).removeprefix("torch.")] = lambda x=x, y=y, out=out: torch.mm(x, y, out=out)
    if has_int8():
        dtype = torch.bfloat16 if fast_bfloat16() else torch.float32
        p, q = Int8Product(Stored(b.T), torch.zeros(4096), dtype), (a * 20 + 128).clamp(0, 255).to(torch.uint8)
        runs["int8"] = lambda: torch.ops.onednn.qlinear_pointwise(
            q, 1.0, _MIDDLE, p.weight, p.scale, p.zeros, None, 1.0, 0, dtype, "none", [], ""
        )
    rates = {}
    with torch.inference_mode():
        for name, run in runs.items():
            taken = []
            for _ in range(15):
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
            rates[name] = 2 * rows * 1024 * 4096 / statistics.median(taken[3:])
    return rates


# ---- the run ---------------------------------------------------------------------------------------------


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=SIZES, default="full")
    options.add_argument("--passages", type=int, default=64, help="texts of workload A")
    options.add_argument("--longest", type=int, default=8192, help="tokens of workload C")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--patience", type=float, default=30.0, help="seconds after which a job is not repeated")
    options.add_argument("--workloads", default="ABCD")
    options.add_argument("--device", choices=CONTENDERS, default="cpu")
    options.add_argument("--limit", choices=LIMITS, default="", help="leave instructions of this processor unused")
    options.add_argument("--contenders", default="", help="names, with commas between; all that are installed")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--output", type=Path, default=None)
    args = options.parse_args()
    if args.quick:
        args.size, args.passages, args.longest, args.rounds = "small", 32, 1024, 2
    limit(args.limit)
    known = dict(CONTENDERS[args.device])
    names = [name.strip() for name in args.contenders.split(",")] if args.contenders else list(known)
    if unknown := [name for name in names if name not in known]:
        options.error(f"no contender {unknown[0]!r}; known are {', '.join(known)}")
    rates = matrix_rates() if args.device == "cpu" else gpu_rates()
    if "bfloat16" not in rates:  # our kernels then multiply weights in bfloat16 by states in float32
        known["threefold bfloat16"] = known["threefold bfloat16"]._replace(numbers="float32")
    jobs = {key: texts for key, texts in workloads(args.passages, args.longest).items() if key in args.workloads}
    field = Field(known, names, str(checkpoint(args.size)), set(rates), args.device, args.limit)
    hidden, layers, _, ffn = SIZES[args.size]
    result: dict[str, Any] = {
        "size": args.size,
        "device": args.device,
        "limit": args.limit,
        "rounds": args.rounds,
        "tokens": {key: tokens_of(texts) for key, texts in jobs.items()},
        "attention_flops": {key: attention_flops(texts, hidden, layers) for key, texts in jobs.items()},
        "flops_per_token": 2 * layers * (4 * hidden * hidden + 2 * hidden * ffn),
        "matrix_gflops": {dtype: round(rate / 1e9) for dtype, rate in rates.items()},
        "opening_seconds": field.opening,
        "peak_mebibytes": field.memory,
        "absent": field.absent,
        **machine(),
    }
    suffix = "".join(f"-{part}" for part in (args.limit, args.device) if part not in ("", "cpu"))
    output = args.output or ROOT / "results" / f"encode-{args.size}{suffix}.json"
    output.parent.mkdir(exist_ok=True)
    for result["seconds"] in alternate(field, jobs, args.rounds, args.patience):
        output.write_text(json.dumps(result, indent=1) + "\n")  # an interrupted run keeps what it has
    field.close()
    show(result, known)
    print(json.dumps(result))


def show(result: dict[str, Any], contenders: dict[str, Contender]) -> None:
    print(
        "\nmatrix products: " + ", ".join(f"{name} {rate:,} GFLOP/s" for name, rate in result["matrix_gflops"].items())
    )
    for kind in sorted({kind for found in result["seconds"].values() for kind in found}):
        tokens = result["tokens"][kind[0]]
        print(f"\n{kind}: {tokens:,} tokens")
        found = {name: times[kind] for name, times in result["seconds"].items() if kind in times}
        base = statistics.median(next(iter(found.values())))
        for name, times in found.items():
            median = statistics.median(times)
            rate = 1e9 * result["matrix_gflops"][contenders[name].numbers]
            flops = result["flops_per_token"] * tokens
            use, whole = (each / median / rate for each in (flops, flops + result["attention_flops"][kind[0]]))
            spread = (max(times) - min(times)) / median / 2
            print(
                f"  {name:32} {median:9.3f} s ±{100 * spread:3.0f} % (p95 {np.percentile(times, 95):8.3f})  "
                f"{tokens / median:8,.0f} tokens/s  {median / base:6.2f}x the time of the first  "
                f"utilisation {100 * use:3.0f} % ({100 * whole:3.0f} %)"
            )
    print()
    for name, megabytes in result["peak_mebibytes"].items():
        print(f"  {name:32} opened in {result['opening_seconds'][name]:6.2f} s, at most {megabytes:,} MiB")
    for name, reason in result["absent"].items():
        print(f"  {name:32} left out: {reason}")


if __name__ == "__main__":
    main()

"""How fast texts become vectors: threefold and its peers on the same texts and the same random checkpoint.

    python benchmarks/encode.py [--size full] [--passages 256] [--rounds 3] [--peers flagembedding,flag16,st]
    python benchmarks/encode.py --quick          # a small network, a minute; shows the method, not the product

Every contender is a process of its own with all cores to itself in turn: in each round each contender runs each
workload once, so that whatever else the machine does hits all alike. Workloads, in tokens of XLM-R:
  A  passages, lognormal, mean about 120 tokens, at most 512      B  one query of 12 tokens (latency)
  C  one document of 8,192 tokens                                  D  64 queries of 12 tokens
each dense only and with all three outputs where the contender has them. The machine's matrix product rate is measured
in the same run; utilisation is useful FLOPs / that rate. Prints a table of medians and ratios, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from random_checkpoint import SIZES, VOCAB, checkpoint

ROOT = Path(__file__).parent.parent
DENSE, ALL = ("dense",), ("dense", "sparse", "multi")

Run = Callable[[Sequence[str], tuple[str, ...]], Any]


# ---- the texts ------------------------------------------------------------------------


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


# ---- the contenders --------------------------------------------------------------------------------------


def threefold(folder: str, precision: str) -> Run:
    from threefold import Encoder

    encoder = Encoder(folder, precision=precision)  # type: ignore[arg-type]
    return lambda texts, outputs: encoder.encode(texts, outputs=outputs)  # type: ignore[arg-type]


def flag_embedding(folder: str, batch: int) -> Run:
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(folder, use_fp16=False, devices="cpu", batch_size=batch, passage_max_length=8192)

    def run(texts: Sequence[str], outputs: tuple[str, ...]) -> Any:
        more = len(outputs) > 1
        return model.encode(
            list(texts), return_dense=True, return_sparse=more, return_colbert_vecs=more, max_length=8192
        )

    return run


def sentence_transformers(folder: str, precision: str) -> Run:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": getattr(torch, precision)})
    return lambda texts, outputs: model.encode(list(texts), batch_size=16, convert_to_tensor=True)


CONTENDERS: dict[str, tuple[Callable[..., Run], tuple[Any, ...], tuple[tuple[str, ...], ...]]] = {
    "threefold bfloat16": (threefold, ("bfloat16",), (DENSE, ALL)),
    "threefold float32": (threefold, ("float32",), (DENSE, ALL)),
    "FlagEmbedding default": (flag_embedding, (256,), (DENSE, ALL)),
    "FlagEmbedding batch 16": (flag_embedding, (16,), (DENSE, ALL)),
    "sentence-transformers float32": (sentence_transformers, ("float32",), (DENSE,)),
    "sentence-transformers bfloat16": (sentence_transformers, ("bfloat16",), (DENSE,)),
}


def serve(pipe: Connection, name: str, folder: str) -> None:
    """One contender in its own process: load, then time what it is told to."""
    build, options, _ = CONTENDERS[name]
    run = build(folder, *options)
    run(["w1 w2 w3"], DENSE)  # first use
    pipe.send("ready")
    while (job := pipe.recv()) is not None:
        texts, outputs = job
        start = time.perf_counter()
        run(texts, outputs)
        pipe.send(time.perf_counter() - start)


def matrix_rate(dtype: str) -> float:
    """FLOP/s of one plain product of the size of the feed-forward layer."""
    import torch

    a, b = (torch.randn(4096, 1024).to(getattr(torch, dtype)), torch.randn(1024, 4096).to(getattr(torch, dtype)))
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 4096 * 1024 * 4096 / (time.perf_counter() - start))
    return best


# ---- the run ---------------------------------------------------------------------------------------------


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=SIZES, default="full")
    options.add_argument("--passages", type=int, default=256)
    options.add_argument("--longest", type=int, default=8192)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--workloads", default="ABCD")
    options.add_argument("--contenders", default=",".join(CONTENDERS))
    options.add_argument("--quick", action="store_true")
    options.add_argument("--output", type=Path, default=None)
    args = options.parse_args()
    if args.quick:
        args.size, args.passages, args.longest, args.rounds = "small", 64, 1024, 2
    folder = checkpoint(args.size)
    jobs = {key: texts for key, texts in workloads(args.passages, args.longest).items() if key in args.workloads}
    names = [name.strip() for name in args.contenders.split(",")]
    seconds = alternate(names, jobs, str(folder), args.rounds)
    hidden, layers, _, ffn = SIZES[args.size]
    flops = 2 * layers * (4 * hidden * hidden + 2 * hidden * ffn)
    rates = {dtype: matrix_rate(dtype) for dtype in ("float32", "bfloat16")}
    result = {
        "size": args.size,
        "rounds": args.rounds,
        "tokens": {key: tokens_of(texts) for key, texts in jobs.items()},
        "flops_per_token": flops,
        "matrix_gflops": {dtype: round(rate / 1e9) for dtype, rate in rates.items()},
        "seconds": seconds,
        **machine(),
    }
    show(result, rates)
    output = args.output or ROOT / "results" / f"encode-{args.size}.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def alternate(
    names: list[str], jobs: dict[str, list[str]], folder: str, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """{contender: {workload/outputs: seconds of each round}}; one contender at a time has the machine."""
    context = mp.get_context("spawn")
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    workers = {}
    for name in names:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, name, folder), daemon=True)
        process.start()
        assert ours.recv() == "ready"
        workers[name] = (ours, process)
    for round_number in range(rounds):
        for key, texts in jobs.items():
            for name in names:
                for outputs in CONTENDERS[name][2]:
                    workers[name][0].send((texts, outputs))
                    taken = workers[name][0].recv()
                    kind = f"{key} {'all' if len(outputs) > 1 else 'dense'}"
                    seconds[name].setdefault(kind, []).append(round(taken, 4))
                    print(f"round {round_number + 1}: {name:32} {kind:8} {taken:8.2f} s", flush=True)
    for pipe, process in workers.values():
        pipe.send(None)
        process.join()
    return seconds


def show(result: dict[str, Any], rates: dict[str, float]) -> None:
    kinds = sorted({kind for found in result["seconds"].values() for kind in found})
    first = next(iter(result["seconds"]))
    for kind in kinds:
        tokens = result["tokens"][kind[0]]
        print(f"\n{kind}: {tokens:,} tokens")
        base = statistics.median(result["seconds"][first][kind])
        for name, found in result["seconds"].items():
            if kind not in found:
                continue
            median = statistics.median(found[kind])
            rate = rates["bfloat16" if "bfloat16" in name else "float32"]
            use = result["flops_per_token"] * tokens / median / rate
            spread = (max(found[kind]) - min(found[kind])) / median
            print(
                f"  {name:32} {median:8.2f} s ±{100 * spread / 2:3.0f} %  {tokens / median:8,.0f} tokens/s  "
                f"{median / base:6.2f}x the time of {first}  utilisation {100 * use:3.0f} %"
            )


if __name__ == "__main__":
    main()

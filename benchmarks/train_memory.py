r"""Memory of one training step on long passages with a model of bge-m3's size, on a CPU in float32.

    python benchmarks/train_memory.py [--passages 4] [--work build/train_memory] [--output FILE]

A step reads four queries with one passage each and does everything that training does: forward, joint objective with
self-distillation and negatives, backward, clipping, AdamW. It uses the paths that save memory: `recompute`, and
`sub_tokens` of one passage. The first step is a short one, so that AdamW's moments exist when the long one begins.

The whole step, 24 layers over 4 x 8,192 tokens, is more than an hour for two cores. So the peak is measured where it
can be, every point in a process of its own, and put together:

    peak(layers, tokens) = fixed + layers x per_layer + tokens x (per_token + layers x per_token_and_layer)

A least-squares fit of these four numbers to five points gives the peak at 24 layers and 8,192 tokens; `largest_error`
is how far the fit is from any point. One point has all 24 layers over short passages, the others few layers over longer
ones. No table of attention scores is kept, so memory grows with the number of tokens, not with its square.
Resumable: points that are in `--work` are not measured again.
Bar: below 24 GiB. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from threefold.encoder.memory import peak_bytes

ROOT = Path(__file__).parent.parent
BAR_GIB = 24.0
LAYERS, TOKENS = 24, 8_192
#: (layers, tokens of a passage) that are measured.
POINTS = ((1, 1_024), (4, 1_024), (LAYERS, 256), (2, 3_072), (8, 1_024))
QUERY_TOKENS, SHORT = 32, 16
#: Ids of `<s>`, `<pad>`, `</s>`, and the first that is none of them.
START, PAD, END, WORDS = 0, 1, 2, 5


def step(layers: int, tokens: int, passages: int) -> dict[str, Any]:
    """One short step, then the step that is measured, in this process."""
    from threefold.encoder.heads import HeadsConfig
    from threefold.encoder.model import Model, ModelConfig
    from threefold.encoder.network import NetworkConfig, initialise
    from threefold.text.tokenizer import Tokens
    from threefold.train.batches import PairTable
    from threefold.train.loop import Trainer, TrainSettings
    from threefold.types import offsets_of

    network = NetworkConfig(layers=layers)
    model = Model(ModelConfig(network, HeadsConfig(), TOKENS))
    initialise(model)
    rng = np.random.default_rng(0)

    def texts(length: int, n: int = passages) -> list[Any]:
        return [np.r_[START, rng.integers(WORDS, network.vocab, length - 2), END].astype(np.int32) for _ in range(n)]

    def packed(rows: list[Any]) -> Tokens:
        offsets = offsets_of([len(row) for row in rows])
        return Tokens(np.concatenate(rows), offsets, np.diff(offsets))

    flags = np.zeros(2 * passages, np.int8)
    table = PairTable(
        packed(texts(QUERY_TOKENS, 2 * passages)), packed(texts(SHORT) + texts(tokens)), flags.astype(np.int64),
        np.arange(2 * passages), flags, flags.astype(bool),
    )  # fmt: skip
    plan = [np.arange(passages), np.arange(passages, 2 * passages)]
    settings = TrainSettings(precision="float32", recompute=True, sub_tokens=tokens, idf_steps=0)
    trainer = Trainer(model, table, plan, settings, Path("unused"), special=(START, PAD, END, 3))
    model.train()
    trainer._update(plan[0])
    trainer.step = 1
    start = time.perf_counter()
    trainer._update(plan[1])
    seconds = time.perf_counter() - start
    peak = peak_bytes() / 2**20
    return {"layers": layers, "tokens": tokens, "peak_mib": round(peak), "seconds": round(seconds, 1)}


def terms(layers: int, tokens: int) -> list[float]:
    """What multiplies the four unknowns; tokens in thousands, so that the numbers are of one size."""
    return [1.0, float(layers), tokens / 1_000, layers * tokens / 1_000]


def fitted(points: list[dict[str, Any]]) -> dict[str, Any]:
    """The unknowns in MiB, and what they say of the whole step."""
    matrix = np.array([terms(point["layers"], point["tokens"]) for point in points])
    peaks = np.array([float(point["peak_mib"]) for point in points])
    # relative errors count: a point of 3 GiB and one of 10 GiB are equally trusted
    found, *_ = np.linalg.lstsq(matrix / peaks[:, None], np.ones(len(peaks)), rcond=None)
    names = ("fixed", "per_layer", "per_1000_tokens", "per_1000_tokens_and_layer")
    errors = matrix @ found / peaks - 1
    return {
        "fit_mib": {name: round(float(value), 1) for name, value in zip(names, found, strict=True)},
        "largest_error": round(float(np.abs(errors).max()), 4),
        "extrapolated_gib": round(float(np.array(terms(LAYERS, TOKENS)) @ found) / 1024, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--point", type=int, nargs=2, metavar=("LAYERS", "TOKENS"), help="measure one, in this process")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "train_memory", help="keeps what was measured")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "train_memory.json")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(step(*options.point, options.passages)))
        return
    points = []
    for layers, tokens in POINTS:
        kept = options.work / f"{layers}x{options.passages}x{tokens}.json"
        command = [sys.executable, __file__, "--passages", str(options.passages), "--point", str(layers), str(tokens)]
        if not kept.is_file():
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(done.stdout.splitlines()[-1] + "\n", encoding="utf-8")
        points.append(json.loads(kept.read_text(encoding="utf-8")))
        one = points[-1]
        print(
            f"{layers:3} layers, {options.passages} x {tokens:5,} tokens: {one['peak_mib']:7,} MiB, "
            f"{one['seconds']:6.1f} s",
            flush=True,
        )
    report = machine() | {"passages": options.passages, "queries": options.passages, "query_tokens": QUERY_TOKENS}
    report |= {"precision": "float32", "recompute": True, "sub_tokens": "one passage", "points": points}
    report |= {"wanted": {"layers": LAYERS, "tokens": TOKENS}} | fitted(points)
    report |= {"bar_gib": BAR_GIB, "bar_met": report["extrapolated_gib"] < BAR_GIB}
    report["load_after"] = [round(one, 2) for one in os.getloadavg()]
    print(
        f"{LAYERS} layers, {options.passages} x {TOKENS:,} tokens, extrapolated: {report['extrapolated_gib']} GiB "
        f"(fit off by at most {100 * report['largest_error']:.1f} %); bar {BAR_GIB:.0f} GiB, "
        f"{'met' if report['bar_met'] else 'not met'}"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()

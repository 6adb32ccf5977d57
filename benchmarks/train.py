r"""Steps of joint training: threefold's trainer and FlagEmbedding's M3 trainer, on the same data, device and model.

    python benchmarks/train.py [--size base] [--steps 6] [--queries 8] [--group 4] [--device cpu] [--output FILE]
    python benchmarks/train.py --ours-only --size full --steps 2 --queries 4 --group 2 --passage-tokens 8190 --fixed \
        --recompute --sub-tokens 8192 --output results/train_memory.json

A step is the forward pass of queries and passages, the joint objective with self-distillation, the backward pass,
clipping and AdamW. The checkpoint is random, in the published layout; every contender lives in a process of its own,
gets the same batches of token ids, and they take turns, step by step. FlagEmbedding's part is its model class with its
own loss, without dropout so that the losses can be compared; its padding is that of its collator: to the longest text
of the batch. Queries hold words of their passage, so the losses can fall.
Bar: ours, in bfloat16, at least twice the pairs per second of FlagEmbedding's best setting, and both losses fall alike.
The second line shows what a step of the longest texts takes: only ours, with the saving paths; MiB is peak memory.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import machine
from random_checkpoint import SIZES, VOCAB, checkpoint

from threefold.text.tokenizer import Tokens
from threefold.train.batches import PairTable
from threefold.types import Ints, offsets_of

ROOT = Path(__file__).parent.parent
BAR = 2.0
#: Ids of `<s>`, `<pad>`, `</s>`, and the first of the words in the random checkpoint.
START, PAD, END, WORDS = 0, 1, 2, 5
LR, CLIP = 1e-5, 1.0


class Spec(NamedTuple):
    """What every contender is told."""

    name: str
    folder: str
    device: str
    steps: int
    queries: int
    group: int
    query_tokens: int
    passage_tokens: int
    fixed: bool
    sub_tokens: int
    recompute: bool


#: Number of a step -> seconds, loss, peak MiB.
Step = Callable[[int], tuple[float, float, float]]


# ---- data ------------------------------------------------------------------------------------------------


def table(spec: Spec) -> PairTable:
    """Pairs for all steps: lognormal lengths, queries made of words of their passage, random hard negatives."""
    rng = np.random.default_rng(0)
    n, hard = spec.steps * spec.queries, spec.group - 1
    passages = [_words(rng, spec) for _ in range(n)]
    queries = [
        rng.choice(text, max(2, int(rng.integers(spec.query_tokens // 2, spec.query_tokens)))) for text in passages
    ]
    negatives = [_words(rng, spec) for _ in range(n * hard)]
    flags = np.zeros(n, np.int8)
    return PairTable(
        _tokens(queries), _tokens(passages), flags.astype(np.int64), np.arange(n), flags, flags.astype(bool),
        negative=_tokens(negatives), negatives=np.arange(n + 1) * hard,
    )  # fmt: skip


def _words(rng: np.random.Generator, spec: Spec) -> Ints:
    mean = spec.passage_tokens
    length = mean if spec.fixed else int(np.clip(rng.lognormal(np.log(mean) - 0.18, 0.6), 8, min(4 * mean, 8_190)))
    words: Ints = rng.integers(WORDS, WORDS + VOCAB, length)
    return words


def _tokens(texts: list[Ints]) -> Tokens:
    rows = [np.concatenate([[START], text, [END]]).astype(np.int32) for text in texts]
    offsets = offsets_of([len(row) for row in rows])
    return Tokens(np.concatenate(rows), offsets, np.diff(offsets))


# ---- contenders: each in its own process -------------------------------------------------------------------


def make(spec: Spec) -> Step:
    """A function that does one step."""
    import torch

    step = ours(spec) if spec.name.startswith("threefold") else theirs(spec)
    on_gpu = spec.device.startswith("cuda")

    def timed(number: int) -> tuple[float, float, float]:
        start = time.perf_counter()
        loss = step(number)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
        return seconds, loss, peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    return timed


def rows_of(spec: Spec, number: int) -> Ints:
    return np.arange(number * spec.queries, (number + 1) * spec.queries)


def ours(spec: Spec) -> Callable[[int], float]:
    from threefold.encoder.checkpoint import load
    from threefold.train.loop import Trainer, TrainSettings

    settings = TrainSettings(
        body_lr=LR, word_lr=LR, head_lr=LR, warmup=0.0, clip=CLIP, idf_steps=0,
        sub_tokens=spec.sub_tokens, recompute=spec.recompute,
        precision=spec.name.split()[1],  # type: ignore[arg-type]
    )  # fmt: skip
    plan = [rows_of(spec, number) for number in range(spec.steps)]
    trainer = Trainer(
        load(Path(spec.folder)).model, table(spec), plan, settings, Path(spec.folder) / "unused",
        special=(START, PAD, END, 3), device=spec.device,
    )  # fmt: skip
    trainer.model.train()

    def step(number: int) -> float:
        trainer.step = number
        return trainer._update(plan[number])["total"]

    return step


def theirs(spec: Spec) -> Callable[[int], float]:
    import torch
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Model as Model
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner as Runner
    from transformers import AutoTokenizer

    from threefold.train.settings import rate

    model = Model(
        Runner.get_model(spec.folder), tokenizer=AutoTokenizer.from_pretrained(spec.folder), temperature=0.02,
        sentence_pooling_method="cls", normalize_embeddings=True, unified_finetuning=True, use_self_distill=True,
        kd_loss_type="kl_div",
    ).to(spec.device).train()  # fmt: skip
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    pairs, precision = table(spec), getattr(torch, spec.name.split()[1])

    def step(number: int) -> float:
        for group in optimiser.param_groups:
            group["lr"] = LR * rate(number / spec.steps, 0.0)
        optimiser.zero_grad(set_to_none=True)
        queries, passages = (_padded(texts, spec.device) for texts in _texts(pairs, rows_of(spec, number)))
        with torch.autocast(spec.device.split(":")[0], precision, enabled=precision != torch.float32):
            loss = model(queries, passages).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        return float(loss.detach())

    return step


def _texts(pairs: PairTable, rows: Ints) -> tuple[list[Ints], list[Ints]]:
    """Queries, and each query's positive followed by its negatives."""
    passages: list[Ints] = []
    for row in rows:
        passages += [pairs.positive[int(row)], *(pairs.negative[int(i)] for i in pairs.negatives_of(np.array([row])))]
    return [pairs.query[int(row)] for row in rows], passages


def _padded(texts: list[Ints], device: str) -> dict[str, Any]:
    import torch

    ids = np.full((len(texts), max(map(len, texts))), PAD, np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    padded = torch.from_numpy(ids).to(device)
    return {"input_ids": padded, "attention_mask": (padded != PAD).long()}


def run(specs: list[Spec]) -> dict[str, list[tuple[float, float, float]]]:
    """All steps of every contender in turn; the first step warms up and its time is not counted."""
    from threefold.encoder.workers import Workers

    found: dict[str, list[tuple[float, float, float]]] = {spec.name: [] for spec in specs}
    with ExitStack() as stack:
        processes = [stack.enter_context(closing(Workers(make, [spec], [spec.name]))) for spec in specs]
        for number in range(specs[0].steps):
            turn = list(zip(specs, processes, strict=True))
            for spec, process in turn[number % len(turn) :] + turn[: number % len(turn)]:
                found[spec.name].append(process.submit(number).result())
    return found


# ---- report ------------------------------------------------------------------------------------------------


def summary(found: dict[str, list[tuple[float, float, float]]], tokens: float, queries: int) -> list[dict[str, Any]]:
    rows = []
    for name, steps in found.items():
        seconds, losses = [step[0] for step in steps[1:]], [step[1] for step in steps]
        median = statistics.median(seconds)
        rows.append(
            {
                "contender": name,
                "median_s": round(median, 4),
                "fastest_s": round(min(seconds), 4),
                "slowest_s": round(max(seconds), 4),
                "pairs_per_s": round(queries / median, 3),
                "tokens_per_s": round(tokens / median),
                "peak_mib": round(max(step[2] for step in steps)),
                "losses": [round(loss, 5) for loss in losses],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--group", type=int, default=4, help="passages of a query: its positive and hard negatives")
    parser.add_argument("--query-tokens", type=int, default=16)
    parser.add_argument("--passage-tokens", type=int, default=64)
    parser.add_argument("--fixed", action="store_true", help="every passage has just so many tokens")
    parser.add_argument("--sub-tokens", type=int, default=0, help="of ours: tokens in the network at a time")
    parser.add_argument("--recompute", action="store_true", help="ours runs the layers again in the backward pass")
    parser.add_argument("--ours-only", action="store_true", help="only ours, in bfloat16")
    parser.add_argument("--precision", action="append", help="of FlagEmbedding; float32 and bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "train.json")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be at least 2: the first only warms up")
    folder = str(checkpoint(options.size))
    names = ["threefold bfloat16"] if options.ours_only else ["threefold bfloat16", "threefold float32"]
    names += (
        []
        if options.ours_only
        else [f"FlagEmbedding {precision}" for precision in options.precision or ["float32", "bfloat16"]]
    )
    sizes = (options.steps, options.queries, options.group, options.query_tokens, options.passage_tokens)
    sizes += (options.fixed, options.sub_tokens, options.recompute)
    specs = [Spec(name, folder, options.device, *sizes) for name in names]
    tokens = float(table(specs[0]).sizes.sum()) / options.steps
    rows = summary(run(specs), tokens, options.queries)
    peers = [row["median_s"] for row in rows if row["contender"].startswith("FlagEmbedding")]
    best = min(peers, default=rows[0]["median_s"])
    for row in rows:
        row["times_as_fast_as_the_best_flag_embedding"] = round(best / row["median_s"], 2)
    losses = {row["contender"]: row["losses"] for row in rows}
    apart = None  # both in float32: the same arithmetic, but for padding and the order of sums
    if "FlagEmbedding float32" in losses:
        curves = zip(losses["threefold float32"], losses["FlagEmbedding float32"], strict=True)
        apart = round(max(abs(one - other) for one, other in curves), 5)
    ratio = rows[0]["times_as_fast_as_the_best_flag_embedding"]
    report = machine() | {"size": options.size, "device": options.device, "queries": options.queries}
    report |= {"group": options.group, "tokens_per_step": round(tokens), "steps": options.steps, "results": rows}
    report |= {"largest_difference_of_float32_losses": apart, "ours": rows[0]["contender"], "ratio": ratio}
    report |= {"sub_tokens": options.sub_tokens, "recompute": options.recompute}
    report |= {
        "bar": BAR,
        "bar_met": bool(peers) and ratio >= BAR,
        "load_after": [round(one, 2) for one in os.getloadavg()],
    }
    show(report)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['queries']} queries with {report['group']} passages each, "
        f"{report['tokens_per_step']:,} tokens a step, {report['size']} model on {report['device']}"
    )
    print(f"{'':24}{'median s':>10}{'spread s':>18}{'tokens/s':>10}{'MiB':>8}{'ratio':>7}   loss: first, last")
    for row in report["results"]:
        spread = f"{row['fastest_s']:.3f} - {row['slowest_s']:.3f}"
        print(
            f"{row['contender']:24}{row['median_s']:>10.3f}{spread:>18}{row['tokens_per_s']:>10,}{row['peak_mib']:>8,}"
            f"{row['times_as_fast_as_the_best_flag_embedding']:>7.2f}   {row['losses'][0]:.3f}, {row['losses'][-1]:.3f}"
        )
    if len(report["results"]) == 1:
        return
    verdict = "met" if report["bar_met"] else "not met"
    print(f"bar {report['bar']} times FlagEmbedding's best: {report['ours']} has {report['ratio']}, {verdict}")


if __name__ == "__main__":
    main()

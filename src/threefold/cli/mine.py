"""`threefold mine` and `threefold distil`: hard negatives for training data, and a teacher's scores of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli import idle, options
from threefold.cli.endings import keeping
from threefold.cli.show import Bar, err, many, note, print_json, progress_bar
from threefold.errors import InputError

if TYPE_CHECKING:
    from threefold.text.protocol import TextEncoder
    from threefold.train.judge import Judge
    from threefold.types import Encoded, Floats

Files = Annotated[
    list[Path],
    typer.Argument(parser=options.path_of, help="Training data: .jsonl, .tsv or .csv, also .gz or .xz; or folders."),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", parser=options.target_of, help="File to write, .jsonl; packed if it ends in .gz or .xz."
    ),
]

#: Texts that are encoded between two steps of the progress bar.
_STEP = 512


def mine(
    context: typer.Context,
    files: Files,
    output: Output,
    corpus: Annotated[
        Path | None,
        typer.Option(
            parser=options.path_of,
            help="More texts to choose from: .jsonl with `text`, .txt, or a folder with corpus.jsonl.",
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="How the texts are searched: hybrid, dense, sparse, multi, dense+sparse, bm25, rrf, ...")
    ] = "hybrid",
    ranks: Annotated[str, typer.Option(help="First and last rank, among the texts that are not answers.")] = "11:110",
    negatives: Annotated[int, typer.Option(help="So many per record.")] = 7,
    pick: Annotated[str, typer.Option(help="Which of those in the window: random or hardest.")] = "random",
    margin: Annotated[
        str, typer.Option(help="How far below the worst positive they score: 0.1, or 5% of its score.")
    ] = "",
    teacher: Annotated[
        str, typer.Option(help="Cross-encoder that refuses negatives as good as a positive: folder or hub name.")
    ] = "",
    teacher_margin: Annotated[str, typer.Option(help="The margin in its logits.")] = "0",
    replace: Annotated[bool, typer.Option("--replace", help="Drop the negatives that records have already.")] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="Write pos_scores and neg_scores: the teacher's, or those of the mode.")
    ] = False,
    weights: Annotated[
        str, typer.Option(help="Of the fused modes: dense,sparse,multi, such as 1,0.3,1. Default: the model's.")
    ] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens. Default: the model's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random pick.")] = 0,
    cache: options.Cache = None,
    stream: Annotated[bool, typer.Option(help="Keep vectors in files of the cache, not in memory.")] = False,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Find hard negatives for training data. The file appears when it is complete."""
    from threefold.train import mine as mining
    from threefold.train.examples import read_all
    from threefold.train.judge import check_scored
    from threefold.train.lines import write_records
    from threefold.train.pool import read_corpus

    _check_idle(context)
    options.require_folder_of(output, *files)
    options.require_no_file(cache)
    keeping(cache is not None)
    settings = mining.MineSettings.from_dict(
        {
            "mode": mode,
            "ranks": _ranks(ranks),
            "negatives": negatives,
            "pick": pick,
            "margin": mining.Margin.parse(margin) if margin else None,
            "teacher_margin": mining.Margin.parse(teacher_margin),
            "keep": not replace,
            "seed": seed,
        }
    )
    if scores and not teacher:
        check_scored(mode)
    found = Counter[str]()
    examples = read_all(files, found)
    texts = list(read_corpus(corpus)) if corpus is not None else []
    start = time.perf_counter()
    with progress_bar("encoding", quiet=as_json) as bar:
        encoder = _Watched(options.open_encoder(model, revision, device, precision), bar)
        judge = _cross(teacher, device, precision, found)[1] if teacher else None
        mined = mining.mine(
            examples,
            encoder,
            settings,
            corpus=texts,
            teacher=judge,
            weights=options.parse_weights(weights),
            max_tokens=max_tokens,
            cache=cache,
            stream=stream,
            scored=scores,
        )
        count = write_records(output, (example.to_row() for example in mined.examples))
    about = {"file": str(output), "records": count, **mined.counts, "odd": dict(found), "mode": mode}
    _report(about | {"model": encoder.card.name, "seconds": round(time.perf_counter() - start, 3)}, as_json)
    if not mined.counts["negatives"]:
        note("no text passed; widen --ranks, lower --margin or give a --corpus")
        raise typer.Exit(1)


def distil(
    context: typer.Context,
    files: Files,
    output: Output,
    reranker: Annotated[
        str, typer.Option(help="Cross-encoder as the teacher, by folder or hub name: its logits.")
    ] = "",
    mode: Annotated[str, typer.Option(help="With --model: the score of this mode.")] = "hybrid",
    weights: Annotated[
        str, typer.Option(help="With --model: dense,sparse,multi, such as 1,0.3,1. Default: the model's.")
    ] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Embedding model as the teacher: its fused score.")] = "",
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Add a teacher's scores to training data, by a cross-encoder (--reranker) or by an embedding model (--model)."""
    from threefold.retrieve.modes import WEIGHTED
    from threefold.train.examples import read_all
    from threefold.train.judge import ModeJudge
    from threefold.train.judge import distil as scored
    from threefold.train.lines import write_records

    idle.excludes(context, "--reranker", reranker and not model, "mode", "weights", "revision")
    idle.needs(context, f"--mode {' or '.join(WEIGHTED)}", mode in WEIGHTED, "weights")
    options.require_folder_of(output, *files)
    if bool(reranker) == bool(model):
        raise InputError("a teacher is needed: give --reranker, or --model, and not both")
    found = Counter[str]()
    examples = read_all(files, found)
    chosen = options.parse_weights(weights)
    start = time.perf_counter()
    with progress_bar("judging", len(examples), quiet=as_json) as bar:
        judge: Judge
        if reranker:
            name, judge = _cross(reranker, device, precision, found)
        else:
            encoder = _Watched(options.open_encoder(model, revision, device, precision))
            name, judge = encoder.card.name, ModeJudge(encoder, mode, chosen)
        rows = scored(examples, judge, prompted=not reranker, progress=lambda done: bar.update(done, 0))
        count = write_records(output, (example.to_row() for example in rows))
    if not reranker and encoder.cut:
        found["texts longer than the teacher reads, cut"] = len(encoder.cut)
    pairs = sum(len(example.positives) + len(example.negatives) for example in examples)
    about: dict[str, Any] = {"file": str(output), "records": count, "pairs": pairs, "odd": dict(found), "teacher": name}
    _report(about | {"seconds": round(time.perf_counter() - start, 3)}, as_json)


def _check_idle(context: typer.Context) -> None:
    """Refuse options of `mine` that do nothing beside the others."""
    from threefold.retrieve.modes import LEXICAL, WEIGHTED

    given = context.params
    idle.needs(context, f"--mode {' or '.join(WEIGHTED)}", given["mode"] in WEIGHTED, "weights")
    idle.needs(context, "--teacher", given["teacher"], "teacher_margin")
    idle.needs(context, "--pick random", given["pick"] != "hardest", "seed")
    idle.needs(context, "--cache", given["cache"], "stream")
    idle.excludes(context, f"--mode {given['mode']}", given["mode"] in LEXICAL, "max_tokens")


def _ranks(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise InputError(f"--ranks {text!r}: expected a first and a last rank, such as 11:110")
    return int(first), int(last)


def _cross(name: str, device: str, precision: str, found: Counter[str]) -> tuple[str, Judge]:
    """A cross-encoder and its name; the pairs that it cut are counted in `found`."""
    cross = options.open_reranker(name, None, device, precision)

    def judge(pairs: Sequence[tuple[str, str]]) -> Floats:
        judged = cross.judge(list(pairs))
        if cut := int(judged.truncated.sum()):
            found["pairs longer than the teacher reads, cut"] += cut
        return judged.scores

    return cross.name, judge


def _report(about: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(about)
        return
    skipped = ("file", "records", "odd", "seconds", "model", "teacher", "mode")
    details = ", ".join(f"{value:,} {name}" for name, value in about.items() if name not in skipped)
    err.print(f"{many(about['records'], 'record')}, {details} in {about['seconds']:.1f} s -> {about['file']}")
    for what, count in about["odd"].items():
        note(f"{count:,} x {what}")


class _Watched:
    """An encoder that encodes in steps, moves a bar, and keeps the texts that it cut."""

    def __init__(self, encoder: TextEncoder, bar: Bar | None = None) -> None:
        self._encoder, self._bar = encoder, bar
        self.card, self.tokenizer = encoder.card, encoder.tokenizer
        self.cut: set[str] = set()
        self._done = [0, 0]

    def encode(self, texts: Sequence[str], **options: Any) -> Encoded:
        return self._steps(self._encoder.encode, texts, options)

    def encode_queries(self, texts: Sequence[str], **options: Any) -> Encoded:
        return self._steps(self._encoder.encode_queries, texts, options)

    def encode_documents(self, texts: Sequence[str], **options: Any) -> Encoded:
        return self._steps(self._encoder.encode_documents, texts, options)

    def _steps(self, encode: Callable[..., Encoded], texts: Sequence[str], options: Mapping[str, Any]) -> Encoded:
        from threefold.types import Encoded

        parts = []
        for first in range(0, max(len(texts), 1), _STEP):
            step = texts[first : first + _STEP]
            parts.append(encode(step, **options))
            self.cut.update(compress(step, parts[-1].truncated))
            self._done[:] = self._done[0] + len(parts[-1]), self._done[1] + int(parts[-1].tokens.sum())
            if self._bar is not None:
                self._bar.update(*self._done)
        return Encoded.concat(parts)

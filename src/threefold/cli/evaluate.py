"""`threefold evaluate`: retrieval figures of a model on data sets in BEIR layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from threefold import __version__
from threefold.cli import options
from threefold.cli.show import err, note, out, print_json, progress_bar
from threefold.errors import InputError
from threefold.score import Weights


def evaluate(
    paths: Annotated[
        list[Path], typer.Argument(help="Folders or archives in BEIR layout, or folders of such folders.")
    ],
    modes: Annotated[
        str, typer.Option(help="dense, sparse, multi, dense+sparse, hybrid, bm25. Default: all possible.")
    ] = "",
    measures: Annotated[str, typer.Option(help="Such as nDCG@10,Recall@100. Default: the usual five.")] = "",
    weights: Annotated[str, typer.Option(help="Weights of hybrid: dense,sparse,multi.")] = "",
    multi_depth: Annotated[int, typer.Option(help="multi reranks so many of dense; 0 scores every document.")] = 200,
    max_tokens: Annotated[int | None, typer.Option(help="Longest document in tokens. Default: the model's.")] = None,
    lenient: Annotated[bool, typer.Option(help="Count broken judgements instead of refusing them.")] = False,
    per_set: Annotated[bool, typer.Option("--per-set/--averages", help="A row per set, or only averages.")] = True,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps encoded texts between runs.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder for the runs in TREC format.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the report as JSON to this file.")] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure retrieval in every mode, exactly (brute force), in one process."""
    from threefold.evaluate.beir import iter_tasks
    from threefold.evaluate.report import Report, Row
    from threefold.evaluate.trec import write_run
    from threefold.retrieve.experiment import run_task

    for target in (save,) if save else ():
        options.require_folder_of(target)
    encoder = options.open_encoder(model, revision, device, precision)
    protocol = _protocol(encoder.card, modes, measures, weights, multi_depth, max_tokens)
    rows: list[Row] = []
    with progress_bar("evaluating", quiet=as_json) as bar:
        for path in paths:
            for task in iter_tasks(path, strict=not lenient):
                outcome = run_task(task, encoder, protocol, cache=cache)
                rows += outcome.rows
                if runs is not None:
                    for mode, run in outcome.runs.items():
                        target = runs / mode / f"{task.name}.trec"
                        target.parent.mkdir(parents=True, exist_ok=True)
                        write_run(target, run, f"threefold-{mode}")
                bar.update(len(rows) // len(protocol.modes), 0)
    card = encoder.card
    about = {"threefold": __version__, "model": card.name, "model_hash": card.hash, "precision": card.precision}
    report = Report(tuple(rows), about | {"protocol": protocol.to_dict()})
    if save is not None:
        save.write_text(json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report, per_set)


def _protocol(card: Any, modes: str, measures: str, weights: str, multi_depth: int, max_tokens: int | None) -> Any:
    from threefold.retrieve.experiment import MODES, Protocol, available_modes

    names = tuple(name.strip() for name in modes.split(",") if name.strip()) or available_modes(card)
    unknown = [name for name in names if name not in MODES]
    if unknown:
        raise InputError(f"unknown mode {unknown[0]!r}; known are {', '.join(MODES)}")
    settings: dict[str, Any] = {"modes": names, "multi_depth": multi_depth or None, "max_tokens": max_tokens}
    if measures:
        settings["measures"] = tuple(name.strip() for name in measures.split(","))
    settings["weights"] = options.parse_weights(weights) or Weights(*card.fusion)
    return Protocol.from_dict(settings)


def _show(report: Any, per_set: bool) -> None:
    for measure in report.measures:
        cells = cast("list[list[str]]", report.cells(measure))
        header, *body = cells
        table = Table(title=measure, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in body:
            if per_set or row[0] not in report.tasks:
                table.add_row(*row)
        out.print(table)
        out.print()
    for task, counts in report.warnings.items():
        note(f"{task}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    err.print(f"{report.about['model']}, {report.about['precision']}; figures in percent")

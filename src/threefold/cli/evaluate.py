"""`threefold evaluate`: retrieval figures of a model on named benchmarks and on data sets in BEIR layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold import __version__
from threefold.cli import figures, judged, options
from threefold.cli.endings import keeping
from threefold.cli.protocols import Protocols, measures_in
from threefold.cli.refusals import Refusals, check_idle, check_sets, check_targets
from threefold.cli.running import Runner, SecondStage, check_second
from threefold.cli.show import print_json, progress_bar
from threefold.replacing import replacing

if TYPE_CHECKING:
    from threefold.evaluate.compare import Contrast, Detail
    from threefold.evaluate.report import Report, Row
    from threefold.text.protocol import ModelCard


def evaluate(
    context: typer.Context,
    sets: Annotated[
        list[str],
        typer.Argument(
            parser=options.given,
            help="Benchmarks (miracl:sw,yo  mldr  mkqa:th  narrativeqa  beir:scifact  mteb:NAME), or folders and "
            "archives in BEIR layout.",
        ),
    ],
    modes: Annotated[
        str,
        typer.Option(
            help="dense, sparse, multi, dense+sparse, hybrid, bm25, bm25-words, rrf, dbsf, dense@128 (cut vectors). "
            "Default: what the model can do."
        ),
    ] = "",
    measures: Annotated[str, typer.Option(help="Such as nDCG@10,Recall@100. Default: the benchmark's.")] = "",
    weights: Annotated[
        str, typer.Option(help="Of fusion: 1,0.3,1 or dense=1,sparse=0.3; a published name; model; @FILE of tune.")
    ] = "",
    multi_depth: Annotated[
        int | None,
        typer.Option(help="multi reranks so many of dense, 0: scores all. Default: by benchmark, or 200."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest document in tokens. Default: the model's.")] = None,
    split: judged.Split = "",
    data: judged.Data = None,
    language: judged.Language = "",
    lenient: Annotated[bool, typer.Option(help="Count broken judgements instead of refusing them.")] = False,
    per_set: Annotated[bool, typer.Option("--per-set/--averages", help="A row per set, or only averages.")] = True,
    baseline: Annotated[
        str, typer.Option(help="Test the other modes against this one; or a folder of --runs: against those.")
    ] = "",
    store: Annotated[bool, typer.Option(help="Run dense, sparse, multi through the embedded store as well.")] = False,
    rerank: Annotated[
        str, typer.Option(help="Modes whose best are reordered by a cross-encoder as well, such as dense,hybrid.")
    ] = "",
    rerank_depth: Annotated[int, typer.Option(help="So many of each query.")] = 100,
    reranker: Annotated[
        str, typer.Option(help="Cross-encoder, by folder or hub name.", envvar=options.RERANKER_ENV)
    ] = "BAAI/bge-reranker-v2-m3",
    cache: options.Cache = None,
    stream: Annotated[bool, typer.Option(help="Keep vectors in files of the cache, not in memory.")] = False,
    runs: Annotated[
        Path | None, typer.Option(parser=options.target_of, help="Folder for the runs in TREC format.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(parser=options.target_of, help="Write the report as JSON to this file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(parser=options.target_of, help="Write the report as a page with charts to this file.")
    ] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    vectors: judged.Vectors = "",
    endpoint: judged.Endpoint = "",
    api_key: judged.ApiKey = "",
    sentence_transformer: judged.SentenceTransformer = False,
    mcls: judged.Mcls = 0,
    as_json: options.Json = False,
) -> None:
    """Measure retrieval in every mode, exactly (brute force), in one process."""
    from threefold.evaluate.compare import write_runs
    from threefold.evaluate.report import Report

    check_idle(context)
    check_targets(save, html, sets)
    for folder in (cache, runs):
        options.require_no_file(folder)
    load = partial(judged.sources, split=split, data=data, lenient=lenient, language=language)
    wanted = measures_in(measures)
    check_sets(sets, split, wanted, runs, load)
    chosen = options.names_in(rerank)
    if rerank:
        check_second(chosen, rerank_depth)
    keeping(cache is not None or runs is not None)
    encoder = judged.open_judged(
        model,
        revision,
        device,
        precision,
        vectors=vectors,
        endpoint=endpoint,
        api_key=api_key,
        sentence_transformer=sentence_transformer,
        mcls=mcls,
    )
    second = SecondStage(chosen, rerank_depth, reranker, device, precision) if rerank else None
    protocols = Protocols(encoder.card, modes, wanted, weights, multi_depth, max_tokens)
    refusals = Refusals(context, baseline, store, second.modes if second else (), runs)
    runner = Runner(encoder, second, cache=cache, stream=stream, store=store)
    rows: list[Row] = []
    details: list[Detail] = []
    used: dict[str, Any] = {}
    with progress_bar("evaluating", quiet=as_json) as bar:
        for number, source in enumerate(load(sets), start=1):
            task, protocol = protocols.unseen(source.task), protocols.of(source)
            refusals.check(task, protocol)
            found, detail = runner.run(task, protocol)
            rows += found
            if runs is not None:
                write_runs(runs, detail)
            if html is not None or baseline:
                details.append(detail)
            used[source.benchmark.name if source.benchmark else "given"] = protocol.to_dict()
            bar.update(number, 0)
    report = Report(tuple(rows), _about(encoder.card, used, elsewhere=bool(endpoint)))
    plain, contrasts = _keep(report, details, baseline, save, html)
    if as_json:
        print_json(plain)
    else:
        figures.show_report(report, per_set)
        figures.show_contrasts(contrasts)


#: What only the machine that runs a model knows: an endpoint cuts texts by itself, and computes in its own numbers.
_OF_THIS_MACHINE = ("precision", "max_tokens", "max_query_tokens")


def _about(card: ModelCard, used: Mapping[str, Mapping[str, Any]], *, elsewhere: bool) -> dict[str, Any]:
    """What the figures were made with, as far as it is known."""

    def known(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in facts.items() if not (elsewhere and name in _OF_THIS_MACHINE)}

    about = {"threefold": __version__, "model": card.name, "model_hash": card.hash, "precision": card.precision}
    return known(about) | {"protocol": {name: known(protocol) for name, protocol in used.items()}}


def _keep(
    report: Report, details: Sequence[Detail], baseline: str, save: Path | None, html: Path | None
) -> tuple[dict[str, Any], Sequence[Contrast]]:
    """Write the report to the files that are asked for; returns it with the comparisons, ready for JSON."""
    from threefold.evaluate.compare import compared
    from threefold.evaluate.html import html_report

    plain = report.to_dict()
    contrasts: list[Contrast] = []
    _save(save, plain)  # what comes now may be refused: a broken file among the saved runs
    if baseline:
        contrasts = compared(details, report.measures[0], baseline)
        plain |= {"comparisons": [one.to_dict() for one in contrasts]}
        _save(save, plain)
    if html is not None:
        _write(html, html_report(report, details, contrasts if Path(baseline).is_dir() else ()))
    return plain, contrasts


def _save(path: Path | None, report: Mapping[str, Any]) -> None:
    if path is not None:
        _write(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")

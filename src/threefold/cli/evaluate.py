"""`threefold evaluate`: retrieval figures of a model on named benchmarks and on data sets in BEIR layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from rich.table import Table

from threefold import __version__
from threefold.cli import judged, options
from threefold.cli.show import err, note, out, print_json, progress_bar
from threefold.errors import EvaluationError, InputError

if TYPE_CHECKING:
    from threefold.evaluate.compare import Contrast, Detail
    from threefold.evaluate.report import Row
    from threefold.evaluate.task import Task
    from threefold.retrieve.encoded import Recent
    from threefold.retrieve.modes import Protocol
    from threefold.text.protocol import TextEncoder


def evaluate(
    sets: Annotated[
        list[str],
        typer.Argument(
            help="Benchmarks (miracl:sw,yo  mldr  mkqa:th  narrativeqa  beir:scifact  mteb:NAME), or folders and "
            "archives in BEIR layout."
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
    cache: judged.Cache = None,
    stream: Annotated[bool, typer.Option(help="Keep vectors in files of the cache, not in memory.")] = False,
    runs: Annotated[Path | None, typer.Option(help="Folder for the runs in TREC format.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the report as JSON to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page with charts to this file.")] = None,
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
    from threefold.evaluate.report import Report
    from threefold.retrieve.encoded import Recent

    for target in (save, html):
        if target is not None:
            options.require_folder_of(target)
    load = partial(judged.sources, split=split, data=data, lenient=lenient, language=language)
    _check_sets(sets, runs, load)
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
    second_modes = tuple(dict.fromkeys(_split(rerank)))
    second = _second_stage(second_modes, rerank_depth, reranker, device, precision) if rerank else None
    settings = _Settings(encoder, modes, measures, weights, multi_depth, max_tokens)
    before = _Before(baseline, store, second_modes, runs)
    rows: list[Row] = []
    details: list[Detail] = []
    recent = Recent()
    protocols: dict[str, Any] = {}
    with progress_bar("evaluating", quiet=as_json) as bar:
        for number, source in enumerate(load(sets), start=1):
            task, protocol = settings.unseen(source.task), settings.protocol(source)
            before.check(task, protocol)
            found, detail = _run(task, encoder, protocol, recent, cache=cache, stream=stream, store=store)
            if second is not None:
                more, detail = second(detail, protocol.measures)
                found = [*found, *more]
            rows += found
            if runs is not None:
                _write_runs(runs, detail)
            if html is not None or baseline:
                details.append(detail)
            protocols[source.benchmark.name if source.benchmark else "given"] = protocol.to_dict()
            bar.update(number, 0)
    card = encoder.card
    about = {"threefold": __version__, "model": card.name, "model_hash": card.hash, "precision": card.precision}
    report = Report(tuple(rows), about | {"protocol": protocols})
    found_all = report.to_dict()
    _save(save, found_all)  # what comes now may be refused: a broken file among the saved runs
    contrasts = list(_contrasts(details, baseline, report.measures[0])) if baseline else []
    if baseline:
        found_all |= {"comparisons": [one.to_dict() for one in contrasts]}
        _save(save, found_all)
    if html is not None:
        from threefold.evaluate.html import html_report

        html.write_text(html_report(report, details, contrasts if Path(baseline).is_dir() else ()), encoding="utf-8")
    if as_json:
        print_json(found_all)
    else:
        _show(report, per_set)
        _show_contrasts(contrasts)


class _Settings:
    """What the options say about every task, on top of what its benchmark says."""

    def __init__(
        self,
        encoder: TextEncoder,
        modes: str,
        measures: str,
        weights: str,
        multi_depth: int | None,
        max_tokens: int | None,
    ) -> None:
        self.card = encoder.card
        self.weights = judged.weights_of(weights, self.card)
        self.given: dict[str, Any] = judged.settings_of(self.weights, self.card)
        if modes:
            self.given["modes"] = _modes(modes)
        if measures:
            self.given["measures"] = _measures(measures)
        if multi_depth is not None:
            self.given["multi_depth"] = multi_depth or None
        if max_tokens is not None:
            self.given["max_tokens"] = max_tokens

    def protocol(self, source: judged.Source) -> Protocol:
        from threefold.retrieve.modes import Protocol, available_modes
        from threefold.retrieve.papers import paper_protocol
        from threefold.score import Weights

        if source.benchmark is not None:
            return paper_protocol(source.benchmark, self.card, **self.given)
        usual = {"modes": available_modes(self.card), "weights": Weights(*self.card.fusion)}
        return Protocol(**{**usual, **self.given})

    def unseen(self, task: Task) -> Task:
        """Without the queries that the weights were tuned on."""
        from threefold.retrieve.tune import Tuned

        return self.weights.unseen(task) if isinstance(self.weights, Tuned) else task


class _Before:
    """What would be refused after hours of work, set by set before it."""

    def __init__(self, baseline: str, store: bool, rerank: Sequence[str], runs: Path | None) -> None:
        self.baseline, self.store, self.rerank, self.runs = baseline, store, rerank, runs
        self.names: set[str] = set()

    def check(self, task: Task, protocol: Protocol) -> None:
        from threefold.evaluate.answers import check_measures
        from threefold.evaluate.trec import check_ids

        if task.name in self.names:
            _refuse_twice(task.name)
        self.names.add(task.name)
        if self.runs is not None:
            check_ids(self.runs, task.documents, task.queries)
        check_measures(task, protocol.measures)
        labels = self._labels(protocol)
        if self.baseline:
            self._check_baseline(labels)

    def _labels(self, protocol: Protocol) -> list[str]:
        """The rows that there will be."""
        from threefold.types import REPRESENTATIONS

        labels = list(protocol.modes)
        if self.store:
            labels += [f"{mode} (store)" for mode in REPRESENTATIONS if mode in protocol.modes]
        odd = [mode for mode in self.rerank if mode not in labels]
        if odd:
            raise InputError(f"mode {odd[0]!r} is not run and cannot be reranked; there are {', '.join(labels)}")
        return labels + [f"{mode} + cross" for mode in self.rerank]

    def _check_baseline(self, labels: Sequence[str]) -> None:
        from threefold.evaluate.compare import run_folder

        folder = Path(self.baseline)
        if folder.is_dir():
            if not any((folder / run_folder(label)).is_dir() for label in labels):
                raise EvaluationError(f"{folder}: no run of these modes; expected files such as MODE/SET.trec")
        elif self.baseline not in labels:
            known = ", ".join(labels)
            raise EvaluationError(f"no mode {self.baseline!r} to compare with; there are {known}, and no such folder")


def _check_sets(sets: list[str], runs: Path | None, load: Callable[[list[str]], Iterator[judged.Source]]) -> None:
    """What can be known about all sets before the first one is run."""
    from threefold.evaluate.trec import check_ids

    if runs is not None and runs.exists() and not runs.is_dir():
        raise InputError(f"{runs} is a file; give the name of a folder")
    names = judged.set_names(sets) if len(sets) > 1 or runs is not None else []
    for name, count in Counter(names).items():
        if count > 1:
            _refuse_twice(name)
    if runs is not None and len(names) > 1:  # the ids of benchmarks are known to be words
        for source in load([name for name in sets if judged.is_path(name)]):
            check_ids(runs, source.task.documents, source.task.queries)


def _refuse_twice(name: str) -> NoReturn:
    raise EvaluationError(f"two sets are named {name!r}: give the sets different names, or give the folder above them")


def _measures(text: str) -> tuple[str, ...]:
    from threefold.evaluate.measures import Measure
    from threefold.retrieve.modes import Protocol

    names, depth = _split(text), Protocol().depth
    if not names:
        raise InputError(f"--measures {text!r} names none; give some, such as nDCG@10,Recall@100")
    for one in map(Measure.parse, names):
        if one.cutoff > depth:
            raise InputError(f"{one} looks at more than the {depth:,} results that are kept; use at most @{depth}")
    return names


def _split(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _save(path: Path | None, report: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _modes(text: str) -> tuple[str, ...]:
    from threefold.retrieve.modes import MODES, cut_of

    names = _split(text)
    unknown = [name for name in names if name not in MODES and cut_of(name) is None]
    if unknown:
        raise InputError(f"unknown mode {unknown[0]!r}; known are {', '.join(MODES)}, dense@N")
    return names


def _run(
    task: Task,
    encoder: TextEncoder,
    protocol: Protocol,
    recent: Recent,
    *,
    cache: Path | None,
    stream: bool,
    store: bool,
) -> tuple[Sequence[Row], Detail]:
    from threefold.evaluate.answers import judge_task
    from threefold.evaluate.compare import Detail
    from threefold.retrieve.experiment import run_task

    outcome = run_task(task, encoder, protocol, cache=cache, stream=stream, recent=recent)
    rows, all_runs, judgements = list(outcome.rows), dict(outcome.runs), dict(outcome.judgements)
    if store:
        from threefold.opening import manifest_for
        from threefold.retrieve.through_store import run_through_store
        from threefold.store.edge import EdgeStore

        with TemporaryDirectory(prefix="threefold-") as folder:
            manifest = manifest_for(encoder, None, None)
            more, found = run_through_store(
                task, encoder, protocol, manifest, lambda kept: EdgeStore.create(Path(folder) / "store", kept)
            )
        rows += more
        all_runs |= found
        judgements |= {mode: judge_task(task, run, protocol.measures) for mode, run in found.items()}
    return rows, Detail(task, all_runs, judgements)


def _second_stage(
    modes: Sequence[str], depth: int, reranker: str, device: str, precision: str
) -> Callable[[Detail, Sequence[str]], tuple[Sequence[Row], Detail]]:
    """Adds `MODE + cross` to what was run on a task."""
    from threefold.evaluate.compare import Detail
    from threefold.retrieve.cross import reranked

    cross = options.open_reranker(reranker, None, device, precision)

    def add(detail: Detail, measures: Sequence[str]) -> tuple[Sequence[Row], Detail]:
        rows, runs, judgements = reranked(
            detail.task,
            detail.runs,
            lambda query, texts: cross.score(query, list(texts)),
            measures,
            name=cross.name,
            modes=modes,
            depth=depth,
        )
        return rows, Detail(detail.task, {**detail.runs, **runs}, {**detail.judgements, **judgements})

    return add


def _write_runs(folder: Path, detail: Detail) -> None:
    from threefold.evaluate.compare import run_folder
    from threefold.evaluate.trec import write_run

    for mode, run in detail.runs.items():
        name = run_folder(mode)
        target = folder / name / f"{detail.task.name}.trec"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_run(target, run, f"threefold-{name}")


def _contrasts(details: Sequence[Detail], baseline: str, measure: str) -> Iterator[Contrast]:
    from threefold.evaluate.compare import contrasts, contrasts_with_saved

    comparable = [one for one in details if any(measure in judgement.values for judgement in one.judgements.values())]
    if Path(baseline).is_dir():
        yield from contrasts_with_saved(comparable, measure, Path(baseline))
    else:
        yield from contrasts(comparable, measure, baseline)


# ---- terminal -----------------------------------------------------------------------------------------------


def _show(report: Any, per_set: bool) -> None:
    one_by_one = per_set or len(report.tasks) == 1  # a single set is its own average
    for measure in report.measures:
        cells = cast("list[list[str]]", report.cells(measure))
        header, *body = cells
        rows = [row for row in body if one_by_one or row[0] not in report.tasks]
        rows += _published(report, measure) if per_set else []
        _print_table(measure, header, rows)
    warnings: Mapping[str, Mapping[str, int]] = report.warnings
    for task, counts in warnings.items():
        note(f"{task}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    err.print(f"{report.about['model']}, {report.about['precision']}; figures in percent")


def _published(report: Any, measure: str) -> list[list[str]]:
    """bge-m3 as the papers report it, under the same modes."""
    from threefold.evaluate.published import published

    rows = []
    for task in report.tasks:
        known = {one.mode: one.value for one in published(task, measure) if one.mode in report.modes}
        if known:
            cells = [f"{100 * known[mode]:.1f}" if mode in known else "" for mode in report.modes]
            rows.append([f"{task}, published", *cells])
    return rows


def _show_contrasts(contrasts: Sequence[Contrast]) -> None:
    for one in contrasts:
        rows = [
            [name, *(f"{100 * x:+.1f}" for x in (by.difference, by.low, by.high)), f"{by.p:.4f}", *map(str, by.counts)]
            for name, by in one.sets.items()
        ]
        header = ["set", "difference", "95 % from", "to", "p (Holm)", "better", "equal", "worse"]
        _print_table(f"{one.a} against {one.b}, {one.measure}", header, rows)


def _print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    out.print(table)
    out.print()

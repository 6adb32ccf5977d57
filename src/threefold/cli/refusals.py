"""What `threefold evaluate` would refuse after hours of work, or would not do: refused before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from threefold.cli import idle, judged
from threefold.errors import EvaluationError, InputError
from threefold.types import REPRESENTATIONS

if TYPE_CHECKING:
    from threefold.evaluate.task import Task
    from threefold.retrieve.modes import Protocol


def check_idle(context: typer.Context) -> None:
    """Refuse options that do nothing beside the others, as far as that is known without the model."""
    given = context.params
    own = [name for name in given["sets"] if judged.is_path(name)]
    named = [name for name in given["sets"] if name not in own and not name.startswith("mteb:")]
    idle.needs(context, "--rerank", given["rerank"], "rerank_depth", "reranker")
    idle.needs(context, "--endpoint", given["endpoint"], "api_key")
    idle.needs(context, "--cache", given["cache"], "stream")
    idle.needs(context, "a benchmark by name, such as miracl:sw,", named, "data")
    idle.needs(context, "data of your own in BEIR layout", own, "lenient")
    idle.needs(context, "data of your own, or of mteb,", len(named) < len(given["sets"]), "language")
    idle.excludes(context, "--json, which has all of it", given["as_json"], "per_set")
    idle.excludes(context, "--vectors", given["vectors"], "model", "revision")
    idle.excludes(context, "--endpoint", given["endpoint"], "revision")
    idle.excludes(context, "--sentence-transformer", given["sentence_transformer"] and not given["rerank"], "precision")
    for other in ("vectors", "endpoint"):  # with --rerank they are of the cross-encoder
        idle.excludes(context, f"--{other}", given[other] and not given["rerank"], "device", "precision")


def check_sets(
    sets: list[str],
    split: str,
    measures: Sequence[str],
    runs: Path | None,
    load: Callable[[list[str]], Iterator[judged.Source]],
) -> None:
    """What can be known about all sets before the first one is run.

    measures  those that are asked for; empty: of each set its own
    """
    from threefold.evaluate.answers import check_kind
    from threefold.evaluate.trec import check_ids

    alone = len(sets) == 1 and runs is None and judged.is_path(sets[0])  # nothing to compare it with
    tasks = [] if alone else list(judged.announced(sets, split=split))
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            _refuse_twice(name)
    for task in tasks:
        check_kind(task.name, task.by_answers, measures)
    if runs is not None and len(tasks) > 1:  # the ids of benchmarks are known to be words
        for source in load([name for name in sets if judged.is_path(name)]):
            check_ids(runs, source.task.documents, source.task.queries)


def check_targets(save: Path | None, html: Path | None, sets: Sequence[str]) -> None:
    """The files of the report take the place neither of the data nor of each other."""
    for target in (save, html):
        if target is not None:
            judged.require_target(target, sets)
    if save is not None and html is not None and save.resolve() == html.resolve():
        raise InputError(f"--save and --html both name {save}; give each a file of its own")


class Refusals:
    """What is known about a set once it is loaded, before it is run.

    rerank  modes whose best are reordered
    """

    def __init__(
        self, context: typer.Context, baseline: str, store: bool, rerank: Sequence[str], runs: Path | None
    ) -> None:
        self._context = context
        self._baseline, self._store, self._rerank, self._runs = baseline, store, rerank, runs
        self._names: set[str] = set()

    def check(self, task: Task, protocol: Protocol) -> None:
        """Refuse a set that cannot be run, written, judged or compared."""
        from threefold.evaluate.answers import check_measures
        from threefold.evaluate.trec import check_ids

        self._check_modes(protocol)
        if task.name in self._names:
            _refuse_twice(task.name)
        self._names.add(task.name)
        if self._runs is not None:
            check_ids(self._runs, task.documents, task.queries)
        check_measures(task, protocol.measures)
        labels = self._labels(protocol)
        if self._baseline:
            self._check_baseline(labels)

    def _check_modes(self, protocol: Protocol) -> None:
        """Refuse options that do nothing in these modes."""
        from threefold.retrieve.modes import WEIGHTED

        used = {name for mode in protocol.modes for name in protocol.needs(mode)}
        fused, alone = set(protocol.modes) & set(WEIGHTED), set(protocol.modes) & set(REPRESENTATIONS)
        idle.needs(self._context, f"a mode that adds scores ({' or '.join(WEIGHTED)})", fused, "weights")
        idle.needs(self._context, "a mode that has multi in it", "multi" in used, "multi_depth")
        idle.needs(self._context, "a mode that reads texts by the model", used, "max_tokens")
        idle.needs(self._context, "the mode dense, sparse or multi", alone, "store")
        idle.needs(self._context, "the mode bm25-words", "bm25-words" in protocol.modes, "language")

    def _labels(self, protocol: Protocol) -> list[str]:
        """The rows that there will be."""
        labels = list(protocol.modes)
        if self._store:
            labels += [f"{mode} (store)" for mode in REPRESENTATIONS if mode in protocol.modes]
        odd = [mode for mode in self._rerank if mode not in labels]
        if odd:
            raise InputError(f"mode {odd[0]!r} is not run and cannot be reranked; there are {', '.join(labels)}")
        return labels + [f"{mode} + cross" for mode in self._rerank]

    def _check_baseline(self, labels: Sequence[str]) -> None:
        from threefold.evaluate.compare import run_folder

        folder = Path(self._baseline)
        if folder.is_dir():
            if not any((folder / run_folder(label)).is_dir() for label in labels):
                raise EvaluationError(f"{folder}: no run of these modes; expected files such as MODE/SET.trec")
        elif self._baseline not in labels:
            known = ", ".join(labels)
            raise EvaluationError(f"no mode {self._baseline!r} to compare with; there are {known}, and no such folder")


def _refuse_twice(name: str) -> NoReturn:
    raise EvaluationError(f"two sets are named {name!r}: give the sets different names, or give the folder above them")

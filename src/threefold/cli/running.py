"""One set of `threefold evaluate`: in every mode exactly, then through the store, then reordered by a cross-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from threefold.cli import options
from threefold.errors import InputError

if TYPE_CHECKING:
    from threefold.evaluate.compare import Detail
    from threefold.evaluate.report import Row
    from threefold.evaluate.task import Task
    from threefold.retrieve.modes import Protocol
    from threefold.text.protocol import TextEncoder


def check_second(modes: Sequence[str], depth: int) -> None:
    """Refuse a second stage that would reorder nothing."""
    if not modes:
        raise InputError("--rerank names no mode; give some of those that are run, such as dense,hybrid")
    if depth < 1:
        raise InputError(f"--rerank-depth must be at least 1; got {depth}")


class SecondStage:
    """Adds `MODE + cross` to what was run on a set: the best `depth` of these modes, in another order."""

    def __init__(self, modes: Sequence[str], depth: int, reranker: str, device: str, precision: str) -> None:
        self.modes, self._depth = tuple(dict.fromkeys(modes)), depth
        self._cross = options.open_reranker(reranker, None, device, precision)

    def run(self, detail: Detail, measures: Sequence[str]) -> tuple[Sequence[Row], Detail]:
        """The rows that it adds, and everything that was run so far."""
        from threefold.retrieve.cross import reranked

        rows, runs, judgements = reranked(
            detail.task,
            detail.runs,
            lambda query, texts: self._cross.score(query, list(texts)),
            measures,
            name=self._cross.name,
            modes=self.modes,
            depth=self._depth,
        )
        return rows, detail.also(runs, judgements)


class Runner:
    """Runs one set after the other; texts that they share are encoded once."""

    def __init__(
        self, encoder: TextEncoder, second: SecondStage | None, *, cache: Path | None, stream: bool, store: bool
    ) -> None:
        from threefold.retrieve.encoded import Recent

        self._encoder, self._second = encoder, second
        self._cache, self._stream, self._store = cache, stream, store
        self._recent = Recent()

    def run(self, task: Task, protocol: Protocol) -> tuple[list[Row], Detail]:
        """The rows of a set, and what was run on it."""
        from threefold.evaluate.compare import Detail
        from threefold.retrieve.experiment import run_task

        done = run_task(task, self._encoder, protocol, cache=self._cache, stream=self._stream, recent=self._recent)
        rows, detail = list(done.rows), Detail(task, done.runs, done.judgements)
        if self._store:
            more, detail = self._through_store(detail, protocol)
            rows += more
        if self._second is not None:
            more, detail = self._second.run(detail, protocol.measures)
            rows += more
        return rows, detail

    def _through_store(self, detail: Detail, protocol: Protocol) -> tuple[Sequence[Row], Detail]:
        from threefold.evaluate.answers import judge_task
        from threefold.opening import manifest_for
        from threefold.retrieve.through_store import run_through_store
        from threefold.store.edge import EdgeStore

        task = detail.task
        with TemporaryDirectory(prefix="threefold-") as folder:
            manifest = manifest_for(self._encoder, None, None)
            rows, runs = run_through_store(
                task, self._encoder, protocol, manifest, lambda kept: EdgeStore.create(Path(folder) / "store", kept)
            )
        return rows, detail.also(runs, {mode: judge_task(task, run, protocol.measures) for mode, run in runs.items()})

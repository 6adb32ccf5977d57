"""One encoder over many devices: several GPUs, or several processes on one CPU, behind the calls of `Encoder`.

    texts -> tokens -> batches of one share of tokens -> the process that is free -> the caller's order

Texts become tokens here. The batches lie in one queue, longest texts first; whoever is free takes the next one, so
a slow device gets less. Each process opens the checkpoint by itself. On a CPU, float32 weights stay in the mapped file,
of which all processes share one copy in memory (all but the queries, keys and values of foreign layouts, a quarter of
each layer, which are stacked on loading); in other precisions each process has its own copy.

    with EncoderPool("BAAI/bge-m3", devices=["cuda:0", "cuda:1"]) as pool:
        for part in pool.iter_encode(texts):
            ...

Processes are spawned: a script must make its pool below `if __name__ == "__main__":`.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import torch

from threefold.encoder.checkpoint import load
from threefold.encoder.counts import check_count
from threefold.encoder.encoder import Encoder
from threefold.encoder.front import Front, Progress
from threefold.encoder.gathering import Gathering
from threefold.encoder.network import NetworkConfig
from threefold.encoder.precision import (
    Precision,
    check_precision,
    choose_budget,
    choose_device,
    choose_precision,
)
from threefold.encoder.sources import find
from threefold.encoder.transfer import is_lost
from threefold.encoder.workers import Workers
from threefold.errors import InputError
from threefold.text.packing import plan_batches
from threefold.text.tokenizer import Tokens
from threefold.types import Encoded, Ints, Output, Representation, Row

#: Exit status of a process whose GPU does nothing more (EX_SOFTWARE).
LOST: Final = 70
#: Parts of a stream that are under way beside the one that is waited for.
PARTS_AHEAD = 1

#: Fewer tokens than this are not worth the way to another process.
LEAST_SHARE = 256


class _Setting(NamedTuple):
    """How one process opens its encoder."""

    folder: Path
    device: str
    precision: Precision
    pooling: str | None
    budget: int
    threads: int | None


class _Task(NamedTuple):
    """One call of an encoder in another process."""

    method: str
    tokens: Tokens
    options: dict[str, Any]


class EncoderPool(Front):
    """An encoder whose work is done by several processes. A context manager; `close` stops them.

    model      as in `Encoder`
    devices    one process each, such as ["cuda:0", "cuda:1"]; a device may be named twice
    processes  instead of `devices`: so many processes on the CPU
    precision  as in `Encoder`; the same for all
    budget     tokens in one forward pass of one process; None chooses by device
    threads    of each CPU process; None: the cores that this process may use, divided

    Calls may come from several threads: their batches share one queue. A failing batch fails its call and no other;
    a process that ends (killed, out of memory) ends the pool, every call under way, and says so at once.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        devices: Sequence[str] | None = None,
        processes: int | None = None,
        precision: Precision = "auto",
        revision: str | None = None,
        pooling: str | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        budget: int | None = None,
        threads: int | None = None,
    ) -> None:
        self.devices = _devices(devices, processes)
        for device in self.devices:
            check_precision(precision, torch.device(device))
        on_cpu = all(device == "cpu" for device in self.devices)
        if threads is not None:
            check_count("threads", threads)
        if threads is None and on_cpu:
            threads = max(1, _cores() // len(self.devices))
        source = find(model, revision)
        loaded = load(source.folder, pooling, query_prompt=query_prompt, document_prompt=document_prompt)
        self.precision = _precision(precision, self.devices, loaded.config.network)
        super().__init__(source, loaded, self.precision)  # prompts are put here: the processes are given tokens
        budgets = [choose_budget(self.config.network, torch.device(device), budget) for device in self.devices]
        self.budget = max(budgets)  # of what a process is given at a time; each cuts it into its own
        settings = [
            _Setting(source.folder, device, self.precision, pooling, own, threads)
            for device, own in zip(self.devices, budgets, strict=True)
        ]
        names = [f"{i} ({device})" for i, device in enumerate(self.devices)]
        self._workers = Workers(_open, settings, names, ahead=1 if on_cpu else 2)

    @property
    def pids(self) -> list[int]:
        """Process ids, in the order of `devices`."""
        return self._workers.pids

    def close(self) -> None:
        """Stop the processes; calls under way fail. Calling it again does nothing."""
        self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EncoderPool({self._source.name!r}, devices={list(self.devices)!r}, precision={self.precision!r})"

    # ---- encoding ------------------------------------------------------------------------------------

    def encode_tokens(self, tokens: Tokens, outputs: Sequence[Sequence[Output]]) -> list[Row]:
        """`Encoder.encode_tokens`."""
        self._check_rows(tokens, outputs)
        batches = self._batches(tokens)
        tasks = [
            _Task("encode_tokens", tokens.take(rows), {"outputs": [outputs[int(i)] for i in rows]}) for rows in batches
        ]
        found: list[Row] = [Row()] * len(tokens)
        for place, part in _completed([self._workers.submit(task) for task in tasks]):
            for i, row in zip(batches[place].tolist(), part, strict=True):
                found[i] = row
        return found

    # ---- inside --------------------------------------------------------------------------------------

    def _encode_all(
        self, tokens: Tokens, wanted: Sequence[Representation], dim: int | None, progress: Progress | None
    ) -> Encoded:
        return self._begin(tokens, wanted, dim).result(progress)

    def _begin(self, tokens: Tokens, wanted: Sequence[Representation], dim: int | None) -> _Job:
        batches = self._batches(tokens)
        options = {"outputs": wanted, "dim": dim}
        futures = [self._workers.submit(_Task("encode_ids", tokens.take(rows), options)) for rows in batches]
        return _Job(batches, tokens, futures)

    def _batches(self, tokens: Tokens) -> list[Ints]:
        return plan_batches(tokens.lengths, share(tokens.lengths, self.budget, len(self.devices)))

    def _encode_parts(
        self, parts: Iterator[Tokens], wanted: Sequence[Representation], dim: int | None, progress: Progress | None
    ) -> Iterator[Encoded]:
        """One more part is read and under way while the caller has the one before."""
        jobs: deque[_Job] = deque()
        failure: Exception | None = None
        try:
            while failure is None:
                try:
                    tokens = next(parts, None)
                    if tokens is None:
                        break
                    jobs.append(self._begin(tokens, wanted, dim))
                except Exception as error:  # of the source, or of a text: what was begun before it still comes
                    failure = error
                if len(jobs) > PARTS_AHEAD:
                    yield jobs.popleft().result(progress)
            while jobs:
                yield jobs.popleft().result(progress)
            if failure is not None:
                raise failure
        finally:  # an error, or a caller who has seen enough
            for job in jobs:
                job.cancel()


class _Job(NamedTuple):
    """Batches that were handed to the processes."""

    batches: list[Ints]
    tokens: Tokens
    futures: list[Future[Encoded]]

    def result(self, progress: Progress | None) -> Encoded:
        """All texts in the caller's order, or the first error as soon as it happens."""
        found = Gathering(self.tokens)
        for place, part in _completed(self.futures):
            rows = self.batches[place]
            multi = None if part.multi is None else (part.multi.rows, part.multi.offsets[:-1])
            found.add(rows, dense=part.dense, sparse=part.sparse, multi=multi)
            if progress is not None:
                progress(len(rows), int(self.tokens.lengths[rows].sum()))
        return found.result()

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()


def _completed(futures: list[Future[Any]]) -> Iterator[tuple[int, Any]]:
    """The place and the result of each as it comes; the first error is raised at once, and the rest is not begun.

    The list is emptied: who has had a result is the only one who keeps it.
    """
    places = {future: place for place, future in enumerate(futures)}
    futures.clear()
    try:
        for future in as_completed(list(places)):
            place = places.pop(future)
            yield place, future.result()
    finally:
        for future in places:
            future.cancel()


def share(lengths: Ints, budget: int, workers: int) -> int:
    """Tokens of a batch, at most `budget`, so that every worker gets as many batches as the others.

    A batch may have one text more than its even share: else the last, small batch would be one too many.
    """
    total, longest = int(lengths.sum()), int(lengths.max(initial=0))
    rounds = max(1, -(-total // (budget * workers)))
    even = -(-total // (rounds * workers)) + longest
    return min(budget, max(even, LEAST_SHARE))


def _devices(devices: Sequence[str] | None, processes: int | None) -> tuple[str, ...]:
    if (devices is None) == (processes is None):
        raise InputError('a pool needs either devices=["cuda:0", ...] or processes=N (and not both)')
    if processes is not None:
        check_count("processes", processes)
        return ("cpu",) * processes
    if isinstance(devices, str) or not devices:
        raise InputError(f'devices must be a list such as ["cuda:0", "cuda:1"]; got {devices!r}')
    return tuple(str(choose_device(device)) for device in devices)


def _precision(precision: Precision, devices: Sequence[str], config: NetworkConfig) -> Precision:
    """One for all: a text must not get another vector because another device was free."""
    found = sorted({choose_precision(precision, torch.device(device), config) for device in devices})
    if len(found) > 1:
        raise InputError(f"these devices prefer {' and '.join(found)}; say one precision for all, such as {found[0]!r}")
    return found[0]  # type: ignore[return-value]


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- in the other process --------------------------------------------------------------------------------


def _open(setting: _Setting) -> Callable[[_Task], Any]:
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    encoder = Encoder(
        setting.folder,
        device=setting.device,
        precision=setting.precision,
        pooling=setting.pooling,
        budget=setting.budget,
    )

    def call(task: _Task) -> Any:
        try:
            return getattr(encoder, task.method)(task.tokens, **task.options)
        except Exception as error:
            if is_lost(error):  # a process whose tasks all fail at once would be free for all that come
                sys.stderr.write(f"threefold: {setting.device} is lost: {error}\n")
                sys.stderr.flush()
                os._exit(LOST)
            raise

    return call

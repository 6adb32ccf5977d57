"""The ways of `threefold encode`: into one file, into a folder by this process, into a folder by actors of Ray."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from threefold.cli import options
from threefold.cli.show import Bar, note
from threefold.errors import InputError
from threefold.text.protocol import ModelCard

if TYPE_CHECKING:
    from threefold.bulk import Job, Order
    from threefold.integrations.ray_jobs import Actors
    from threefold.shards import Progress, Written
    from threefold.text.tokenizer import Truncate
    from threefold.types import Representation

#: `s3://bucket/key`, as a path has it; a drive of Windows has one letter.
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")

#: (id, text) of what is encoded, once it is known by which model.
Rows = Callable[[ModelCard], Iterable[tuple[str, str]]]
#: Begins the line of progress.
Bars = Callable[[], AbstractContextManager[Bar]]
#: --model, --revision, --device, --precision, --devices.
Opening = tuple[str | None, str | None, str, str, str]


class Ran(NamedTuple):
    """What was done.

    before  of `written`, what was there before
    more    figures of this way alone, for `--json`
    """

    written: Written
    before: Written
    card: ModelCard
    seconds: float
    more: dict[str, Any]


def is_asked(output: Path, shard: int | None, ray: str) -> bool:
    """Whether a folder is written: it is said, or is one of an earlier run."""
    from threefold.bulk import read_job

    return bool(ray) or shard is not None or read_job(output) is not None


def refuse_remote(*paths: Path) -> None:
    """Object stores are not files, and would become folders with odd names."""
    for path in paths:
        if _REMOTE.match(str(path)) and not Path(path.parts[0]).exists():
            address = re.sub(r":[/\\]+", "://", str(path), count=1)
            raise InputError(
                f"{address} is in an object store: threefold encode reads and writes files only. Give a folder on a "
                "disk or a mounted file system (for --ray on every machine of the cluster), and copy it afterwards"
            )


def order_of(
    output: Path,
    shard: int | None,
    outputs: tuple[Representation, ...] | None,
    max_tokens: int | None,
    truncate: Truncate,
) -> Order:
    """What is asked for; the size of the files is that of an earlier run, unless it is said."""
    from threefold.bulk import TEXTS_PER_FILE, Order, read_job

    begun = read_job(output)
    texts = shard or (begun["texts_per_file"] if begun else TEXTS_PER_FILE)
    return Order(texts, outputs, max_tokens, truncate)


def one_file(output: Path, rows: Rows, order: Order, opening: Opening, bars: Bars) -> Ran:
    """All texts into one file; where there are none, an earlier file stays as it is."""
    from threefold.shards import Written, write_parquet

    with options.opened_encoder(*opening) as encoder, bars() as bar:
        start = time.perf_counter()
        stream = iter(rows(encoder.card))
        first = next(stream, None)
        if first is None:
            return Ran(Written(0, 0, 0), Written(0, 0, 0), encoder.card, time.perf_counter() - start, {})
        written = write_parquet(
            output,
            chain([first], stream),
            encoder,
            outputs=order.outputs,
            max_tokens=order.max_tokens,
            truncate=order.truncate,
            progress=bar.update,
        )
        return Ran(written, Written(0, 0, 0), encoder.card, time.perf_counter() - start, {})


def here(folder: Path, rows: Rows, order: Order, opening: Opening, bars: Bars) -> Ran:
    """Into a folder, one file after the other."""
    from threefold.bulk import Job, write_part

    with options.opened_encoder(*opening) as encoder, Job(folder, order, encoder.card) as job, bars() as bar:
        start = time.perf_counter()
        for part in job.missing(rows(encoder.card)):
            job.add(part, write_part(job.path(part.number), part, order, encoder, _after(job, bar)))
        return _ran(job, start, {})


def on_ray(folder: Path, rows: Rows, order: Order, opening: Opening, address: str, bars: Bars) -> Ran:
    """Into a folder, as many files at once as there are actors."""
    from threefold.bulk import Job
    from threefold.integrations import ray_jobs

    folder = folder.resolve()  # an actor may stand elsewhere
    wanted = _number(opening[-1])
    with (
        redirect_stdout(sys.stderr),  # threads of Ray write to the former what is no result of ours
        ray_jobs.connected(address) as ray,
        ray_jobs.Actors(ray, _opening(opening), ray_jobs.shape(ray, opening[2], wanted), note) as actors,
        Job(folder, order, actors.card) as job,
        closing(actors),  # before the job, which removes their drafts
        bars() as bar,
    ):
        start = time.perf_counter()
        for part, written in actors.write(job.missing(rows(actors.card)), job.path, order):
            job.add(part, written)
            bar.update(job.done.texts, job.done.tokens)
        return _ran(job, start, {"actors": _opened(actors)})


def _opening(opening: Opening) -> Any:
    from threefold.integrations.ray import Opening as RayOpening

    model, revision, device, precision, _ = opening
    if model and Path(model).is_dir():
        model = str(Path(model).resolve())
    return RayOpening(model or None, revision, device, precision)  # type: ignore[arg-type]


def _number(devices: str) -> int | None:
    if devices and not (devices.isdecimal() and int(devices)):
        raise InputError(f"--devices {devices}: with --ray it is the number of actors; Ray gives each its GPU or cores")
    return int(devices) if devices else None


def _opened(actors: Actors) -> int:
    opened, wanted = len(actors.opened), actors.shape.actors
    if opened < wanted:
        note(f"{opened} of {wanted} actors were started: there was no room for more, or no work")
    return opened


def _after(job: Job, bar: Bar) -> Progress:
    """Progress within a file as progress of the job."""
    texts, tokens = job.done.texts, job.done.tokens
    return lambda more, read: bar.update(texts + more, tokens + read)


def _ran(job: Job, start: float, more: dict[str, Any]) -> Ran:
    job.finish()
    seconds = time.perf_counter() - start
    return Ran(job.done, job.found, job.card, seconds, {"files": job.files, "before": job.found.texts, **more})

"""`threefold tune`: weights of fusion from development queries, saved for `threefold evaluate --weights @FILE`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from threefold.cli import idle, judged, options
from threefold.cli.endings import keeping
from threefold.cli.show import err, many, print_json, print_table
from threefold.errors import InputError

if TYPE_CHECKING:
    from threefold.evaluate.task import Task
    from threefold.retrieve.tune import Tuned

#: The split of a benchmark that is tuned on, where it has one besides that of the papers.
_DEVELOPMENT = {"miracl": "train", "mldr": "dev"}


def tune(
    context: typer.Context,
    sets: Annotated[
        list[str], typer.Argument(parser=options.given, help="Benchmarks or paths, as in `threefold evaluate`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", parser=options.target_of, help="File for the weights.")],
    mode: Annotated[str, typer.Option(help="hybrid or dense+sparse.")] = "hybrid",
    measure: Annotated[str, typer.Option(help="What is made as large as possible.")] = "nDCG@10",
    step: Annotated[float, typer.Option(help="Of the grid over weights that add up to 1.")] = 0.1,
    share: Annotated[
        float, typer.Option(help="Share of the queries to tune on; evaluate leaves them out. Needed for a test split.")
    ] = 1.0,
    split: judged.Split = "",
    data: judged.Data = None,
    multi_depth: Annotated[int, typer.Option(help="hybrid reranks so many of dense.")] = 200,
    max_tokens: Annotated[int | None, typer.Option(help="Longest document in tokens. Default: the model's.")] = None,
    cache: options.Cache = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Choose fusion weights on development queries, never on those that are reported."""
    from threefold.retrieve.modes import Protocol
    from threefold.retrieve.tune import tune as choose

    named = [name for name in sets if not judged.is_path(name) and not name.startswith("mteb:")]
    idle.needs(context, "a benchmark by name, such as miracl:sw,", named, "data")
    idle.excludes(context, "--mode dense+sparse", mode == "dense+sparse", "multi_depth")
    judged.require_target(output, sets)
    options.require_no_file(cache)
    keeping(cache is not None)
    _check(sets, split, share)
    encoder = options.open_encoder(model, revision, device, precision)
    found = choose(
        _tasks(sets, split, data, share),
        encoder,
        mode=mode,
        measure=measure,
        step=step,
        share=share,
        protocol=Protocol(multi_depth=multi_depth, max_tokens=max_tokens),
        cache=cache,
    )
    found.save(output)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found, output)


def _check(sets: list[str], split: str, share: float) -> None:
    """What would be refused after the first set was encoded, before it."""
    for name in sets:
        chosen = _chosen(name, split, share)
        for reported in {task.reported for task in judged.announced([name], split=chosen)} or {judged.REPORTED}:
            if share == 1 and (chosen or reported) == reported:
                _refuse_reported(name, reported)


def _refuse_reported(name: str, split: str) -> NoReturn:
    raise InputError(
        f"{name}: {split!r} is the split that figures are reported on. Tune on another "
        "--split, or on a --share of the queries, such as 0.5; evaluate leaves those out"
    )


def _tasks(sets: list[str], split: str, data: Path | None, share: float) -> Iterator[Task]:
    for name in sets:
        for source in judged.sources([name], split=_chosen(name, split, share), data=data):
            yield source.task


def _chosen(name: str, split: str, share: float) -> str:
    """The split to tune on; empty: the one that is reported, of which a share is taken."""
    if split or share < 1 or judged.is_path(name):
        return split
    return _DEVELOPMENT.get(name.partition(":")[0], "")


def _show(found: Tuned, output: Path) -> None:
    weights = found.weights
    rows = [(f"tuned: {weights.dense:g}, {weights.sparse:g}, {weights.multi:g}", f"{100 * found.value:.1f}")]
    rows += [(f"published: {name}", f"{100 * value:.1f}") for name, value in found.compared.items()]
    print_table(("weights", found.measure), rows)
    count = sum(len(queries) for queries in found.queries.values())
    what = f"{many(count, 'query', 'queries')} of {many(len(found.sets), 'set')}"
    err.print(f"{what}; saved to {output}, use with --weights @{output}")

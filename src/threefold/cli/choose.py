"""`threefold choose`: models side by side on a user's own queries, documents, pairs and labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threefold.cli import options
from threefold.cli.endings import keeping
from threefold.cli.show import err, out, print_json, print_table, progress_bar
from threefold.errors import InputError

if TYPE_CHECKING:
    from threefold.evaluate.significance import Comparison
    from threefold.retrieve.choose import Portrait


def choose(
    folder: Annotated[
        Path,
        typer.Argument(parser=options.path_of, help="Own data: BEIR layout, pairs.jsonl, labels.jsonl, any of them."),
    ],
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Folder or hub name; several are compared. Default: threefold-mini."),
    ] = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    cache: options.Cache = None,
    as_json: options.Json = False,
) -> None:
    """Judge models by retrieval, similarity, classification, clustering, unseen sources, speed and size."""
    from threefold.retrieve.choose import OwnData, portray

    names: list[str | None] = list(models) if models else [os.environ.get("THREEFOLD_MODEL") or None]
    if len(set(names)) != len(names):
        raise InputError("a model is named twice")
    options.require_no_file(cache)
    keeping(cache is not None)
    data = OwnData.load(folder)
    portraits: list[Portrait] = []
    with progress_bar("judging", total=len(names), quiet=as_json) as bar:
        for number, model in enumerate(names, start=1):
            encoder = options.open_encoder(model, None, device, precision)
            portraits.append(portray(encoder, data, cache=cache))
            bar.update(number, 0)
    against = _against_best(portraits)
    if as_json:
        print_json({"models": [one.to_dict() for one in portraits], "against_best": _plain(against)})
        return
    _show_criteria(portraits)
    _show_sources(portraits)
    for model, by in against.items():
        for name, one in by.items():
            err.print(
                f"{model}, {name}: {100 * one.difference:+.1f} against the best model "
                f"({100 * one.low:+.1f} … {100 * one.high:+.1f}), p = {one.p:.4f}"
            )


def _against_best(portraits: list[Portrait]) -> dict[str, dict[str, Comparison]]:
    """The other models against the one that retrieves best, set by set, corrected over the sets."""
    from threefold.evaluate.significance import compare, holm

    able = [one for one in portraits if one.queries]
    if len(able) < 2:
        return {}
    best = max(able, key=lambda one: sum(by[one.mode] for by in one.retrieval.values()))
    return {
        one.model: holm({name: compare(values, best.queries[name]) for name, values in one.queries.items()})
        for one in able
        if one is not best
    }


def _plain(against: dict[str, dict[str, Comparison]]) -> dict[str, dict[str, dict[str, float]]]:
    def row(one: Comparison) -> dict[str, float]:
        return {"difference": one.difference, "low": one.low, "high": one.high, "p": one.p}

    return {model: {name: row(one) for name, one in by.items()} for model, by in against.items()}


def _show_criteria(portraits: list[Portrait]) -> None:
    names = dict.fromkeys(name for one in portraits for name in one.criteria)
    print_table(
        ["criterion", *(one.model for one in portraits)],
        [[name, *(_figure(name, one.criteria.get(name)) for one in portraits)] for name in names],
    )


def _show_sources(portraits: list[Portrait]) -> None:
    sets = list(dict.fromkeys(name for one in portraits for name in one.retrieval))
    if not sets:
        return
    modes = [(one, mode) for one in portraits for mode in next(iter(one.retrieval.values()), {})]
    out.print()
    print_table(
        ["nDCG@10 by source", *(f"{one.model}\n{mode}" for one, mode in modes)],
        [[name, *(f"{100 * one.retrieval[name][mode]:.1f}" for one, mode in modes)] for name in sets],
    )


def _figure(name: str, value: float | None) -> str:
    """Percent, except where the name has a unit."""
    if value is None:
        return ""
    if name.endswith(("/s", "ms", "bytes/text")):
        return f"{value:,.0f}" if value >= 10 else f"{value:,.1f}"
    return f"{100 * value:.1f}"

"""`threefold bench` and `threefold convert`: which precision suits this machine, and a checkpoint in it."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from threefold.characters import check_name
from threefold.cli import idle, options
from threefold.cli.encode import file_rows, require_table
from threefold.cli.show import err, note, note_cut, print_json, print_table
from threefold.errors import InputError
from threefold.types import REPRESENTATIONS

if TYPE_CHECKING:
    from threefold.encoder.checkpoint import Form

#: The bars of the project: a mean cosine to float32 below this is said aloud (docs/speed.md).
_BARS = {"bfloat16": 0.9995, "float16": 0.9995, "int8": 0.995}
_KNOWN = ("float32", *_BARS)


def bench(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Folder or hub name. Default: the embedded threefold-mini.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Your own texts: .txt (one per line), .csv ...; -: standard input.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    precisions: Annotated[
        str,
        typer.Option(help="Of float32, bfloat16, float16, int8. Default: what the device does not emulate."),
    ] = "",
    rounds: Annotated[int, typer.Option(help="Passes over the texts; the median counts.")] = 3,
    price_per_hour: Annotated[float | None, typer.Option(help="What this machine costs per hour.")] = None,
    device: options.Device = "auto",
    threads: Annotated[int | None, typer.Option(help="Threads of each run. Default: all cores.")] = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """Compare the precisions of a model on this machine: speed, latency, memory, distance to float32, cost.

    Each runs in a process of its own. Nothing else should be running.
    """
    from threefold.encoder import bench as library
    from threefold.encoder.precision import Precision

    names = options.names_in(precisions)
    if unknown := [name for name in names if name not in _KNOWN]:
        raise InputError(f"--precisions {unknown[0]!r}: expected some of {', '.join(_KNOWN)}")
    if precisions and not names:
        raise InputError(f"--precisions is empty; give some of {', '.join(_KNOWN)}")
    if price_per_hour is not None and not 0 < price_per_hour < math.inf:
        raise InputError(f"--price-per-hour must be above 0 and finite; got {price_per_hour}")
    idle.needs(context, "--texts", texts, "text_field")
    if texts is not None:
        require_table(context, texts, "text_field")
    bad: list[str] = []
    own = None if texts is None else [text for _, text in file_rows(texts, text_field, "id", bad)]
    if own == []:
        raise InputError(f"--texts {texts}: there is no text in it" + "".join(f"; {reason}" for reason in bad[:1]))
    with err.status("measuring") as status:
        found = library.bench(
            model,
            own,
            precisions=cast("tuple[Precision, ...]", names),
            rounds=rounds,
            revision=revision,
            device=device,
            threads=threads,
            progress=lambda precision: status.update(f"measuring {precision}"),
        )
        rows = [(measured, _cost(measured, price_per_hour)) for measured in found]
    if as_json:
        measured = [asdict(m) | cost for m, cost in rows]
        print_json({"model": model or "threefold-mini", "precisions": measured, "skipped": bad})
        return
    _show(rows, price_per_hour is not None)
    if not names and "bfloat16" not in {measured.precision for measured, _ in rows}:
        note("bfloat16 was not measured: there are no instructions for it here")
    for reason in bad:
        note(f"skipped: {reason}")
    note_cut(rows[0][0].truncated, "text")


def _cost(measured: Any, price_per_hour: float | None) -> dict[str, float]:
    if price_per_hour is None:
        return {}
    return {"cost_per_million_tokens": measured.cost_per_million_tokens(price_per_hour)}


def _show(rows: list[tuple[Any, dict[str, float]]], with_cost: bool) -> None:
    head = ["precision", "kernels", "tokens/s", "query p50", "p95", "opening", "weights", "peak memory"]
    head += [*REPRESENTATIONS, *(["per million tokens"] if with_cost else [])]
    print_table(head, [_cells(*row) for row in rows], left=2)
    note("dense, sparse, multi: mean cosine to float32 over the first texts")
    for measured, _ in rows:
        bar = _BARS.get(measured.precision, 0.0)
        if low := [name for name, cosine in measured.cosines.items() if cosine < bar]:
            note(f"{measured.precision}: {', '.join(low)} below {bar}; compare rankings before you use it")


def _cells(measured: Any, cost: dict[str, float]) -> list[str]:
    cosines = [measured.cosines.get(name) for name in REPRESENTATIONS]
    return [
        measured.precision,
        measured.kernels,
        f"{measured.tokens_per_second:,.0f}",
        f"{1e3 * measured.p50:.1f} ms",
        f"{1e3 * measured.p95:.1f} ms",
        f"{measured.opening:.2f} s",
        f"{measured.weight_bytes / 2**20:,.0f} MiB",
        f"{measured.peak_bytes / 2**20:,.0f} MiB" if measured.peak_bytes else "",
        *("" if cosine is None else f"{cosine:.5f}" for cosine in cosines),
        *(f"{value:.4f}" for value in cost.values()),
    ]


def convert(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a model.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=options.target_of, help="New folder for the converted model.")
    ],
    precision: Annotated[str, typer.Option(help="bfloat16 (half the size), int8 (a quarter) or float32.")] = "bfloat16",
    revision: options.Revision = None,
    pooling: Annotated[
        str | None, typer.Option(help="cls, mean or last, where the model does not say how its dense vector is made.")
    ] = None,
    query_prompt: Annotated[
        str | None, typer.Option(help="Put before queries, such as 'query: ' for e5. Default: what the model declares.")
    ] = None,
    document_prompt: Annotated[str | None, typer.Option(help="Put before documents, such as 'passage: '.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    as_json: options.Json = False,
) -> None:
    """Save a model in the numbers in which it will run: it opens faster and takes less disk.

    Collections made with the original may be searched with the converted model, unless it gets other prompts.
    """
    from threefold.encoder.convert import convert as run

    if precision not in ("float32", "bfloat16", "int8"):
        raise InputError(f"--precision {precision!r}: expected bfloat16, int8 or float32")
    check_name(output)
    if output.is_dir() and any(output.iterdir()) and not force:
        raise InputError(f"{output} is not empty; choose another folder, or say --force")
    size = run(
        model, output, cast("Form", precision),
        revision=revision, pooling=pooling, query_prompt=query_prompt, document_prompt=document_prompt,
    )  # fmt: skip
    if as_json:
        print_json({"folder": str(output), "precision": precision, "bytes": size})
    else:
        err.print(f"{model} in {precision}, {size / 2**20:,.0f} MiB -> {output}")

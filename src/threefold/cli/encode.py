"""`threefold encode`: a file of texts -> Parquet with the three representations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from threefold.characters import check_name
from threefold.cli import options
from threefold.cli.show import err, note, print_json, progress_bar
from threefold.errors import DocumentError, InputError
from threefold.text.decode import read_lines
from threefold.text.rows import ROW_SUFFIXES, BadRow, read_rows, scalar
from threefold.text.tokenizer import Truncate
from threefold.types import Representation

if TYPE_CHECKING:
    from threefold.shards import Written


def encode(
    file: Annotated[Path, typer.Argument(help="Texts: .txt (one per line), .jsonl, .json, .csv or .tsv.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file to write.")],
    outputs: Annotated[str, typer.Option(help="Some of dense,sparse,multi. Default: all that the model has.")] = "",
    text_field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    id_field: Annotated[str, typer.Option(help="Column that holds the id; the row number where it is absent.")] = "id",
    title_field: Annotated[
        str, typer.Option(help="Column with a title, put before the text as `evaluate` does. Default: none is.")
    ] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens. Default: the model's.")] = None,
    truncate: Annotated[str, typer.Option(help="What longer texts keep: end (cut there), start, none.")] = "end",
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    devices: options.Devices = "",
    as_json: options.Json = False,
) -> None:
    """Encode texts into a Parquet file. The file appears when it is complete."""
    from threefold.shards import write_parquet

    options.require_folder_of(output, file)
    check_name(output)
    if truncate not in ("end", "start", "none"):
        raise InputError(f"--truncate {truncate!r}: expected end, start or none")
    bad: list[str] = []
    rows = file_rows(file, text_field, id_field, bad, title_field)
    with (
        options.opened_encoder(model, revision, device, precision, devices) as encoder,
        progress_bar(f"encoding {file.name}", quiet=as_json) as bar,
    ):
        start = time.perf_counter()
        written = write_parquet(
            output,
            rows,
            encoder,
            outputs=_outputs(outputs),
            max_tokens=max_tokens,
            truncate=cast(Truncate, truncate),
            progress=bar.update,
        )
        seconds = time.perf_counter() - start
    if as_json:
        summary = {"file": str(output), **written._asdict(), "skipped": bad, "seconds": round(seconds, 3)}
        print_json(summary | {"model": encoder.card.name, "precision": encoder.card.precision})
    else:
        _say(written, seconds, encoder.card.precision, output, bad)
    if not written.texts:
        raise typer.Exit(1)


def _say(written: Written, seconds: float, precision: str, output: Path, bad: list[str]) -> None:
    err.print(
        f"{written.texts:,} texts, {written.tokens:,} tokens in {seconds:.1f} s "
        f"({written.tokens / max(seconds, 1e-9):,.0f} tokens/s, {precision}) -> {output}"
    )
    if written.truncated:
        note(f"{written.truncated:,} texts were longer than the model reads and were cut (column `truncated`)")
    for reason in bad:
        note(f"skipped: {reason}")


def _outputs(text: str) -> tuple[Representation, ...] | None:
    return cast("tuple[Representation, ...]", options.names_in(text)) or None


def file_rows(
    file: Path, text_field: str, id_field: str, bad: list[str], title_field: str = ""
) -> Iterator[tuple[str, str]]:
    """(id, text) of every row; what cannot be read is added to `bad`."""
    if not file.is_file():
        raise InputError(f"{file} is not a file")
    if file.suffix.lower() not in ROW_SUFFIXES:
        return ((str(i), line.rstrip("\r\n")) for i, line in enumerate(read_lines(file), start=1) if line.strip())
    return _records(file, text_field, id_field, bad, title_field)


def _records(file: Path, text_field: str, id_field: str, bad: list[str], title_field: str) -> Iterator[tuple[str, str]]:
    for number, row in read_rows(file, text_field):
        if isinstance(row, BadRow):
            bad.append(f"{file.name}, row {number}: {row.reason}")
        elif not isinstance(row.get(text_field), str):
            bad.append(f"{file.name}, row {number}: no text in the field {text_field!r}")
        else:
            try:
                id = scalar(row.get(id_field), id_field)
            except DocumentError as error:
                bad.append(f"{file.name}, row {number}: {error}")
                continue
            yield str(number if id is None else id), _titled(row.get(title_field), row[text_field])


def _titled(title: Any, text: str) -> str:
    from threefold.evaluate.beir import titled

    return titled(title if isinstance(title, str) else "", text)

"""`threefold encode`: a file of texts -> Parquet with the three representations, one file or a folder of many."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from threefold.characters import check_name
from threefold.cli import bulk, idle, options
from threefold.cli.chunked import chunking_in, chunks_of
from threefold.cli.endings import keeping
from threefold.cli.show import complain, err, many, note, note_cut, print_json, progress_bar
from threefold.errors import DocumentError, InputError
from threefold.text.decode import lines_of, read_lines
from threefold.text.documents import Loading
from threefold.text.rich import OFFICE_SUFFIXES
from threefold.text.rows import ROW_SUFFIXES, BadRow, read_rows, scalar
from threefold.text.tokenizer import Truncate
from threefold.types import REPRESENTATIONS

if TYPE_CHECKING:
    from threefold.cli.bulk import Ran

#: Standard input, as people name it: lines of text.
STDIN = ("-", "/dev/stdin")


def encode(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="Texts: .txt (one per line), .jsonl, .json, .csv, .tsv; -: standard input. With --chunks what "
            "`threefold index` reads, a folder too."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=options.target_of,
            help="Parquet file to write; with --shard or --ray a folder.",
        ),
    ],
    outputs: Annotated[str, typer.Option(help="Some of dense,sparse,multi. Default: all that the model has.")] = "",
    text_field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    id_field: Annotated[str, typer.Option(help="Column that holds the id; the row number where it is absent.")] = "id",
    title_field: Annotated[
        str, typer.Option(help="Column with a title, put before the text as `evaluate` does. Default: none is.")
    ] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens. Default: the model's.")] = None,
    truncate: Annotated[str, typer.Option(help="What longer texts keep: end (cut there), start, none.")] = "end",
    chunks: Annotated[
        bool,
        typer.Option(
            "--chunks",
            help="Encode the chunks of documents, of at most --max-tokens, for `threefold index --vectors`.",
        ),
    ] = False,
    overlap: Annotated[int | None, typer.Option(help="With --chunks: tokens that chunks share.")] = None,
    ignored: Annotated[
        bool, typer.Option("--ignored", help="With --chunks: read what .gitignore leaves out, too.")
    ] = False,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    devices: options.Devices = "",
    shard: Annotated[
        int | None,
        typer.Option(
            min=1, help="Write a folder of files of so many texts; run again, it goes on where it was stopped."
        ),
    ] = None,
    ray: Annotated[
        str,
        typer.Option(metavar="WHERE", help="Encode such a folder on Ray: local, auto (what runs here) or HOST:PORT."),
    ] = "",
    as_json: options.Json = False,
) -> None:
    """Encode texts, or chunks of documents, into a Parquet file or a folder of them. Files appear when complete."""
    folder = bulk.is_asked(output, shard, ray)
    keeping(folder)
    bulk.refuse_remote(file, output)
    if not folder:
        options.require_folder_of(output, file)
    check_name(output)
    if truncate not in ("end", "start", "none"):
        raise InputError(f"--truncate {truncate!r}: expected end, start or none")
    bad: list[str] = []
    if chunks:
        idle.excludes(context, "--chunks", chunks, "title_field", "truncate")
        loading = Loading(text_field=text_field, id_field=id_field, ignored=ignored)
        rows = chunks_of(file, output, loading, chunking_in(max_tokens, overlap), (model, revision), bad)
        max_tokens = None  # no chunk has more
    else:
        require_table(context, file, "text_field", "id_field", "title_field")
        idle.needs(context, "--chunks", chunks, "overlap", "ignored")
        rows = _texts_of(file, text_field, id_field, bad, title_field)
    wanted = options.outputs_in(outputs, f"some of {', '.join(REPRESENTATIONS)}")
    order = bulk.order_of(output, shard, wanted, max_tokens, cast(Truncate, truncate))
    opening = (model, revision, device, precision, devices)
    bars = partial(progress_bar, f"encoding {file.name}", quiet=as_json)
    if ray:
        ran = bulk.on_ray(output, rows, order, opening, ray, bars)
    elif folder:
        ran = bulk.here(output, rows, order, opening, bars)
    else:
        ran = bulk.one_file(output, rows, order, opening, bars)
    if as_json:
        written = None if not (folder or ran.written.texts) else str(output)
        place: dict[str, Any] = {"folder" if folder else "file": written, **ran.more}
        summary = place | {**ran.written._asdict(), "skipped": bad, "seconds": round(ran.seconds, 3)}
        print_json(summary | {"model": ran.card.name, "precision": ran.card.precision})
    else:
        _say(ran, output, bad, "chunk" if chunks else "text")
    if not ran.written.texts:
        complain(f"{file} has no {'chunks' if chunks else 'texts'}" + ("" if folder else f"; {output} was not written"))
        raise typer.Exit(1)


def _say(ran: Ran, output: Path, bad: list[str], what: str) -> None:
    written, tokens = ran.written, ran.written.tokens - ran.before.tokens
    rate = f"{tokens / max(ran.seconds, 1e-9):,.0f} tokens/s, " if tokens else ""
    for reason in bad:
        note(f"skipped: {reason}")
    if not written.texts:
        return
    err.print(
        f"{many(written.texts, what)}, {many(written.tokens, 'token')} in {ran.seconds:.1f} s "
        f"({rate}{ran.card.precision}) -> {output}"
    )
    if ran.before.texts:
        were = "was" if ran.before.texts == 1 else "were"
        note(f"{ran.before.texts:,} of the {what}s {were} there already, from an earlier run")
    note_cut(written.truncated, what, " (column `truncated`)")


def _texts_of(file: Path, text_field: str, id_field: str, bad: list[str], title_field: str) -> bulk.Rows:
    rows = file_rows(file, text_field, id_field, bad, title_field)
    return lambda _: rows


def require_file(file: Path) -> None:
    """Refuse what texts cannot be read from. A pipe is a file here, and so is standard input."""
    if str(file) not in STDIN and not file.is_file() and not file.is_fifo():
        raise InputError(f"{file} is not a file")


def require_table(context: typer.Context, file: Path, *names: str) -> None:
    """Refuse names of columns for a file that has none."""
    require_file(file)
    table = file.suffix.lower() in ROW_SUFFIXES
    idle.needs(context, f"a table ({', '.join(ROW_SUFFIXES)})", table, *names)


def file_rows(
    file: Path, text_field: str, id_field: str, bad: list[str], title_field: str = ""
) -> Iterator[tuple[str, str]]:
    """(id, text) of every row; what cannot be read is added to `bad`."""
    require_file(file)
    if file.suffix.lower() in OFFICE_SUFFIXES:
        raise InputError(
            f"{file} is a document and not a list of texts. Save its text as .txt, a line for each text, "
            "or put it into a collection with threefold index"
        )
    if file.suffix.lower() not in ROW_SUFFIXES:
        return ((str(i), line.rstrip("\r\n")) for i, line in enumerate(_lines(file), start=1) if line.strip())
    return _records(file, text_field, id_field, bad, title_field)


def _lines(file: Path) -> Iterator[str]:
    return lines_of(sys.stdin.buffer, "standard input") if str(file) in STDIN and sys.stdin else read_lines(file)


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

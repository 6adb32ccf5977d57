"""`threefold rerank`: the texts of a file in the order in which they answer a query, by a cross-encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from threefold.cli import options
from threefold.cli.encode import file_rows, require_table
from threefold.cli.show import note, note_cut, one_line, out, print_json, progress_bar, shorten
from threefold.errors import InputError


def rerank(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="What the texts should answer.")],
    file: Annotated[
        Path, typer.Argument(help="Texts: .txt (one per line), .jsonl, .json, .csv, .tsv; -: standard input.")
    ],
    k: Annotated[int | None, typer.Option("-k", help="Show only the best. Default: all.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scores from 0 to 1 instead of logits.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Longest pair in tokens. Default: the model's.")] = None,
    text_field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    id_field: Annotated[str, typer.Option(help="Column that holds the id; the row number where it is absent.")] = "id",
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Cross-encoder, by folder or hub name.", envvar=options.RERANKER_ENV),
    ] = "BAAI/bge-reranker-v2-m3",
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Order the texts of a file by how well they answer a query. The model reads query and text together."""
    if not query.strip():
        raise InputError("the query is empty. Type what the texts should answer")
    if k is not None and k < 1:
        raise InputError(f"-k must be at least 1; got {k}")
    if max_tokens is not None and max_tokens < 1:  # what a pair needs at least is known with the model
        raise InputError(f"--max-tokens must be at least 1; got {max_tokens}")
    require_table(context, file, "text_field", "id_field")
    bad: list[str] = []
    rows = list(file_rows(file, text_field, id_field, bad))
    cross = options.open_reranker(model, revision, device, precision)
    texts = [text for _, text in rows]
    with progress_bar("reading", len(texts), quiet=as_json) as bar:
        done = [0, 0]

        def count(pairs: int, tokens: int) -> None:
            done[:] = done[0] + pairs, done[1] + tokens
            bar.update(*done)

        judged = cross.judge(query, texts, normalize=normalize, max_tokens=max_tokens, progress=count)
    scores = judged.scores.tolist()
    order = sorted(range(len(rows)), key=lambda i: -scores[i])[:k]  # equal scores stay in the order of the file
    hits = [
        {"id": rows[i][0], "score": scores[i], "truncated": bool(judged.truncated[i]), "text": texts[i]} for i in order
    ]
    if as_json:
        print_json({"model": cross.name, "precision": cross.precision, "hits": hits, "skipped": bad})
    else:
        for rank, i in enumerate(order, start=1):
            out.print(
                Text.assemble((f"{rank}. ", "dim"), (f"{scores[i]:.3f} ", "bold green"), (one_line(rows[i][0]), "bold"))
            )
            out.print("   " + shorten(texts[i], 220))
        note_cut(int(judged.truncated.sum()), "text")
        for reason in bad:
            note(f"skipped: {reason}")
    if not hits:
        raise typer.Exit(1)

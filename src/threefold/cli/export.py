"""`threefold export`: a model as a folder that other libraries load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from threefold.cli import options
from threefold.cli.show import note, out, print_json


def export(
    output: Annotated[Path, typer.Option("--output", "-o", parser=options.target_of, help="The folder to write.")],
    model: Annotated[
        str | None, typer.Argument(help="Folder or hub name of a model. Default: the embedded threefold-mini.")
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="sentence-transformers, flagembedding or onnx.")
    ] = "sentence-transformers",
    precision: Annotated[str, typer.Option(help="Of the weights: float32 or float16.")] = "float32",
    pooling: Annotated[
        str | None, typer.Option(help="cls, mean or last, for a bare backbone that does not say it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier model in that folder.")] = False,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """Write a model in the layout of another library: sentence-transformers, FlagEmbedding or ONNX."""
    from threefold.export.layouts import Layout
    from threefold.export.layouts import export as write

    done = write(
        model, output, to=cast(Layout, to), precision=precision, revision=revision, pooling=pooling, force=force
    )
    if as_json:
        print_json({"folder": str(done.folder), "layout": done.layout, "files": done.files, "notes": list(done.notes)})
        return
    total = sum(done.files.values())
    out.print(f"{done.folder}: {len(done.files)} files, {total / 1e6:,.1f} MB, for {done.layout}")
    for line in done.notes:
        note(line)

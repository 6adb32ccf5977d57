"""`threefold`: the command line. It says in other words what the library does, and adds nothing of its own.

Exit status: 0 success, 1 nothing found or a failure without a better number, 2 bad input or usage, 3 model,
4 collection, 5 evaluation, 6 numbers, 7 a package is missing, 8 offline, 9 a worker process ended, 130 interrupted
(see `threefold.errors`).
"""

from __future__ import annotations

from threefold.cli import interrupts  # first: the imports below are what Ctrl-C falls into

# isort: split
import io
import os
import sys
from typing import Any, TextIO

import typer

from threefold import __version__
from threefold.cli import (
    analyze,
    ask,
    bench,
    browse,
    choose,
    classify,
    collections,
    encode,
    evaluate,
    export,
    inspect,
    keys,
    mcp,
    mine,
    rerank,
    serve,
    train,
    tune,
)
from threefold.cli.endings import ending_of, interrupted, keeping
from threefold.cli.show import complain, out, silence

interrupts.as_usual()

#: Columns of a terminal below which typer's boxes cut the names of options; click's plain help breaks lines instead.
NARROW = 60

#: What a wrong option raises: click's class, which newer versions of typer carry inside themselves.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="threefold",
    help="Dense, sparse and multi-vector search from one forward pass, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command("index")(collections.index)
app.command("search")(collections.search)
app.command("ask")(ask.ask)
app.command("browse")(browse.browse)
app.command("list")(collections.list_collections)
app.command("delete")(collections.delete)
app.command("optimize")(collections.optimize)
app.command("cluster")(analyze.cluster)
app.command("map")(analyze.draw_map)
app.command("outliers")(analyze.outliers)
app.command("duplicates")(analyze.duplicates)
app.command("diverse")(analyze.diverse)
app.command("recommend")(analyze.recommend)
app.command("classify")(classify.classify)
app.command("encode")(encode.encode)
app.command("bench")(bench.bench)
app.command("convert")(bench.convert)
app.command("export")(export.export)
app.command("rerank")(rerank.rerank)
app.command("compare")(inspect.compare)
app.command("info")(inspect.info)
app.command("evaluate")(evaluate.evaluate)
app.command("tune")(tune.tune)
app.command("train")(train.train)
app.command("choose")(choose.choose)
app.command("mine")(mine.mine)
app.command("distil")(mine.distil)
app.command("serve")(serve.serve)
app.command("mcp")(mcp.mcp)
app.add_typer(keys.keys_app, name="keys")


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"threefold {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Say the version."),
) -> None:
    """Dense, sparse and multi-vector search from one forward pass, on your own machine.

    The embedded model, threefold-mini, is the default; the full one is `--model BAAI/bge-m3`.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Every deliberate error becomes one line on standard error."""
    keeping(False)
    app.rich_markup_mode = "markdown" if out.width >= NARROW else None
    try:
        status = app(arguments, standalone_mode=False)  # the status of a `typer.Exit`, else None
    except UsageError as error:
        try:
            error.show()
        except (OSError, SystemExit):  # nobody reads it; Rich makes the latter of the former
            silence(sys.stderr)
        return 2
    except BrokenPipeError:  # `threefold search ... --json | head`
        silence(sys.stdout)
        return 0
    except SystemExit as error:  # what Rich makes of the same
        if isinstance(error.__context__, BrokenPipeError):
            return 0
        raise
    except (Exception, KeyboardInterrupt) as error:
        ending = ending_of(error)
        if ending is None:
            raise
        complain(ending.said)
        return ending.status
    if status == interrupts.STATUS:  # newer versions of typer make this of Ctrl-C, and say nothing
        complain(interrupted())
    return status if isinstance(status, int) else 0


def entry() -> None:
    """The console script. JSON is UTF-8, whatever the terminal or the pipe is said to be."""
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()  # None: closed, as by `>&-`
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.exit(main())


def _nowhere() -> TextIO:
    """A stream that takes the place of a closed one, and its number: else the first file that is opened gets that."""
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")

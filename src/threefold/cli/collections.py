"""`threefold index`, `search`, `list`, `delete`: collections from the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.text import Text

from threefold.cli import idle, options
from threefold.cli.chunked import chunking_in, precomputed
from threefold.cli.endings import keeping
from threefold.cli.inspect import show_reasons
from threefold.cli.opened import In, Into, Url, condition_in, existing, model_of
from threefold.cli.show import (
    complain,
    err,
    many,
    named,
    note,
    note_cut,
    of_system,
    one_line,
    out,
    print_json,
    print_table,
    progress_bar,
    shorten,
)
from threefold.config import MultiStorage
from threefold.errors import InputError, StoreError
from threefold.text.rows import ROW_SUFFIXES

if TYPE_CHECKING:
    from threefold.ingest import AddReport
    from threefold.retrieve.stages import Fusion, Mode, Rerank
    from threefold.types import Hit

#: Hits of a search that says nothing else: what fits a screen.
FEW = 5

#: Characters of a hit.
SHOWN = 220

#: Skipped files that are named one by one; the rest is counted.
NAMED = 20

#: Chunks from which a scan of all dense vectors takes longer than a person notices (results/search.json).
MANY_CHUNKS = 50_000


def index(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(parser=options.path_of, help="Files and folders to read.")],
    into: Into,
    delete_missing: Annotated[bool, typer.Option(help="Delete documents whose file is gone.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Longest chunk in tokens (new collections).")] = None,
    overlap: Annotated[int | None, typer.Option(help="Tokens that chunks share (new collections).")] = None,
    multi: Annotated[str | None, typer.Option(help="Token vectors: float16, int8, int4, none (new ones).")] = None,
    multi_pool: Annotated[int | None, typer.Option(help="Keep one of so many token vectors (new ones).")] = None,
    text_field: Annotated[str, typer.Option(help="Column of csv, tsv, jsonl, json that holds the text.")] = "text",
    prefix: Annotated[
        str, typer.Option(help="Put before each id, with a slash: two folders may have files of one name.")
    ] = "",
    ignored: Annotated[bool, typer.Option("--ignored", help="Read what .gitignore leaves out, too.")] = False,
    vectors: Annotated[
        list[Path] | None,
        typer.Option(
            parser=options.path_of,
            help="Files or folders of `threefold encode --chunks`: chunks that are in there are not encoded again.",
        ),
    ] = None,
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    devices: options.Devices = "",
    as_json: options.Json = False,
) -> None:
    """Read files into a collection. Run it again: unchanged files are skipped, changed ones replaced."""
    from threefold.collection import Collection
    from threefold.text.documents import Loading

    for path in paths:
        if not path.exists():  # before a collection is made for it
            raise InputError(f"{path} does not exist")
    tables = any(path.is_dir() or path.suffix.lower() in ROW_SUFFIXES for path in paths)
    idle.needs(context, f"a table ({', '.join(ROW_SUFFIXES)})", tables, "text_field")
    chunking = chunking_in(max_tokens, overlap)
    storage = cast("MultiStorage | None", multi)
    keeping()
    with (
        options.opened_encoder(*model_of(into, url, model, revision), device, precision, devices) as opened,
        Collection(
            into,
            (known := precomputed(opened, vectors, into, url, multi)) or opened,
            chunking=chunking,
            multi_storage=storage,
            multi_pool=multi_pool,
            url=url,
        ) as collection,
    ):
        with progress_bar("indexing", quiet=as_json) as bar:
            report = collection.add_files(
                paths,
                loading=Loading(text_field=text_field, ignored=ignored),
                prefix=prefix,
                delete_missing=delete_missing,
                without=vectors or (),
                progress=lambda documents, _chunks, tokens: bar.update(documents, tokens),
            )
        total = collection.count()
    if as_json:
        found = {"precomputed": known.found} if known else {}
        print_json({**dataclasses.asdict(report), **found, "collection": into, "total_chunks": total})
    else:
        _show_report(report, into, total, (known or opened).card.precision)
        if known and report.chunks:
            note(f"{known.found:,} of {many(report.chunks, 'chunk')} had vectors already")
    if not total or not (report.added or report.replaced or report.unchanged or report.deleted):
        raise typer.Exit(1)


def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="What you are looking for.")],
    into: In,
    k: Annotated[int | None, typer.Option("-k", help="How many hits; 5, or as many as --retriever says.")] = None,
    mode: Annotated[str, typer.Option(help="hybrid, dense, sparse or multi.")] = "hybrid",
    weights: Annotated[str, typer.Option(help="Weights of hybrid: dense,sparse,multi.")] = "",
    fusion: Annotated[str, typer.Option(help="weighted, rrf or dbsf.")] = "weighted",
    where: Annotated[str, typer.Option(help='Filter in JSON, such as {"language": "de"}.')] = "",
    retriever: Annotated[str | None, typer.Option(help="Name of saved stages.")] = None,
    rerank: Annotated[str | None, typer.Option(help="Cross-encoder that orders the best, by folder or name.")] = None,
    rerank_depth: Annotated[int | None, typer.Option(help="How many hits it reads; 100.")] = None,
    why: Annotated[bool, typer.Option("--why", help="Explain every hit.")] = False,
    quote: Annotated[bool, typer.Option("--quote", help="Show the sentence of every hit that answers best.")] = False,
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Find the passages that answer a query, in any language."""
    chosen = options.parse_weights(weights)
    condition = condition_in(where)
    idle.needs(context, "--rerank", rerank, "rerank_depth")
    idle.excludes(context, "--retriever", retriever, "mode", "weights", "fusion", "rerank_depth")
    stage = _rerank_stage(into, url, retriever, rerank_depth) if rerank else None  # refused before a model is loaded
    with existing(into, url, model, revision, device, precision, rerank) as collection:
        hits = collection.search(
            query,
            k=FEW if k is None and retriever is None else k,
            mode=cast("Mode", mode),
            weights=chosen,
            fusion=cast("Fusion", fusion),
            where=condition,
            why=why,
            quote=quote,
            retriever=retriever,
            rerank=stage,
        )
    if as_json:
        print_json([hit.to_dict() for hit in hits])
    else:
        for rank, hit in enumerate(hits, start=1):
            show_hit(rank, hit)
    if not hits:
        complain(f"nothing in {into} matches")
        raise typer.Exit(1)


def list_collections(as_json: options.Json = False) -> None:
    """The collections of this machine."""
    from threefold.opening import home
    from threefold.store.folder import read_manifest, size_bytes

    found: list[dict[str, Any]] = []
    damaged: list[str] = []
    for folder in _folders(home() / "collections"):
        try:
            if not _has_manifest(folder):  # left by a creation that was interrupted, or none of ours
                continue
            manifest, size = read_manifest(folder), size_bytes(folder)
        except StoreError as error:
            damaged.append(str(error))
            continue
        except OSError as error:  # such as a folder of another user
            damaged.append(of_system(error))
            continue
        found.append(
            {
                "name": folder.name,
                "model": manifest.model,
                "size_bytes": size,
                "multi_storage": manifest.multi_storage,
                "multi_pool": manifest.multi_pool,
            }
        )
    if as_json:
        print_json(found)
    else:
        print_table(
            ("name", "model", "MB", "multi"),
            [(one["name"], one["model"], f"{one['size_bytes'] / 1e6:,.1f}", _kept(one)) for one in found],
            left=4,
            words=1,
        )
        note(f"{many(len(found), 'collection')} in {home() / 'collections'}")
    for reason in damaged:
        complain(reason)
    if damaged:
        raise typer.Exit(StoreError.exit_code)


def delete(
    ids: Annotated[list[str], typer.Argument(help="Ids of documents (see `search --json`).")],
    into: In,
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """Delete documents from a collection."""
    with existing(into, url, model, revision) as collection:
        chunks = collection.delete(ids)
    if as_json:
        print_json({"deleted_chunks": chunks})
    else:
        err.print(f"{many(chunks, 'chunk')} deleted from {into}")
    if not chunks:
        raise typer.Exit(1)


def optimize(
    into: In,
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """Build the approximate index of a collection: worth it from about 50,000 chunks. Searches go on meanwhile."""
    with existing(into, url, model, revision) as collection, progress_bar(f"optimizing {into}"):
        collection.optimize()
    if as_json:
        print_json({"collection": into, "optimized": True})
    else:
        err.print(f"{into}: optimized")


# ---- words -----------------------------------------------------------------------------------------------


def show_hit(rank: int, hit: Hit) -> None:
    """One hit: where, how well, what it says, and why if that was asked for."""
    head = Text.assemble(
        (f"{rank}. ", "dim"),
        (f"{hit.score:.3f} ", "bold green"),
        (one_line(hit.chunk.title or hit.chunk.document_id), "bold"),
        (one_line(f"  {hit.chunk.document_id}:{hit.chunk.start}-{hit.chunk.end}"), "dim"),
    )
    out.print(head)
    out.print(Text("   ").append(_shown(hit)))
    if hit.why is None:
        return
    parts = [
        f"{name} {score:.3f}" + (f" (rank {hit.why.ranks[name]})" if name in hit.why.ranks else "")
        for name, score in hit.why.scores.items()
    ]
    out.print(named("scores", ", ".join(parts), indent="   "))
    show_reasons(hit.why.terms[:6], hit.why.tokens[:6], indent="   ")


def _shown(hit: Hit) -> Text:
    """The beginning of the text; or its best sentence, and around it what there is room for."""
    if hit.quote is None:
        return Text(shorten(hit.text, SHOWN))
    start, end = hit.quote.start - hit.chunk.start, hit.quote.end - hit.chunk.start
    quote = shorten(hit.quote.text, SHOWN)
    room = SHOWN - len(quote)
    before = shorten(hit.text[:start][::-1], room // 3)[::-1]
    after = shorten(hit.text[end:], room - len(before))
    return Text.assemble((f"{before} ".lstrip(), "dim"), (quote, "bold"), (f" {after}".rstrip(), "dim"))


def _folders(place: Path) -> list[Path]:
    """What is there. Unlike with `Path.glob`, a place that cannot be read is an error, and not one without any."""
    try:
        return sorted(place.iterdir())
    except FileNotFoundError:  # nothing was indexed yet
        return []


def _kept(one: dict[str, Any]) -> str:
    """How token vectors are kept."""
    storage, pool = one["multi_storage"], one["multi_pool"]
    return storage if pool == 1 else f"{storage}, 1 in {pool}"


def _has_manifest(folder: Path) -> bool:
    """Whether it is a collection. A folder that may not be read is an error, which `Path.exists` hides."""
    from threefold.store.folder import manifest_path

    try:
        manifest_path(folder).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _show_report(report: AddReport, into: str, total: int, precision: str) -> None:
    counts = {"added": report.added, "replaced": report.replaced, "unchanged": report.unchanged}
    counts |= {"deleted": report.deleted, "skipped": len(report.skipped)}
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to do"
    err.print(f"{into}: {said}; {many(total, 'chunk')} in all")
    if report.tokens:
        rate = report.tokens / max(report.seconds, 1e-9)
        read = f"{many(report.chunks, 'chunk')}, {many(report.tokens, 'token')}"
        note(f"{read} in {report.seconds:.1f} s ({rate:,.0f}/s, {precision})")
    if report.chunks and total >= MANY_CHUNKS:
        note(f"searches become faster with: threefold optimize --in {into}")
    note_cut(report.truncated, "chunk")
    for skipped in report.skipped[:NAMED]:
        note(f"skipped {one_line(skipped.path)}: {_beside(skipped.path, skipped.reason)}")
    if len(report.skipped) > NAMED:
        note(f"... and {len(report.skipped) - NAMED:,} more; --json names them all")


def _beside(path: str, reason: str) -> str:
    """The reason as it is said beside the path, which many begin with."""
    return f"the file{reason.removeprefix(path)}" if reason.startswith(path) else reason


def _rerank_stage(into: str, url: str | None, retriever: str | None, depth: int | None) -> Rerank | None:
    """The stage of `--rerank`; saved stages bring their own, which must be one that uses the cross-encoder."""
    from threefold.opening import collection_folder
    from threefold.retrieve.saved import SavedRetrievers
    from threefold.retrieve.stages import Rerank
    from threefold.store.folder import read_manifest

    if depth is not None and depth < 1:
        raise InputError(f"--rerank-depth must be at least 1; got {depth}")
    if retriever is None:
        return Rerank("cross") if depth is None else Rerank("cross", depth)
    folder = collection_folder(into) if url is None else None
    if folder:
        read_manifest(folder)  # of a collection that is absent, the stages are not what is missing
    saved = SavedRetrievers(folder).load(retriever).rerank
    if saved is None or saved.by != "cross":
        raise InputError(f'the saved stages {retriever!r} do not rerank by "cross"; leave out --rerank or --retriever')
    return None

"""`threefold cluster`, `map`, `outliers`, `duplicates`, `diverse`, `recommend`: a collection without a query.

Nothing is encoded again: they read the vectors that the collection keeps.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.text import Text

from threefold.characters import check_name
from threefold.cli import idle, options
from threefold.cli.collections import show_hit
from threefold.cli.opened import In, Url, Where, condition_in, existing
from threefold.cli.show import complain, err, many, note, one_line, out, print_json, print_table, progress_bar, shorten
from threefold.errors import InputError

if TYPE_CHECKING:
    from threefold.analyze import Corpus, Item
    from threefold.analyze.corpus import By
    from threefold.analyze.maps import Method as Placing
    from threefold.collection import Collection

#: Characters of a text in a table.
WIDTH = 90

Unit = Annotated[str, typer.Option("--by", help="What an item is: document or chunk.")]
Seed = Annotated[int, typer.Option(help="Where chance decides.")]


def cluster(
    into: In,
    count: Annotated[
        int | None, typer.Option("--clusters", "-n", help="How many groups. Default: it finds out.")
    ] = None,
    by: Unit = "document",
    where: Where = "",
    seed: Seed = 0,
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """Groups of similar documents, with the words that set each apart."""
    from threefold.analyze import cluster as find

    with existing(into, url, model, revision) as collection:
        words = "sparse" in collection.representations
        nothing: Any = {"groups": [], "silhouette": None, "items": []}
        corpus = _gathered(collection, where, by, nothing, words=words, as_json=as_json)
        found = find(corpus, count, tokenizer=collection.encoder.tokenizer if words else None, seed=seed)
    items = corpus.items
    if as_json:
        groups = [asdict(group) | {"examples": [items[i].id for i in group.examples]} for group in found.groups]
        labels = [{"id": item.id, "group": int(label)} for item, label in zip(items, found.labels, strict=True)]
        print_json({"groups": groups, "silhouette": found.silhouette, "items": labels})
        return
    for group in found.groups:
        out.print(Text.assemble((f"{group.size:5,}  ", "bold green"), (one_line(", ".join(group.keywords)), "bold")))
        out.print("       " + shorten(" · ".join(_name(items[i]) for i in group.examples), 160))
    said = "" if found.silhouette is None else f", silhouette {found.silhouette:.2f}"
    note(f"{many(len(items), by)} in {many(len(found.groups), 'group')}{said}")


def draw_map(
    context: typer.Context,
    into: In,
    output: Annotated[Path, typer.Option("--output", "-o", parser=options.target_of, help="Page to write (.html).")],
    color: Annotated[
        str, typer.Option(help="Colours: cluster, language, source, or a field of the metadata.")
    ] = "cluster",
    method: Annotated[str, typer.Option(help="tsne, umap (for many) or pca (at once).")] = "tsne",
    points: Annotated[
        Path | None, typer.Option(parser=options.target_of, help="Parquet file for the points as well.")
    ] = None,
    by: Unit = "document",
    where: Where = "",
    seed: Seed = 0,
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """A map of a collection: a page with a point for each document, similar ones near each other."""
    from threefold.analyze import draw, place
    from threefold.analyze.maps import check_method, save_points
    from threefold.replacing import replacing

    check_method(method)
    idle.needs(context, "--method tsne or umap, or --color cluster", method != "pca" or color == "cluster", "seed")
    for path in filter(None, (output, points)):
        options.require_folder_of(path)
        check_name(path)
    if points is not None and points.resolve() == output.resolve():
        raise InputError(f"--output and --points are both {output}; choose another name for one of them")
    with existing(into, url, model, revision) as collection:
        words = color == "cluster" and "sparse" in collection.representations
        nothing = {"page": None, "points": None, "items": 0, "method": None}
        corpus = _gathered(collection, where, by, nothing, words=words, as_json=as_json)
        groups = _colours(corpus, color, collection, words, seed)
    with progress_bar("placing", quiet=as_json):
        placed = place(corpus, method=cast("Placing", method), seed=seed)
    with replacing(output) as draft:
        draft.write_text(draw(placed, groups, title=f"{into}, by {color}"), encoding="utf-8")
    if points is not None:
        save_points(placed, groups, points)
    if as_json:
        print_json(
            {"page": str(output), "points": points and str(points), "items": len(corpus), "method": placed.method}
        )
    else:
        err.print(f"{many(len(corpus), by)} -> {output}" + (f" and {points}" if points else ""))


def outliers(
    into: In,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    by: Unit = "document",
    where: Where = "",
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """The documents least like the others, the strangest first."""
    from threefold.analyze import outliers as find

    with existing(into, url, model, revision) as collection:
        corpus = _gathered(collection, where, by, [], as_json=as_json)
    with progress_bar("comparing", len(corpus), quiet=as_json) as bar:
        found = find(corpus, k, progress=lambda done, _: bar.update(done, 0))
    items = corpus.items
    if as_json:
        said = [(items[one.number], one.score, items[one.nearest].id) for one in found]
        print_json([{"id": one.id, "score": far, "nearest": near, "text": one.text} for one, far, near in said])
        return
    rows = [(f"{one.score:.3f}", items[one.number].id, shorten(items[one.number].text, WIDTH)) for one in found]
    print_table(("score", by, "text"), rows, left=3, words=2)


def duplicates(
    into: In,
    threshold: Annotated[
        float | None, typer.Option(help="Cosine from which two are the same. Default: 0.9; see docs/analysis.md.")
    ] = None,
    by: Unit = "document",
    where: Where = "",
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """The documents that say again what an earlier one says. Exit status 1: there are none."""
    from threefold.analyze import duplicates as find
    from threefold.analyze.duplicates import THRESHOLD

    with existing(into, url, model, revision) as collection:
        corpus = _gathered(collection, where, by, [], as_json=as_json)
    with progress_bar("comparing", len(corpus), quiet=as_json) as bar:
        least = THRESHOLD if threshold is None else threshold
        found = find(corpus, least, progress=lambda done, _: bar.update(done, 0))
    items = corpus.items
    pairs = [(one.similarity, items[one.number].id, items[one.kept].id) for one in found]
    if as_json:
        print_json([{"id": id, "kept": kept, "similarity": similarity} for similarity, id, kept in pairs])
    else:
        if pairs:
            print_table(("cosine", by, "like"), [(f"{s:.4f}", id, kept) for s, id, kept in pairs], left=3, words=2)
        are = "is" if len(pairs) == 1 else "are"
        note(f"{len(pairs):,} of {many(len(items), by)} {are} within {least:g} of an earlier one")
    if not pairs:
        raise typer.Exit(1)


def diverse(
    into: In,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    by: Unit = "document",
    where: Where = "",
    seed: Seed = 0,
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """A few documents that stand for all, and how varied the collection is."""
    from threefold.analyze import pick, vendi

    with existing(into, url, model, revision) as collection:
        corpus = _gathered(collection, where, by, {"vendi": 0.0, "items": []}, as_json=as_json)
    score, picked = vendi(corpus.dense), [corpus.items[i] for i in pick(corpus, min(k, len(corpus)), seed=seed)]
    if as_json:
        print_json({"vendi": score, "items": [{"id": item.id, "text": item.text} for item in picked]})
        return
    print_table((by, "text"), [(item.id, shorten(item.text, WIDTH)) for item in picked], left=2, words=1)
    note(f"as varied as {score:,.1f} documents that have nothing in common (Vendi score), of {len(corpus):,}")


def recommend(
    context: typer.Context,
    like: Annotated[list[str], typer.Argument(metavar="ID...", help="Documents or chunks that are liked.")],
    into: In,
    unlike: Annotated[list[str] | None, typer.Option(help="Ones that are not; can be given again.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 5,
    half_life: Annotated[
        float | None, typer.Option(help="The last ID counts fully, one so many before it half.")
    ] = None,
    relevance: Annotated[float | None, typer.Option(help="Below 1: hits that are like each other give way.")] = None,
    where: Where = "",
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
) -> None:
    """More like these: the documents nearest to the ones that are named."""
    from threefold.retrieve.stages import Diversify

    idle.needs(context, "two IDs or more", len(like) > 1, "half_life")
    condition = condition_in(where)
    varied = None if relevance is None else Diversify(relevance)
    with existing(into, url, model, revision) as collection:
        hits = collection.recommend(like, unlike or (), k=k, where=condition, half_life=half_life, diversify=varied)
    if as_json:
        print_json([hit.to_dict() for hit in hits])
    else:
        for rank, hit in enumerate(hits, start=1):
            show_hit(rank, hit)
    if not hits:
        complain(f"nothing else in {into} matches")
        raise typer.Exit(1)


# ---- words -----------------------------------------------------------------------------------------------


def _gathered(
    collection: Collection, where: str, by: str, nothing: Any, *, words: bool = False, as_json: bool = False
) -> Corpus:
    """The items; where there are none, the JSON that says so, and exit status 1."""
    from threefold.analyze import gather

    if by not in ("document", "chunk"):
        raise InputError(f"--by {by!r}: expected document or chunk")
    condition = condition_in(where)
    chunks = collection.count(condition)
    if not chunks:
        if as_json:
            print_json(nothing)
        complain(f"nothing in {collection.name} matches" if condition else f"{collection.name} has no documents")
        raise typer.Exit(1)
    with progress_bar(f"reading {collection.name}", chunks, quiet=as_json) as bar:
        return gather(
            collection,
            where=condition,
            by=cast("By", by),
            sparse=words,
            progress=lambda done, _: bar.update(done, 0),
        )


def _colours(corpus: Corpus, color: str, collection: Collection, words: bool, seed: int) -> list[str]:
    from threefold.analyze import cluster as find
    from threefold.analyze.maps import groups_by

    if color != "cluster":
        return groups_by(corpus.items, color)
    found = find(corpus, tokenizer=collection.encoder.tokenizer if words else None, seed=seed)
    names = [", ".join(group.keywords[:4]) or f"group {group.number + 1}" for group in found.groups]
    return [names[label] for label in found.labels]


def _name(item: Item) -> str:
    return item.title or item.id

"""Items as points of a plane, where neighbours stay neighbours; as a page to look at, or as Parquet for other tools."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from threefold.analyze.corpus import Corpus, Item, centred
from threefold.analyze.optional import load
from threefold.characters import clean_value
from threefold.errors import InputError
from threefold.replacing import replacing
from threefold.types import Floats

Method = Literal["tsne", "umap", "pca"]

#: Fewer items than this have no neighbourhoods: they are placed by their two main directions.
FEW: Final = 10
#: Characters of a text, or of the name of a group, on the page.
SHOWN: Final = 400
#: Groups with a colour of their own on the page; the smaller ones share one.
COLOURS: Final = 20
OTHER: Final = "other"


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """Where every item is.

    xy      (n, 2) float32, each axis about 0, the longer from -1 to 1
    method  how they were placed
    """

    items: tuple[Item, ...]
    xy: Floats
    method: Method


def place(corpus: Corpus, *, method: Method = "tsne", seed: int = 0) -> Map:
    """Place the items so that similar ones are near each other; what is far apart says little.

    method  tsne: keeps neighbours best (scikit-learn's; van der Maaten and Hinton 2008), a minute for 10,000 items
            umap: faster beyond that (extra `umap`; McInnes et al. 2018)
            pca: the two main directions, in no time; fewer than 10 items, and equal ones, are always placed so
    """
    check_method(method)
    if not len(corpus):
        raise InputError("there is nothing to place on a map")
    rows = centred(corpus.dense)
    if len(rows) < FEW or not rows.any():  # of equal items t-SNE divides by 0, and may end the process
        method = "pca"
    placed = {"tsne": _tsne, "umap": _umap, "pca": _pca}[method](rows, seed)
    return Map(corpus.items, _framed(placed), method)


def check_method(method: str) -> None:
    """Refuse a way to place items that is not known."""
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}; known are {', '.join(get_args(Method))}")


def draw(placed: Map, groups: Sequence[str], *, title: str = "map") -> str:
    """A page that needs nothing else: points in the colours of their groups, their texts, a search, and zoom.

    groups  of every item, such as its language or the keywords of its cluster
    """
    if len(groups) != len(placed.items):
        raise InputError(f"{len(placed.items)} items but {len(groups)} groups")
    named = [name for name, _ in Counter(groups).most_common(COLOURS)]
    number = {name: i for i, name in enumerate(named)}
    rest = len(named) < len(set(groups))
    data = {
        "title": title,
        "groups": [*map(_shortened, named), *([OTHER] if rest else [])],
        "points": [
            [round(float(x), 4), round(float(y), 4), number.get(group, len(named)), item.id, _shortened(item.text)]
            for (x, y), group, item in zip(placed.xy, groups, placed.items, strict=True)
        ],
    }
    page = files("threefold.analyze").joinpath("map.html").read_text(encoding="utf-8")
    return page.replace("/*DATA*/null", _embedded(data))


def save_points(placed: Map, groups: Sequence[str], path: Path) -> None:
    """A Parquet file with id, text, title, source, language, x, y and group: what embedding-atlas and others read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        name: [clean_value(getattr(item, name)) for item in placed.items]
        for name in ("id", "text", "title", "source", "language")
    }
    columns |= {"x": placed.xy[:, 0], "y": placed.xy[:, 1], "group": clean_value(list(groups))}
    with replacing(path) as draft:
        pq.write_table(pa.table(columns), draft)


def groups_by(items: Sequence[Item], field: str) -> list[str]:
    """What a field says of every item: source, title, language, or a key of the metadata; "" where it says nothing."""
    if field in ("source", "title", "language"):
        return [str(getattr(item, field)) for item in items]
    if not any(field in item.metadata for item in items):
        keys = sorted({key for item in items for key in item.metadata})
        raise InputError(
            f"no item has a field {field!r}; there are source, title, language{''.join(f', {k}' for k in keys)}"
        )
    return [_said(item.metadata.get(field)) for item in items]


def _said(value: Any) -> str:
    """A value of the metadata as text: what is not text is written as in JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _tsne(rows: Floats, seed: int) -> Floats:
    manifold = load("sklearn.manifold", "a map")
    perplexity = min(30.0, (len(rows) - 1) / 3)  # van der Maaten's advice: three times as many neighbours
    model = manifold.TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed)
    placed: Floats = model.fit_transform(rows)
    return placed


def _umap(rows: Floats, seed: int) -> Floats:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)  # for what is not used here
        warnings.filterwarnings("ignore", "n_jobs value 1 overridden", UserWarning)  # a seed means one thread
        library, neighbours = load("umap", "a map by UMAP"), min(15, len(rows) - 1)
        model = library.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed)
        placed: Floats = model.fit_transform(rows)
    return placed


def _pca(rows: Floats, _seed: int) -> Floats:
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    placed = rows @ directions[:2].T
    return np.pad(placed, ((0, 0), (0, 2 - placed.shape[1])))


def _framed(xy: Floats) -> Floats:
    middle = (xy.max(axis=0) + xy.min(axis=0)) / 2
    half = float(np.ptp(xy, axis=0).max()) / 2
    framed: Floats = ((xy - middle) / (half or 1.0)).astype(np.float32)
    return framed


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON inside of a script: `</script>` and `<!--` in a text would end it."""
    return json.dumps(clean_value(data), ensure_ascii=False).replace("<", "\\u003c")

"""What we say to a Qdrant server: the vectors of a collection, its points and its filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdrant_client import models

from threefold.config import Manifest
from threefold.store.check import stored
from threefold.store.payload import point_id
from threefold.store.points import plain_vector
from threefold.types import Encoded, Representation

_MULTI_DATATYPE = {"float16": "float16", "int8": "turbo8", "int4": "turbo4"}


def vectors_config(manifest: Manifest) -> dict[str, models.VectorParams]:
    """The server's settings for the vectors that the collection keeps; sparse ones have none."""
    config: dict[str, models.VectorParams] = {}
    if "dense" in stored(manifest):
        config["dense"] = models.VectorParams(
            size=manifest.dense_dim, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16
        )
    if "multi" in stored(manifest):
        config["multi"] = models.VectorParams(
            size=manifest.multi_dim,
            distance=models.Distance.DOT,
            datatype=models.Datatype(_MULTI_DATATYPE[manifest.multi_storage]),
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # token vectors are scored on candidates, never searched by graph
        )
    return config


def qdrant_vector(representation: Representation, vectors: Encoded, i: int) -> Any:
    """One vector of text i as the server takes it."""
    return plain_vector(
        representation, vectors, i, lambda ids, weights: models.SparseVector(indices=ids, values=weights)
    )


def qdrant_point(manifest: Manifest, payload: dict[str, Any], vectors: Encoded, i: int) -> models.PointStruct:
    """Text i as a point with every vector that the collection keeps."""
    named: dict[str, Any] = {name: qdrant_vector(name, vectors, i) for name in stored(manifest)}
    return models.PointStruct(id=point_id(payload["id"]), vector=named, payload=payload)


class QdrantWords:
    """Filters of the server; a `Dialect`."""

    def every(self, parts: list[models.Filter]) -> models.Filter:
        return models.Filter(must=[*parts])

    def some(self, parts: list[models.Filter]) -> models.Filter:
        return models.Filter(should=[*parts])

    def no(self, part: models.Filter) -> models.Filter:
        return models.Filter(must_not=[part])

    def text(self, path: str, values: list[str]) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key=path, match=models.MatchAny(any=values))])

    def number(self, path: str, bounds: Mapping[str, float]) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key=path, range=models.Range(**bounds))])

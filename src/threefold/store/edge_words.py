"""What we say to the embedded engine (qdrant-edge): its settings for a collection, its points and its filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeSparseVectorParams,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    HnswIndexConfig,
    MatchAny,
    MultiVectorComparator,
    MultiVectorConfig,
    Point,
    RangeFloat,
    SparseVector,
    VectorStorageDatatype,
)

from threefold.config import Manifest
from threefold.store.check import stored
from threefold.store.points import plain_vector
from threefold.types import Encoded, Representation

#: Dense vectors are kept as float16: scores of unit vectors are within 1e-4 of float32 at 384 and 1,024
#: dimensions, where Turbo8 gives 1.3e-3 and 7e-4, for 1 KB more of each chunk at 1,024 dimensions; searching
#: 20,000 vectors without an index takes 2.5 ms against 1.4 ms.
DENSE_DATATYPE = VectorStorageDatatype.Float16

#: Token vectors are some 97 % of the bytes. Turbo8 and Turbo4 rotate and round to 8 and 4 bits per dimension.
MULTI_DATATYPE = {
    "float16": VectorStorageDatatype.Float16,
    "int8": VectorStorageDatatype.Turbo8,
    "int4": VectorStorageDatatype.Turbo4,  # type: ignore[attr-defined]  # left out of the package's stubs
}

#: Malkov and Yashunin 2018, parameters of the graph; the engine's own defaults, stated because scores depend on them.
HNSW_LINKS = 16
HNSW_EF_CONSTRUCT = 100
_FULL_SCAN_KB = 10_000


def edge_config(manifest: Manifest) -> EdgeConfig:
    """The engine's settings for what the collection keeps."""
    keep = stored(manifest)
    vectors: dict[str, EdgeVectorParams] = {}
    if "dense" in keep:
        graph = HnswIndexConfig(m=HNSW_LINKS, ef_construct=HNSW_EF_CONSTRUCT, full_scan_threshold=_FULL_SCAN_KB)
        vectors["dense"] = EdgeVectorParams(
            size=manifest.dense_dim, distance=Distance.Dot, datatype=DENSE_DATATYPE, hnsw_config=graph
        )
    if "multi" in keep:
        no_graph = HnswIndexConfig(m=0, ef_construct=HNSW_EF_CONSTRUCT, full_scan_threshold=_FULL_SCAN_KB)
        vectors["multi"] = EdgeVectorParams(
            size=manifest.multi_dim,
            distance=Distance.Dot,
            datatype=MULTI_DATATYPE[manifest.multi_storage],
            multivector_config=MultiVectorConfig(MultiVectorComparator.MaxSim),
            hnsw_config=no_graph,
        )
    sparse = {"sparse": EdgeSparseVectorParams()} if "sparse" in keep else None
    return EdgeConfig(vectors=vectors or None, sparse_vectors=sparse)


def edge_vector(representation: Representation, vectors: Encoded, i: int) -> Any:
    """One vector of text i as the engine takes it."""
    return plain_vector(representation, vectors, i, SparseVector)


def edge_point(manifest: Manifest, point: str, payload: dict[str, Any], vectors: Encoded, i: int) -> Point:
    """Text i as a point with every vector that the collection keeps."""
    named: dict[str, Any] = {name: edge_vector(name, vectors, i) for name in stored(manifest)}
    return Point(point, named, payload)


class EdgeWords:
    """Filters of the embedded engine; a `Dialect`."""

    def every(self, parts: list[Filter]) -> Filter:
        return Filter(must=list(parts))

    def some(self, parts: list[Filter]) -> Filter:
        return Filter(should=list(parts))

    def no(self, part: Filter) -> Filter:
        return Filter(must_not=[part])

    def text(self, path: str, values: list[str]) -> Filter:
        return Filter(must=[FieldCondition(path, match=MatchAny(values))])

    def number(self, path: str, bounds: Mapping[str, float]) -> Filter:
        return Filter(must=[FieldCondition(path, range=RangeFloat(**bounds))])

"""The published values of BGE-M3 (reference in float16 on a GPU), when THREEFOLD_BGE_M3 names its folder."""

from __future__ import annotations

import os

import pytest

from threefold.encoder.encoder import Encoder
from threefold.score import dense_scores, maxsim, sparse_scores, weighted_sum
from threefold.score.fuse import Weights
from threefold.types import Encoded, Floats, Representation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("THREEFOLD_BGE_M3" not in os.environ, reason="THREEFOLD_BGE_M3 names no folder of bge-m3"),
]

QUERIES = ["What is BGE M3?", "Defination of BM25"]
PASSAGES = [
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing "
    "in each document",
]
DENSE = [[0.6259765625, 0.347412109375], [0.349853515625, 0.67822265625]]
SPARSE = [[0.195556640625, 0.00879669189453125], [0.0, 0.1802978515625]]
MULTI = [[0.7796499730, 0.4621465802], [0.4523794651, 0.7898575068]]
ALL = [[0.6013619304, 0.3255828023], [0.3208931983, 0.6232916117]]
TERMS = [
    {"▁What": 0.08356, "▁is": 0.0814, "▁B": 0.1296, "GE": 0.2520, "▁M": 0.1702, "3": 0.2695, "?": 0.04092},
    {"▁De": 0.05005, "fin": 0.1368, "ation": 0.04498, "▁of": 0.0633, "▁BM": 0.2515, "25": 0.3335},
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(os.environ["THREEFOLD_BGE_M3"], precision="float32")


@pytest.fixture(scope="module")
def encoded(encoder: Encoder) -> tuple[Encoded, Encoded]:
    return encoder.encode(QUERIES), encoder.encode(PASSAGES)


def near(values: list[float]) -> object:
    return pytest.approx(values, abs=2e-3)


@pytest.mark.parametrize("i", [0, 1])
def test_scores(encoded: tuple[Encoded, Encoded], i: int) -> None:
    queries, passages = encoded
    assert queries.dense is not None
    assert queries.sparse is not None
    assert queries.multi is not None
    assert passages.dense is not None
    assert passages.sparse is not None
    assert passages.multi is not None
    scores: dict[Representation, Floats] = {
        "dense": dense_scores(queries.dense[i], passages.dense),
        "sparse": sparse_scores(queries.sparse[i], passages.sparse),
        "multi": maxsim(queries.multi[i], passages.multi),
    }
    assert scores["dense"].tolist() == near(DENSE[i])
    assert scores["sparse"].tolist() == near(SPARSE[i])
    assert scores["multi"].tolist() == near(MULTI[i])
    assert weighted_sum(scores, Weights(0.4, 0.2, 0.4)).tolist() == near(ALL[i])


@pytest.mark.parametrize("i", [0, 1])
def test_weights_of_terms(encoder: Encoder, encoded: tuple[Encoded, Encoded], i: int) -> None:
    sparse = encoded[0].sparse
    assert sparse is not None
    terms = {encoder.tokenizer.token(id): weight for id, weight in sparse.row(i).items()}
    assert {term.strip("▁"): weight for term, weight in terms.items()} == pytest.approx(
        {term.strip("▁"): weight for term, weight in TERMS[i].items()}, abs=1e-3
    )


def test_rows(encoded: tuple[Encoded, Encoded]) -> None:
    assert encoded[0].multi is not None
    assert encoded[1].multi is not None
    assert (len(encoded[0].multi[0]), len(encoded[1].multi[0])) == (8, 30)

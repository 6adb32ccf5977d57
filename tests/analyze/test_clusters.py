from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, silhouette_score
from tests.analyze.corpora import blobs, corpus, random_corpus, unit
from tests.fakes import FakeEncoder

from threefold.analyze import cluster, clusters, of_texts
from threefold.analyze.corpus import centred
from threefold.errors import InputError


@pytest.mark.parametrize("count", [1, 2, 5, 17, 60])
def test_the_cut_is_that_of_scikit_learn(count: int) -> None:
    given = random_corpus(60)
    found = cluster(given, count)
    oracle = AgglomerativeClustering(count, linkage="ward").fit_predict(centred(given.dense))
    assert adjusted_rand_score(oracle, found.labels) == 1.0
    assert len(found.groups) == count


def test_groups_are_numbered_by_size_and_described() -> None:
    given = blobs([5, 12, 8])
    found = cluster(given, 3)
    assert [(group.number, group.size) for group in found.groups] == [(0, 12), (1, 8), (2, 5)]
    assert found.labels.tolist() == [2] * 5 + [0] * 12 + [1] * 8
    rows = centred(given.dense)
    for group in found.groups:
        members = np.flatnonzero(found.labels == group.number)
        centre = rows[members].sum(axis=0)
        near = rows[members] @ (centre / np.linalg.norm(centre))
        assert group.cohesion == pytest.approx(near.mean(), abs=1e-5)
        assert group.examples == tuple(members[np.argsort(-near, kind="stable")][:3].tolist())
        assert group.keywords == ()
    assert found.silhouette == pytest.approx(silhouette_score(rows, found.labels, metric="cosine"), abs=1e-5)


@pytest.mark.parametrize("count", [2, 20, 59])
def test_the_silhouette_is_that_of_scikit_learn(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with groups of one item, and with items that have no direction: the mean of all."""
    dense = random_corpus(60).dense
    given = corpus(np.concatenate([dense, np.tile(dense.mean(axis=0), (4, 1))]))
    for block in (2**25, 100):
        monkeypatch.setattr(clusters, "BLOCK", block)
        found = cluster(given, count)
        want = silhouette_score(centred(given.dense), found.labels, metric="cosine")
        assert found.silhouette == pytest.approx(want, abs=1e-5)


def test_nothing_else_needs_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sklearn", "sklearn.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cluster(blobs([5, 12, 8]), 3).silhouette is not None
    assert len(cluster(blobs([9, 10, 11, 12, 13, 14])).groups) == 6


def test_the_number_of_groups_is_found() -> None:
    found = cluster(blobs([9, 10, 11, 12, 13, 14]))
    assert [group.size for group in found.groups] == [14, 13, 12, 11, 10, 9]
    assert found.silhouette is not None
    assert found.silhouette > 0.8


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_few_items_are_one_group(n: int) -> None:
    found = cluster(random_corpus(n))
    assert (found.labels.tolist(), found.silhouette) == ([0] * n, None)


def test_equal_items_are_no_trouble() -> None:
    same = corpus(np.tile(np.eye(4, dtype=np.float32)[0], (20, 1)))
    assert sum(group.size for group in cluster(same).groups) == 20
    assert len(cluster(same, 3).groups) == 3


def test_more_items_than_the_tree_holds_join_the_nearest_group(monkeypatch: pytest.MonkeyPatch) -> None:
    given = blobs([40, 30, 20])
    whole = cluster(given, 3)
    monkeypatch.setattr(clusters, "MOST_IN_TREE", 30)
    sampled = cluster(given, 3, seed=1)
    assert sampled.labels.tolist() == whole.labels.tolist()
    assert len(cluster(given).labels) == 90
    with pytest.raises(InputError, match="more than 30 groups"):
        cluster(given, 31)


def test_words_say_what_a_group_is_about(encoder: FakeEncoder) -> None:
    foxes = [f"The quick brown fox jumps {i}" for i in range(6)]
    weather = [f"Сегодня хорошая погода {i}" for i in range(6)]
    given = of_texts(encoder, [*foxes, *weather], sparse=True)
    found = cluster(given, 2, tokenizer=encoder.tokenizer)
    words = [set(group.keywords) for group in found.groups]
    assert {"quick", "brown", "fox"} <= words[0]
    assert {"погода"} <= words[1]
    with pytest.raises(InputError, match="gather the corpus with sparse=True"):
        cluster(of_texts(encoder, foxes), 2, tokenizer=encoder.tokenizer)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to cluster"):
        cluster(corpus(np.zeros((0, 4), np.float32)))
    for count in (0, 6):
        with pytest.raises(InputError, match=f"{count} groups of 5 items: give a number from 1 to 5"):
            cluster(random_corpus(5), count)


@pytest.mark.parametrize("n", [1, 12, 40])
def test_equal_items_are_one_group(n: int) -> None:
    given = corpus(np.tile(unit(np.random.default_rng(0).standard_normal((1, 64))), (n, 1)))
    (group,) = cluster(given).groups
    assert (group.size, group.cohesion) == (n, 1.0)
    doubled = corpus(np.repeat(random_corpus(3).dense, 20, axis=0))
    assert len(cluster(doubled).groups) == 3  # and never more than there are different ones


def test_the_others_join_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MOST_IN_TREE", 30)
    given = blobs([20, 20, 20])
    whole = cluster(given, 3).labels
    monkeypatch.setattr(clusters, "BLOCK", 10)
    np.testing.assert_array_equal(cluster(given, 3).labels, whole)

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.manifold import trustworthiness
from tests.analyze.corpora import blobs, corpus, random_corpus
from tests.browsers import dom, needs_browser

from threefold.analyze import Corpus, Item, Map, draw, maps, place
from threefold.analyze.corpus import centred
from threefold.analyze.maps import groups_by, save_points
from threefold.errors import InputError, MissingExtraError
from threefold.types import Floats


def embedded(page: str) -> Any:
    """The data of a page, as its script reads them."""
    match = re.search(r"^const data = (.*);$", page, re.MULTILINE)
    assert match is not None
    return json.loads(match[1])


def test_neighbours_stay_neighbours() -> None:
    given = blobs([20, 20, 20])
    placed = place(given)
    assert placed.method == "tsne"
    assert trustworthiness(centred(given.dense), placed.xy, metric="cosine") > 0.9
    means = np.stack([placed.xy[i : i + 20].mean(axis=0) for i in (0, 20, 40)])
    for i in range(60):  # each point is nearest to the middle of its own group
        assert np.linalg.norm(means - placed.xy[i], axis=1).argmin() == i // 20
    assert (place(given).xy == placed.xy).all()


def test_the_main_directions_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import TruncatedSVD

    given = random_corpus(30)
    got = place(given, method="pca").xy
    want = TruncatedSVD(2, algorithm="arpack").fit_transform(centred(given.dense))
    for axis in (0, 1):
        assert abs(np.corrcoef(got[:, axis], want[:, axis])[0, 1]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_few_items_are_placed_at_once(n: int) -> None:
    placed = place(random_corpus(n, dim=3))
    assert placed.method == "pca"
    assert placed.xy.shape == (n, 2)


def test_the_frame_is_from_minus_one_to_one() -> None:
    def framed(xy: Floats) -> Floats:
        return maps._framed(xy)

    np.testing.assert_allclose(framed(np.array([[0.0, 10.0], [4.0, 12.0]])), [[-1, -0.5], [1, 0.5]])
    np.testing.assert_array_equal(framed(np.array([[3.0, 3.0]])), [[0, 0]])


def test_a_page_has_every_point_and_needs_nothing_else() -> None:
    given = random_corpus(3)
    items = (replace(given.items[0], text="</script><script>alert(1)</script>"), *given.items[1:])
    page = draw(Map(items, np.zeros((3, 2), np.float32), "pca"), ["b", "a", "b"], title="<b>papers</b>")
    data = embedded(page)
    assert data["title"] == "<b>papers</b>"
    assert data["groups"] == ["b", "a"]
    assert [point[2:4] for point in data["points"]] == [[0, "i0"], [1, "i1"], [0, "i2"]]
    assert data["points"][0][4] == "</script><script>alert(1)</script>"
    assert page.count("</script>") == 1
    assert "://" not in page
    with pytest.raises(InputError, match="3 items but 1 groups"):
        draw(Map(items, np.zeros((3, 2), np.float32), "pca"), ["b"])


@needs_browser
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    given = blobs([3, 2])
    page = draw(place(given), ["a", "a", "<b>", "", ""], title="all of it")
    (tmp_path / "map.html").write_text(page, encoding="utf-8")
    shown = dom((tmp_path / "map.html").as_uri(), tmp_path / "browser")
    assert ">5 of 5 texts<" in shown
    assert ">all of it</h1>" in shown
    names = re.findall(r"<span>([^<]*)</span><small>(\d+)</small>", shown)
    assert sorted(names) == [("&lt;b&gt;", "1"), ("(none)", "2"), ("a", "2")]
    grey = re.search(r'<i style="background: ([^;]*);[^>]*></i><span>\(none\)', shown)
    assert grey is not None
    assert grey[1] == "rgb(138, 138, 138)"


def test_small_groups_share_a_colour_and_long_texts_are_cut() -> None:
    n = maps.COLOURS + 5
    items = tuple(Item(str(i), "word " * 200) for i in range(n))
    data = embedded(draw(Map(items, np.zeros((n, 2), np.float32), "pca"), [f"g{i}" for i in range(n)]))
    assert data["groups"] == [*(f"g{i}" for i in range(maps.COLOURS)), "other"]
    assert [point[2] for point in data["points"]][-6:] == [maps.COLOURS - 1, *[maps.COLOURS] * 5]
    assert len(data["points"][0][4]) == maps.SHOWN
    assert data["points"][0][4].endswith("…")


def test_points_are_kept_for_other_tools(tmp_path: Path) -> None:
    placed = place(random_corpus(12))
    save_points(placed, [str(i % 3) for i in range(12)], tmp_path / "points.parquet")
    rows = pq.read_table(tmp_path / "points.parquet").to_pylist()
    assert list(rows[0]) == ["id", "text", "title", "source", "language", "x", "y", "group"]
    assert [(row["id"], row["text"], row["group"]) for row in rows][4] == ("i4", "text 4", "1")
    np.testing.assert_array_equal([[row["x"], row["y"]] for row in rows], placed.xy)


def test_what_colours_the_points() -> None:
    items = (Item("a", "t", language="de", metadata={"year": 2020}), Item("b", "t", title="T"))
    assert groups_by(items, "language") == ["de", ""]
    assert groups_by(items, "title") == ["", "T"]
    assert groups_by(items, "year") == ["2020", ""]
    odd = [Item("a", "t", metadata={"x": value}) for value in ("é", None, True, ["é", 1], {"a": {"b": 2}})]
    assert groups_by(odd, "x") == ["é", "", "true", '["é", 1]', '{"a": {"b": 2}}']
    with pytest.raises(InputError, match="no item has a field 'month'; there are source, title, language, year"):
        groups_by(items, "month")


def test_what_cannot_be_drawn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown method 'magic'; known are tsne, umap, pca"):
        place(random_corpus(20), method="magic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing to place"):
        place(corpus(np.zeros((0, 4), np.float32)))
    for module, words in (("sklearn", r"threefold\[analyze\]"), ("umap", r"threefold\[umap\]")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
        with pytest.raises(MissingExtraError, match=words):
            place(random_corpus(20), method="umap" if module == "umap" else "tsne")


@pytest.mark.peers  # numba compiles for half a minute
def test_umap_keeps_neighbours_as_well() -> None:
    given = blobs([20, 20, 20])
    placed = place(given, method="umap")
    assert placed.method == "umap"
    assert trustworthiness(centred(given.dense), placed.xy, metric="cosine") > 0.9


def test_a_corpus_is_not_changed() -> None:
    given: Corpus = random_corpus(15)
    before = given.dense.copy()
    place(given)
    np.testing.assert_array_equal(given.dense, before)


def test_a_page_may_load_nothing_and_long_names_are_cut() -> None:
    placed = Map((Item("a", "t"), Item("b", "t")), np.zeros((2, 2), np.float32), "pca")
    page = draw(placed, ["name " * 1000, "x"])
    assert "default-src 'none'" in page
    assert len(embedded(page)["groups"][0]) == maps.SHOWN


def test_groups_of_odd_characters_are_saved(tmp_path: Path) -> None:
    placed = Map((Item("a", "t"),), np.zeros((1, 2), np.float32), "pca")
    save_points(placed, ["x\ud800"], tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet")["group"].to_pylist() == ["x\ufffd"]


def test_equal_items_are_one_point() -> None:
    """scikit-learn's t-SNE divides by their variance, and crashes with what comes of it."""
    placed = place(corpus(np.full((12, 4), 0.5, np.float32)))
    assert placed.method == "pca"
    assert not placed.xy.any()

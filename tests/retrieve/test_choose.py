from __future__ import annotations

from pathlib import Path

import pytest
from tests.evaluate import copies
from tests.fakes import FakeEncoder

from threefold.errors import EvaluationError
from threefold.retrieve.choose import OwnData, portray
from threefold.text.tokenizer import Tokenizer


def own_data(folder: Path, sources: tuple[str, ...] = ("web", "mail")) -> Path:
    """Two sources with two queries each, three pairs, twelve labelled texts."""
    for source in sources:
        rows = [{"_id": "a", "text": "quick brown fox"}, {"_id": "b", "text": "lazy dog"}, {"_id": "c", "text": "jugs"}]
        copies.write(folder / source / "corpus.jsonl", copies.json_lines(rows))
        asked = [{"_id": "p", "text": "brown fox"}, {"_id": "q", "text": "lazy dog"}]
        copies.write(folder / source / "queries.jsonl", copies.json_lines(asked))
        copies.write(folder / source / "qrels.tsv", "p\ta\t1\nq\tb\t1\n")
    pairs = [("quick fox", "quick fox", 5), ("quick fox", "quick dog", 3), ("quick fox", "liquor jugs", 0.5)]
    copies.write(folder / "pairs.jsonl", copies.json_lines([{"a": a, "b": b, "score": s} for a, b, s in pairs]))
    words = ["brown", "quick", "over", "lazy", "the", "jumps"]
    labels = [
        {"text": f"{word} {animal} {animal} {animal}", "label": animal, "source": sources[i % 2]}
        for i, word in enumerate(words)
        for animal in ("fox", "jugs")
    ]
    copies.write(folder / "labels.jsonl", copies.json_lines(labels))
    return folder


def test_a_portrait_has_every_criterion(encoder: FakeEncoder, tmp_path: Path) -> None:
    found = portray(encoder, OwnData.load(own_data(tmp_path / "mine")))
    assert set(found.retrieval) == {"mine/mail", "mine/web"}
    assert found.criteria["retrieval, nDCG@10"] == 1
    assert found.criteria["retrieval on the worst source"] == 1
    assert found.criteria["similarity, Spearman"] == pytest.approx(1)
    assert found.criteria["classification, accuracy"] == 1
    assert found.criteria["classification of unseen sources"] == 1
    assert found.criteria["clustering, V-measure"] == pytest.approx(1)
    assert found.criteria["dense, bytes/text"] == 64
    for name in ("texts/s", "tokens/s", "query, ms", "sparse, bytes/text", "multi in int8, bytes/text"):
        assert found.criteria[name] > 0
    assert found.to_dict()["best_mode"] in found.retrieval["mine/web"]
    assert set(found.queries["mine/web"]) == {"p", "q"}


def test_what_is_not_there_is_not_reported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    copies.write(tmp_path / "pairs.jsonl", copies.json_lines([{"a": "x", "b": "x", "score": i} for i in (1, 2)]))
    copies.write(
        tmp_path / "labels.jsonl",
        copies.json_lines([{"text": f"{name} {i}", "label": name} for i in "12" for name in "yz"]),
    )
    sparse_only = FakeEncoder(tokenizer, heads=("sparse",))
    found = portray(sparse_only, OwnData.load(tmp_path))
    assert set(found.criteria) == {"texts/s", "tokens/s", "query, ms", "texts truncated", "sparse, bytes/text"}
    assert found.retrieval == {}


def test_folders_that_cannot_be_judged_by(encoder: FakeEncoder, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is not a folder"):
        OwnData.load(tmp_path / "absent")
    with pytest.raises(EvaluationError, match=r"none of corpus\.jsonl, pairs\.jsonl, labels\.jsonl"):
        OwnData.load(tmp_path)
    for score in ('"high"', "NaN", "1e999", "true", "1" + 400 * "0"):
        copies.write(tmp_path / "pairs.jsonl", f'{{"a": "x", "b": "y", "score": {score}}}\n')
        with pytest.raises(EvaluationError, match=r'pairs\.jsonl:1: "score" must be a finite number'):
            OwnData.load(tmp_path)
    copies.write(tmp_path / "pairs.jsonl", copies.json_lines([{"a": "x", "b": "y", "score": 1}]))
    with pytest.raises(EvaluationError, match="at least two pairs"):
        OwnData.load(tmp_path)
    (tmp_path / "pairs.jsonl").unlink()
    copies.write(tmp_path / "labels.jsonl", copies.json_lines([{"text": t, "label": "a"} for t in "xyz"]))
    with pytest.raises(EvaluationError, match="at least two labels"):
        OwnData.load(tmp_path)
    copies.write(tmp_path / "labels.jsonl", copies.json_lines([{"text": t, "label": t} for t in "xyxy"]))
    with pytest.raises(EvaluationError, match="and two texts of one"):
        OwnData.load(tmp_path)


def test_a_source_without_which_there_is_one_label_left_is_not_left_out(encoder: FakeEncoder, tmp_path: Path) -> None:
    rows = [{"text": f"{word} fox", "label": "fox", "source": "web"} for word in ("brown", "quick", "lazy", "over")]
    rows += [{"text": f"{word} jugs", "label": "jugs", "source": "mail"} for word in ("brown", "quick", "lazy", "over")]
    copies.write(tmp_path / "labels.jsonl", copies.json_lines(rows))
    criteria = portray(encoder, OwnData.load(tmp_path)).criteria
    assert "classification of unseen sources" not in criteria
    assert "classification, accuracy" in criteria
    rows.append({"text": "an old fox", "label": "fox", "source": "mail"})
    copies.write(tmp_path / "labels.jsonl", copies.json_lines(rows))
    assert "classification of unseen sources" in portray(encoder, OwnData.load(tmp_path)).criteria

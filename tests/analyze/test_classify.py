from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import normalize
from tests.fakes import FakeEncoder

from threefold import Encoder
from threefold.analyze import Classifier, cross_validate, zero_shot
from threefold.analyze.classify import C, features
from threefold.errors import CheckpointError, ConfigError, InputError, ModelMismatchError
from threefold.types import Encoded, Floats

FOX = [f"The quick brown fox jumps {i}" for i in range(8)]
HEAD = [f"How is the sparse head trained {i}" for i in range(8)]
ZH = [f"今天天气很好 {i}" for i in range(8)]
TEXTS, LABELS = [*FOX, *HEAD, *ZH], ["fox"] * 8 + ["head"] * 8 + ["zh"] * 8


def table(vectors: Encoded, mean: Floats) -> csr_array:
    """The features, by scikit-learn."""
    assert vectors.dense is not None
    assert vectors.sparse is not None
    return hstack([normalize(vectors.dense - mean), normalize(vectors.sparse.to_scipy())], format="csr")


@pytest.mark.parametrize("count", [2, 3])
def test_it_is_logistic_regression_on_meaning_and_words(encoder: FakeEncoder, count: int) -> None:
    texts, labels = TEXTS[: 8 * count], LABELS[: 8 * count]
    vectors = encoder.encode_documents(texts, outputs=["dense", "sparse"])
    assert vectors.dense is not None
    mean = vectors.dense.mean(axis=0)
    rows = table(vectors, mean)
    np.testing.assert_allclose(features(vectors, mean).toarray(), rows.toarray(), atol=1e-6)
    oracle = LogisticRegression(C=C, max_iter=2000).fit(rows, labels)
    new = ["the fox", "sparse", "天气"]
    other = encoder.encode_documents(new, outputs=["dense", "sparse"])
    classifier = Classifier.fit(encoder, texts, labels)
    found = classifier.predict(new)
    assert classifier.labels == tuple(oracle.classes_)
    assert [one.label for one in found] == oracle.predict(table(other, mean)).tolist()
    np.testing.assert_allclose(
        [one.probabilities for one in found], oracle.predict_proba(table(other, mean)), atol=1e-4
    )
    assert all(one.probability == max(one.probabilities) for one in found)


def test_cross_validation_is_that_of_scikit_learn(encoder: FakeEncoder) -> None:
    rng = np.random.default_rng(0)
    labels = [LABELS[i] if rng.random() > 0.3 else "fox" for i in range(len(TEXTS))]
    vectors = encoder.encode_documents(TEXTS, outputs=["dense", "sparse"])
    assert vectors.dense is not None
    said = np.empty(len(TEXTS), object)
    for learned, judged in StratifiedKFold(5, shuffle=True, random_state=0).split(TEXTS, labels):
        mean = vectors.dense[learned].mean(axis=0)
        model = LogisticRegression(C=C, max_iter=2000).fit(
            table(vectors.take(learned), mean), [labels[i] for i in learned]
        )
        said[judged] = model.predict(table(vectors.take(judged), mean))
    got = cross_validate(encoder, TEXTS, labels)
    assert got.folds == 5
    assert got.accuracy == pytest.approx(accuracy_score(labels, said.tolist()))
    assert got.macro_f1 == pytest.approx(f1_score(labels, said.tolist(), average="macro"))
    assert {i for i, _, _ in got.wrong} == {i for i in range(len(TEXTS)) if said[i] != labels[i]}
    assert all((labels[i], said[i]) == (label, given) for i, label, given in got.wrong)
    assert got.labels["zh"]["examples"] == labels.count("zh")


def test_a_saved_classifier_says_the_same(encoder: FakeEncoder, tmp_path: Path) -> None:
    classifier = Classifier.fit(encoder, TEXTS, LABELS)
    classifier.save(tmp_path / "c")
    again = Classifier.load(tmp_path / "c", encoder)
    assert again.predict(["the fox", "天气"]) == classifier.predict(["the fox", "天气"])
    other = FakeEncoder(encoder.tokenizer, name="other")
    with pytest.raises(ModelMismatchError, match="was learned on 'fake', not on 'other'"):
        Classifier.load(tmp_path / "c", other)


def test_what_is_no_classifier_is_refused(encoder: FakeEncoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no classifier\.json"):
        Classifier.load(tmp_path, encoder)
    classifier = Classifier.fit(encoder, TEXTS, LABELS)
    classifier.save(tmp_path)
    (tmp_path / "classifier.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"classifier\.safetensors cannot be read"):
        Classifier.load(tmp_path, encoder)
    settings = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps({**settings, "format": 99}))
    with pytest.raises(CheckpointError, match="lacks format 1"):
        Classifier.load(tmp_path, encoder)
    (tmp_path / "classifier.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        Classifier.load(tmp_path, encoder)


def test_one_representation_is_enough(encoder: FakeEncoder) -> None:
    for outputs in (["dense"], ["sparse"]):
        classifier = Classifier.fit(encoder, TEXTS, LABELS, outputs=outputs)  # type: ignore[arg-type]
        assert [one.label for one in classifier.predict(TEXTS)] == LABELS
    lean = FakeEncoder(encoder.tokenizer, heads=("dense",))
    assert Classifier.fit(lean, TEXTS, LABELS).outputs == ("dense",)
    with pytest.raises(ConfigError, match="a classifier reads dense, sparse, or both"):
        Classifier.fit(encoder, TEXTS, LABELS, outputs=["multi"])


def test_examples_that_teach_nothing_are_refused(encoder: FakeEncoder) -> None:
    with pytest.raises(InputError, match="2 texts but 1 labels"):
        Classifier.fit(encoder, ["a", "b"], ["x"])
    with pytest.raises(InputError, match="at least two labels; got \\['x'\\]"):
        Classifier.fit(encoder, ["a", "b"], ["x", "x"])
    with pytest.raises(InputError, match="the label 'y' has one example"):
        cross_validate(encoder, ["a", "b", "c"], ["x", "x", "y"])
    with pytest.raises(InputError, match="at least two labels, each once"):
        zero_shot(encoder, ["a"], ["x", "x"])
    with pytest.raises(InputError, match="at least two labels, each once"):
        zero_shot(encoder, ["a"], ["x"])


def test_names_alone_say_enough_in_other_languages() -> None:
    """By the embedded model."""
    texts = ["Der Vulkan spuckt Lava.", "Notre équipe a gagné le match.", "El banco sube los tipos de interés."]
    found = zero_shot(Encoder(), texts, ["volcanoes and earthquakes", "sports", "money and banks"])
    assert [one.label for one in found] == ["volcanoes and earthquakes", "sports", "money and banks"]
    assert all(sum(one.probabilities) == pytest.approx(1, abs=1e-5) for one in found)

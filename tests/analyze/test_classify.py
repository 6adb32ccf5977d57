from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import normalize
from tests.fakes import FakeEncoder

from threefold import Encoder
from threefold.analyze import Classifier, cross_validate, zero_shot
from threefold.analyze.classify import USABLE, C, features
from threefold.errors import CheckpointError, ConfigError, InputError, ModelMismatchError
from threefold.types import Encoded, Floats, Sparse

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


def test_examples_that_are_judged_as_well_are_encoded_once(
    encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = encoder.encode_documents

    def counted(texts: list[str], **options: object) -> Encoded:
        calls.append(len(texts))
        return plain(texts, **options)  # type: ignore[arg-type]

    alone, judged = Classifier.fit(encoder, TEXTS, LABELS), cross_validate(encoder, TEXTS, LABELS)
    assert alone.judged is None
    monkeypatch.setattr(encoder, "encode_documents", counted)
    both = Classifier.fit(encoder, TEXTS, LABELS, judge=True)
    assert calls == [len(TEXTS)]
    assert both.judged == judged
    assert both.predict(["the fox"]) == alone.predict(["the fox"])
    calls.clear()
    with pytest.raises(InputError, match="'rare' has one example"):  # refused before anything is encoded
        Classifier.fit(encoder, [*TEXTS, "one"], [*LABELS, "rare"], judge=True)
    assert not calls


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
    with pytest.raises(InputError, match=r"has no classifier\.safetensors"):
        Classifier.load(tmp_path, encoder)
    Classifier.fit(encoder, TEXTS, LABELS).save(tmp_path)
    path = tmp_path / "classifier.safetensors"
    with safe_open(path, "numpy") as file:
        settings = json.loads(file.metadata()["classifier"])
    arrays = load_file(path)
    for changed, words in (({"format": 99}, "lacks format 1"), ({"labels": ["one"]}, r"labels and features are \(1, ")):
        save_file(arrays, path, {"classifier": json.dumps(settings | changed)})
        with pytest.raises(CheckpointError, match=words):
            Classifier.load(tmp_path, encoder)
    for metadata, words in (
        (None, "lacks format, labels, model"),
        ({"classifier": "5"}, "lacks format"),
        ({"classifier": "{"}, "cannot be read"),
    ):
        save_file(arrays, path, metadata)
        with pytest.raises(CheckpointError, match=words):
            Classifier.load(tmp_path, encoder)
    save_file({"mean": arrays["mean"]}, path, {"classifier": json.dumps(settings)})
    with pytest.raises(CheckpointError, match=r"classifier\.safetensors cannot be read"):
        Classifier.load(tmp_path, encoder)
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"classifier\.safetensors cannot be read"):
        Classifier.load(tmp_path, encoder)


def test_an_interrupted_save_leaves_what_was_there(
    encoder: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stops: after any number of writes, the folder has one classifier or the other."""
    first = Classifier.fit(encoder, TEXTS[:16], LABELS[:16])
    first.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.safetensors"]

    def stopped(_draft: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        Classifier.fit(encoder, TEXTS, LABELS).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.safetensors"]
    assert Classifier.load(tmp_path, encoder).predict(FOX) == first.predict(FOX)


def test_only_terms_of_the_examples_have_weights(encoder: FakeEncoder, tmp_path: Path) -> None:
    classifier = Classifier.fit(encoder, TEXTS[:16], LABELS[:16])
    classifier.save(tmp_path)
    arrays = load_file(tmp_path / "classifier.safetensors")
    terms = encoder.encode_documents(TEXTS[:16], outputs=["sparse"]).sparse
    assert terms is not None
    assert arrays["used"].tolist() == [*range(16), *(16 + np.unique(terms.indices)).tolist()]
    assert arrays["weights"].shape == (2, len(arrays["used"]))


def test_texts_that_were_cut_are_said(encoder: FakeEncoder) -> None:
    short = FakeEncoder(encoder.tokenizer, max_tokens=16)
    long = "The quick brown fox jumps over the lazy dog. " * 9
    classifier = Classifier.fit(short, ["fox", long, "天气", "散步"], ["fox", "fox", "zh", "zh"])
    assert classifier.truncated == 1
    assert [one.truncated for one in classifier.predict(["fox", long])] == [False, True]
    assert [one.truncated for one in zero_shot(short, ["fox", long], ["fox", "dog"])] == [False, True]
    assert cross_validate(short, ["fox", long, "天气", "散步"], ["fox", "fox", "zh", "zh"]).truncated == 1


def test_vectors_of_more_or_less_than_it_reads(encoder: FakeEncoder) -> None:
    both = encoder.encode_documents(FOX)
    for name in USABLE:
        classifier = Classifier.fit(encoder, TEXTS, LABELS, outputs=[name])
        assert classifier.predict_vectors(both) == classifier.predict(FOX)
    with pytest.raises(InputError, match="reads dense and sparse; the vectors have no sparse ones"):
        Classifier.fit(encoder, TEXTS, LABELS).predict_vectors(encoder.encode_documents(FOX, outputs=["dense"]))
    empty = Encoded(
        np.zeros((1, 16), np.float32), Sparse.of([{3: 0.0}], 400), None, np.ones(1, np.int32), both.truncated[:1]
    )
    assert np.isfinite(features(empty, np.zeros(16, np.float32)).toarray()).all()


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
    with pytest.raises(InputError, match="labels are a list of texts; got one text, 'xy'"):
        Classifier.fit(encoder, ["a", "b"], "xy")
    with pytest.raises(InputError, match="labels are a list of texts"):
        zero_shot(encoder, ["a"], "xy")
    with pytest.raises(InputError, match="a label is a text; got 1"):
        Classifier.fit(encoder, ["a", "b"], ["x", 1])  # type: ignore[list-item]
    with pytest.raises(InputError, match="no term of the examples has a weight"):
        Classifier.fit(encoder, ["", ""], ["x", "y"], outputs=["sparse"])
    with pytest.raises(ConfigError, match="c must be above 0; got 0"):
        Classifier.fit(encoder, ["a", "b"], ["x", "y"], c=0)
    assert Classifier.fit(encoder, ["a", "b"], ["x", "y\ud800"]).labels == ("x", "y\ufffd")
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

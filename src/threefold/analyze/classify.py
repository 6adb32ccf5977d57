"""Labels for texts: a linear model on frozen vectors, learned in a second; or by the names of the labels alone.

The features of a text are its dense vector, centred, beside its term weights made a unit vector: meaning and words
(`results/analyze.json` has what each is worth). The model is multinomial logistic regression (scikit-learn's).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from threefold.analyze.optional import load
from threefold.errors import CheckpointError, ConfigError, InputError, ModelMismatchError
from threefold.replacing import replacing
from threefold.retrieve.documents import units
from threefold.text.protocol import TextEncoder
from threefold.types import Encoded, Floats, Ints, Representation

#: Inverse strength of regularisation: of 1, 10 and 100 the best with 2 to 5 examples of a label.
C: Final = 10.0
#: Folds of a cross-validation, unless the rarest label has fewer examples.
FOLDS: Final = 5
FORMAT: Final = 1

_SETTINGS, _WEIGHTS = "classifier.json", "classifier.safetensors"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The label of a text, and the probability of every label, in the order of `Classifier.labels`."""

    label: str
    probability: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What a classifier would do on texts that it has not seen.

    accuracy  share of right labels
    macro_f1  mean over the labels of the harmonic mean of precision and recall
    labels    of each: precision, recall, F1 and how many examples there were
    wrong     (number of the text, its label, the label that it was given), the surest first
    """

    folds: int
    accuracy: float
    macro_f1: float
    labels: dict[str, dict[str, float]]
    wrong: tuple[tuple[int, str, str], ...]


class Classifier:
    """Labels for texts by one encoder."""

    def __init__(
        self,
        encoder: TextEncoder,
        labels: Sequence[str],
        outputs: Sequence[Representation],
        mean: Floats,
        weights: Floats,
        bias: Floats,
    ) -> None:
        """From what `fit` or `load` knows.

        mean     (d,) of the dense vectors that it learned from
        weights  (labels, features) float32, bias (labels,) float32
        """
        self.encoder = encoder
        self.labels = tuple(labels)
        self.outputs = tuple(outputs)
        self._mean, self._weights, self._bias = mean, weights, bias

    @classmethod
    def fit(
        cls,
        encoder: TextEncoder,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        c: float = C,
    ) -> Self:
        """Learn from examples; at least one of each of two labels.

        outputs  dense, sparse, or both: None is both where the model has both
        """
        names, numbers = _numbered(texts, labels)
        outputs = _outputs(encoder, outputs)
        vectors = encoder.encode_documents(texts, outputs=outputs)
        mean = _mean(vectors)
        weights, bias = _learn(features(vectors, mean), numbers, len(names), c)
        return cls(encoder, names, outputs, mean, weights, bias)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The likeliest label of each text."""
        return self.predict_vectors(self.encoder.encode_documents(texts, outputs=self.outputs))

    def predict_vectors(self, vectors: Encoded) -> list[Prediction]:
        """The same for texts that are encoded already, as documents."""
        shares = _softmax(features(vectors, self._mean) @ self._weights.T + self._bias)
        return [_prediction(row, self.labels) for row in shares]

    def save(self, folder: str | Path) -> None:
        """Into a folder, as JSON and safetensors; the encoder is named, not copied."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        card = self.encoder.card
        settings = {
            "format": FORMAT,
            "model": card.name,
            "model_hash": card.hash,
            "labels": self.labels,
            "outputs": self.outputs,
        }
        arrays = {"mean": self._mean, "weights": self._weights, "bias": self._bias}
        with replacing(folder / _WEIGHTS) as draft:  # in rows, since safetensors writes memory as it lies
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, draft)
        with replacing(folder / _SETTINGS) as draft:
            draft.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, encoder: TextEncoder) -> Self:
        """From a folder; an encoder that it was not learned with is refused."""
        folder = Path(folder)
        settings = _settings(folder)
        if settings["model_hash"] != encoder.card.hash:
            raise ModelMismatchError(
                f"the classifier in {folder} was learned on {settings['model']!r}, not on {encoder.card.name!r}. "
                "Give that model, or learn anew"
            )
        arrays = _arrays(folder / _WEIGHTS)
        return cls(encoder, settings["labels"], settings["outputs"], *(arrays[n] for n in ("mean", "weights", "bias")))


def cross_validate(
    encoder: TextEncoder,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    outputs: Sequence[Representation] | None = None,
    c: float = C,
    seed: int = 0,
) -> CrossValidation:
    """What a classifier of these examples is worth: each is judged by one that has not seen it (stratified folds)."""
    names, numbers = _numbered(texts, labels)
    rarest = int(np.bincount(numbers).min())
    if rarest < 2:
        alone = names[int(np.bincount(numbers).argmin())]
        raise InputError(f"the label {alone!r} has one example; cross-validation needs at least 2 of each")
    folds = min(FOLDS, rarest)
    splits = load("sklearn.model_selection", "cross-validation").StratifiedKFold(folds, shuffle=True, random_state=seed)
    vectors = encoder.encode_documents(texts, outputs=_outputs(encoder, outputs))
    said, sure = np.zeros(len(texts), np.int64), np.zeros(len(texts))
    for learned, judged in splits.split(np.zeros(len(texts)), numbers):
        part = vectors.take(learned)
        mean = _mean(part)
        weights, bias = _learn(features(part, mean), numbers[learned], len(names), c)
        shares = _softmax(features(vectors.take(judged), mean) @ weights.T + bias)
        said[judged], sure[judged] = shares.argmax(axis=1), shares.max(axis=1)
    return _judged(names, numbers, said, sure, folds)


def zero_shot(
    encoder: TextEncoder, texts: Sequence[str], labels: Sequence[str], *, scale: float = 20.0
) -> list[Prediction]:
    """The label whose words are nearest in meaning to each text: no examples, so say in the labels what is meant.

    Each text is compared by dense vectors with every label, as queries; both sides are centred, the labels about the
    mean of the labels. `scale` sharpens the shares, which are no probabilities of being right.
    """
    if len(set(labels)) < max(len(labels), 2):
        raise InputError(f"give at least two labels, each once; got {list(labels)!r}")
    queries = encoder.encode_queries(labels, outputs=["dense"]).dense
    rows = encoder.encode_documents(texts, outputs=["dense"]).dense
    if queries is None or rows is None:
        raise InputError(f"{encoder.card.name!r} makes no dense vectors, and this needs them")
    shares = _softmax(scale * rows @ units(queries - queries.mean(axis=0)).T)
    return [_prediction(row, tuple(labels)) for row in shares]


def features(vectors: Encoded, mean: Floats) -> Any:
    """(n, d + v) CSR: dense rows less the mean, made units again, beside the sparse rows as units."""
    from scipy.sparse import csr_array, hstack

    parts = []
    if vectors.dense is not None:
        parts.append(csr_array(units(vectors.dense - mean)))
    if vectors.sparse is not None:
        sparse = vectors.sparse
        rows = np.repeat(np.arange(len(sparse)), np.diff(sparse.offsets))
        lengths = np.sqrt(np.bincount(rows, sparse.values.astype(np.float64) ** 2, len(sparse)))
        values = (sparse.values / lengths[rows]).astype(np.float32)
        parts.append(csr_array((values, sparse.indices, sparse.offsets), shape=(len(sparse), sparse.vocab)))
    return hstack(parts, format="csr")


# ---- words --------------------------------------------------------------------------------------------------


def _numbered(texts: Sequence[str], labels: Sequence[str]) -> tuple[list[str], Ints]:
    """The names of the labels, sorted, and the number of each example's."""
    if len(texts) != len(labels):
        raise InputError(f"{len(texts)} texts but {len(labels)} labels")
    names = sorted(set(labels))
    if len(names) < 2:
        raise InputError(f"a classifier needs examples of at least two labels; got {names!r}")
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[label] for label in labels])


def _outputs(encoder: TextEncoder, outputs: Sequence[Representation] | None) -> tuple[Representation, ...]:
    usable: tuple[Representation, ...] = ("dense", "sparse")
    if outputs is None:
        return tuple(name for name in usable if name in encoder.card.representations)
    if not outputs or set(outputs) - set(usable):
        raise ConfigError(f"outputs {tuple(outputs)!r}: a classifier reads dense, sparse, or both")
    return tuple(name for name in usable if name in outputs)


def _mean(vectors: Encoded) -> Floats:
    return np.zeros(0, np.float32) if vectors.dense is None else vectors.dense.mean(axis=0)


def _learn(rows: Any, numbers: Ints, count: int, c: float) -> tuple[Floats, Floats]:
    """(labels, features) weights and (labels,) biases; of two labels scikit-learn has the second's alone."""
    linear = load("sklearn.linear_model", "a classifier")
    model = linear.LogisticRegression(C=c, max_iter=2_000).fit(rows, numbers)
    weights, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if count == 2:
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return weights, bias


def _softmax(logits: Any) -> Floats:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: Floats = shares / shares.sum(axis=1, keepdims=True)
    return normalised


def _prediction(shares: Floats, labels: tuple[str, ...]) -> Prediction:
    best = int(shares.argmax())
    return Prediction(labels[best], float(shares[best]), tuple(shares.tolist()))


def _judged(names: Sequence[str], numbers: Ints, said: Ints, sure: Floats, folds: int) -> CrossValidation:
    metrics = load("sklearn.metrics", "cross-validation")
    report = metrics.precision_recall_fscore_support(numbers, said, labels=range(len(names)), zero_division=0.0)
    columns = ("precision", "recall", "f1", "examples")
    by_label = {name: {c: float(report[j][i]) for j, c in enumerate(columns)} for i, name in enumerate(names)}
    order = sorted(np.flatnonzero(said != numbers).tolist(), key=lambda i: -sure[i])
    wrong = tuple((i, names[numbers[i]], names[said[i]]) for i in order)
    return CrossValidation(folds, float((said == numbers).mean()), float(np.mean(report[2])), by_label, wrong)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no {_SETTINGS}; it is not a classifier that was saved here") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / _SETTINGS} is not JSON: {error}") from error
    missing = {"format", "model", "model_hash", "labels", "outputs"} - set(settings)
    if missing or settings["format"] != FORMAT:
        raise CheckpointError(f"{folder / _SETTINGS} lacks {', '.join(sorted(missing)) or f'format {FORMAT}'}")
    return dict(settings)


def _arrays(path: Path) -> dict[str, Floats]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: dict[str, Floats] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return arrays

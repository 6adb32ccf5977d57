"""Labels for texts: a linear model on frozen vectors, learned in a second; or by the names of the labels alone.

The features of a text are its dense vector, centred, beside its term weights made a unit vector: meaning and words
(`results/analyze.json` has what each is worth). The model is multinomial logistic regression (scikit-learn's).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from threefold.analyze.optional import load
from threefold.characters import clean
from threefold.errors import CheckpointError, ConfigError, InputError, ModelMismatchError
from threefold.replacing import replacing
from threefold.retrieve.documents import row_lengths, units
from threefold.text.protocol import TextEncoder
from threefold.types import Encoded, Floats, Ints, Representation

#: Inverse strength of regularisation: of 1, 10 and 100 the best with 2 to 5 examples of a label.
C: Final = 10.0
#: Folds of a cross-validation, unless the rarest label has fewer examples.
FOLDS: Final = 5
FORMAT: Final = 1
#: What a classifier can read, in the order of its features.
USABLE: Final[tuple[Representation, ...]] = ("dense", "sparse")

#: One file, since two could be of two classifiers after an interruption; the settings are in its header, as JSON.
FILE: Final = "classifier.safetensors"
_SETTINGS: Final = "classifier"
_ARRAYS: Final = ("mean", "used", "weights", "bias")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The label of a text, and the probability of every label, in the order of `Classifier.labels`.

    truncated  the text was longer than the model reads, and only its beginning was
    """

    label: str
    probability: float
    probabilities: tuple[float, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What a classifier would do on texts that it has not seen.

    accuracy   share of right labels
    macro_f1   mean over the labels of the harmonic mean of precision and recall
    labels     of each: precision, recall, F1 and how many examples there were
    wrong      (number of the text, its label, the label that it was given), the surest first
    truncated  examples that were longer than the model reads
    """

    folds: int
    accuracy: float
    macro_f1: float
    labels: dict[str, dict[str, float]]
    wrong: tuple[tuple[int, str, str], ...]
    truncated: int = 0


class Classifier:
    """Labels for texts by one encoder.

    truncated  examples of `fit` that were longer than the model reads
    judged     what cross-validation said, where `fit` was asked to judge
    """

    def __init__(
        self,
        encoder: TextEncoder,
        labels: Sequence[str],
        outputs: Sequence[Representation],
        mean: Floats,
        used: Ints,
        weights: Floats,
        bias: Floats,
    ) -> None:
        """From what `fit` or `load` knows.

        mean     (d,) of the dense vectors that it learned from
        used     (f,) int64 numbers of the features that the examples have: the weights of all others are 0
        weights  (labels, f) float32, bias (labels,) float32
        """
        self.encoder = encoder
        self.labels = tuple(labels)
        self.outputs = tuple(outputs)
        self.truncated = 0
        self.judged: CrossValidation | None = None
        self._mean, self._used, self._weights, self._bias = mean, used, weights, bias

    @classmethod
    def fit(
        cls,
        encoder: TextEncoder,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        c: float = C,
        judge: bool = False,
    ) -> Self:
        """Learn from examples; at least one of each of two labels.

        outputs  dense, sparse, or both: None is both where the model has both
        judge    cross-validate as well, as `cross_validate` does: the examples are encoded once for both
        """
        names, numbers = _numbered(texts, labels)
        splits = _splits(names, numbers) if judge else None
        outputs = _outputs(encoder, outputs)
        vectors = encoder.encode_documents(texts, outputs=outputs)
        mean = _mean(vectors)
        made = cls(encoder, names, outputs, mean, *_learn(features(vectors, mean), numbers, len(names), c))
        made.truncated = int(vectors.truncated.sum())
        made.judged = None if splits is None else _cross_validated(names, numbers, vectors, splits, c)
        return made

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The likeliest label of each text."""
        return self.predict_vectors(self.encoder.encode_documents(texts, outputs=self.outputs))

    def predict_vectors(self, vectors: Encoded) -> list[Prediction]:
        """The same for texts that are encoded already, as documents."""
        for name in self.outputs:
            if getattr(vectors, name) is None:
                raise InputError(f"this classifier reads {' and '.join(self.outputs)}; the vectors have no {name} ones")
        dense, sparse = (getattr(vectors, name) if name in self.outputs else None for name in USABLE)
        rows = features(replace(vectors, dense=dense, sparse=sparse), self._mean)
        shares = _softmax(rows[:, self._used] @ self._weights.T + self._bias)
        return _predictions(shares, self.labels, vectors)

    def save(self, folder: str | Path) -> None:
        """Into a folder, as one file of safetensors; the encoder is named, not copied."""
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
        arrays = {"mean": self._mean, "used": self._used, "weights": self._weights, "bias": self._bias}
        rows = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # memory is written as it lies
        with replacing(folder / FILE) as draft:
            save_file(rows, draft, {_SETTINGS: json.dumps(settings)})

    @classmethod
    def load(cls, folder: str | Path, encoder: TextEncoder) -> Self:
        """From a folder, or the file in it; an encoder that it was not learned with is refused."""
        path = Path(folder)
        if path.name != FILE or path.is_dir():
            path /= FILE
        if not path.is_file():
            raise InputError(f"{folder} has no {FILE}; it is not a classifier that was saved here")
        settings, arrays = _read(path)
        if settings["model_hash"] != encoder.card.hash:
            raise ModelMismatchError(
                f"the classifier in {folder} was learned on {settings['model']!r}, not on {encoder.card.name!r}. "
                "Give that model, or learn anew"
            )
        return cls(encoder, settings["labels"], settings["outputs"], *(arrays[name] for name in _ARRAYS))


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
    splits = _splits(names, numbers, seed)
    vectors = encoder.encode_documents(texts, outputs=_outputs(encoder, outputs))
    return _cross_validated(names, numbers, vectors, splits, c)


def zero_shot(
    encoder: TextEncoder, texts: Sequence[str], labels: Sequence[str], *, scale: float = 20.0
) -> list[Prediction]:
    """The label whose words are nearest in meaning to each text: no examples, so say in the labels what is meant.

    Each text is compared by dense vectors with every label, as queries; both sides are centred, the labels about the
    mean of the labels. `scale` sharpens the shares, which are no probabilities of being right.
    """
    labels = _named(labels)
    if len(set(labels)) < max(len(labels), 2):
        raise InputError(f"give at least two labels, each once; got {list(labels)!r}")
    queries = encoder.encode_queries(labels, outputs=["dense"]).dense
    vectors = encoder.encode_documents(texts, outputs=["dense"])
    if queries is None or vectors.dense is None:
        raise InputError(f"{encoder.card.name!r} makes no dense vectors, and this needs them")
    shares = _softmax(scale * vectors.dense @ units(queries - queries.mean(axis=0)).T)
    return _predictions(shares, labels, vectors)


def features(vectors: Encoded, mean: Floats) -> Any:
    """(n, d + v) CSR: dense rows less the mean, made units again, beside the sparse rows as units."""
    from scipy.sparse import csr_array, hstack

    parts = []
    if vectors.dense is not None:
        parts.append(csr_array(units(vectors.dense - mean)))
    if vectors.sparse is not None:
        sparse = vectors.sparse
        values = (sparse.values / np.repeat(row_lengths(sparse), np.diff(sparse.offsets))).astype(np.float32)
        parts.append(csr_array((values, sparse.indices, sparse.offsets), shape=(len(sparse), sparse.vocab)))
    return hstack(parts, format="csr")


# ---- words --------------------------------------------------------------------------------------------------


def _numbered(texts: Sequence[str], labels: Sequence[str]) -> tuple[list[str], Ints]:
    """The names of the labels, sorted, and the number of each example's."""
    labels = _named(labels)
    if len(texts) != len(labels):
        raise InputError(f"{len(texts)} texts but {len(labels)} labels")
    names = sorted(set(labels))
    if len(names) < 2:
        raise InputError(f"a classifier needs examples of at least two labels; got {names!r}")
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[label] for label in labels])


def _named(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise InputError(f"labels are a list of texts; got one text, {labels!r}")
    for label in labels:
        if not isinstance(label, str):
            raise InputError(f"a label is a text; got {label!r}")
    return tuple(map(clean, labels))


def _outputs(encoder: TextEncoder, outputs: Sequence[Representation] | None) -> tuple[Representation, ...]:
    if outputs is None:
        return tuple(name for name in USABLE if name in encoder.card.representations)
    if not outputs or set(outputs) - set(USABLE):
        raise ConfigError(f"outputs {tuple(outputs)!r}: a classifier reads dense, sparse, or both")
    return tuple(name for name in USABLE if name in outputs)


def _mean(vectors: Encoded) -> Floats:
    return np.zeros(0, np.float32) if vectors.dense is None else vectors.dense.mean(axis=0)


def _learn(rows: Any, numbers: Ints, count: int, c: float) -> tuple[Ints, Floats, Floats]:
    """(f,) features that the rows have, (labels, f) weights and (labels,) biases.

    The weights of the other features would be 0, and need memory many times: a vocabulary has 250,000 terms.
    """
    if not c > 0:
        raise ConfigError(f"c must be above 0; got {c}")
    linear = load("sklearn.linear_model", "a classifier")
    used = np.unique(rows.indices).astype(np.int64)
    if not len(used):
        raise InputError("no term of the examples has a weight; give other texts, or read dense vectors as well")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # a few examples are enough
        model = linear.LogisticRegression(C=c, max_iter=2_000).fit(rows[:, used], numbers)
    weights, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if count == 2:  # scikit-learn has the second's alone
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return used, weights, bias


def _splits(names: Sequence[str], numbers: Ints, seed: int = 0) -> list[tuple[Ints, Ints]]:
    """(learned, judged) examples of each fold, in which all labels have their share."""
    rarest = int(np.bincount(numbers).min())
    if rarest < 2:
        alone = names[int(np.bincount(numbers).argmin())]
        raise InputError(f"the label {alone!r} has one example; cross-validation needs at least 2 of each")
    stratified = load("sklearn.model_selection", "cross-validation").StratifiedKFold
    return list(stratified(min(FOLDS, rarest), shuffle=True, random_state=seed).split(numbers, numbers))


def _cross_validated(
    names: Sequence[str], numbers: Ints, vectors: Encoded, splits: Sequence[tuple[Ints, Ints]], c: float
) -> CrossValidation:
    said, sure = np.zeros(len(numbers), np.int64), np.zeros(len(numbers))
    for learned, judged in splits:
        part = vectors.take(learned)
        mean = _mean(part)
        used, weights, bias = _learn(features(part, mean), numbers[learned], len(names), c)
        shares = _softmax(features(vectors.take(judged), mean)[:, used] @ weights.T + bias)
        said[judged], sure[judged] = shares.argmax(axis=1), shares.max(axis=1)
    return replace(_judged(names, numbers, said, sure, len(splits)), truncated=int(vectors.truncated.sum()))


def _softmax(logits: Any) -> Floats:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: Floats = shares / shares.sum(axis=1, keepdims=True)
    return normalised


def _predictions(shares: Floats, labels: tuple[str, ...], vectors: Encoded) -> list[Prediction]:
    best = shares.argmax(axis=1).tolist()
    return [
        Prediction(labels[i], float(row[i]), tuple(row.tolist()), bool(cut))
        for i, row, cut in zip(best, shares, vectors.truncated, strict=True)
    ]


def _judged(names: Sequence[str], numbers: Ints, said: Ints, sure: Floats, folds: int) -> CrossValidation:
    metrics = load("sklearn.metrics", "cross-validation")
    report = metrics.precision_recall_fscore_support(numbers, said, labels=range(len(names)), zero_division=0.0)
    columns = ("precision", "recall", "f1", "examples")
    by_label = {name: {c: float(report[j][i]) for j, c in enumerate(columns)} for i, name in enumerate(names)}
    order = sorted(np.flatnonzero(said != numbers).tolist(), key=lambda i: -sure[i])
    wrong = tuple((i, names[numbers[i]], names[said[i]]) for i in order)
    return CrossValidation(folds, float((said == numbers).mean()), float(np.mean(report[2])), by_label, wrong)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and arrays of a saved classifier, which fit together."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            settings = json.loads((file.metadata() or {}).get(_SETTINGS, "{}"))
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    settings = settings if isinstance(settings, dict) else {}
    missing = {"format", "model", "model_hash", "labels", "outputs"} - set(settings)
    if missing or settings["format"] != FORMAT:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing)) or f'format {FORMAT}'}")
    shape = (len(settings["labels"]), len(arrays["used"]))
    if arrays["weights"].shape != shape or arrays["bias"].shape != shape[:1]:
        raise CheckpointError(
            f"{path}: weights of shape {arrays['weights'].shape}, but labels and features are {shape}"
        )
    return settings, arrays

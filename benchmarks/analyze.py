"""What `threefold.analyze` finds of what is known to be there, beside the usual ways; the numbers behind its defaults.

    python benchmarks/analyze.py XQUAD INTENTS [--model MODEL] [--output results/analyze.json]

XQUAD    the archive or folder of XQuAD in BEIR layout: five paragraphs of each of 48 articles, in 12 languages
INTENTS  pairs of sentences for the same intent (`ha_intents.jsonl.xz`); the embedded model has seen them in training

Clusters: V-measure and adjusted Rand index of the articles and of the intents. Classifiers: accuracy with a few
examples of a label. Recommendation: recall of the article's other paragraphs. Outliers: area under the ROC curve of two
strangers among the paragraphs of eight articles. Duplicates: share of edited texts above a cosine. Selection: articles
that a selection of 48 paragraphs has. Maps: whether the nearest point is of the same article, and trustworthiness.
The other ways need scikit-learn, umap-learn and evoc. Prints tables, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import rounded, write
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import trustworthiness
from sklearn.metrics import adjusted_rand_score, roc_auc_score, v_measure_score
from sklearn.neighbors import KNeighborsClassifier, LocalOutlierFactor, NearestCentroid

from threefold import Encoder
from threefold.analyze import Corpus, Item, cluster, duplicates, outliers, pick, place
from threefold.analyze.classify import C, features
from threefold.analyze.corpus import centred
from threefold.evaluate.beir import iter_tasks
from threefold.score import sparse_matrix
from threefold.types import Encoded, Floats, Ints

LANGUAGES = ("en", "de", "zh", "ar")
SEEDS = range(5)
EDITS: Mapping[str, Callable[[str, random.Random], str]] = {
    "signs gone": lambda text, _: re.sub(r"[.,;:]", "", text),
    "numbers changed": lambda text, _: re.sub(r"\d+", lambda found: str(int(found[0]) + 1), text),
    "a word gone": lambda text, rng: _without(text.split(), 1, rng),
    "five words gone": lambda text, rng: _without(text.split(), 5, rng),
    "a sentence gone": lambda text, rng: _without(re.split(r"(?<=[.!?]) ", text), 1, rng),
    "second half gone": lambda text, _: text[: len(text) // 2],
}


@dataclass(frozen=True)
class Known:
    """Texts with their true groups, encoded."""

    name: str
    texts: list[str]
    groups: Ints
    vectors: Encoded

    @property
    def dense(self) -> Floats:
        assert self.vectors.dense is not None
        return self.vectors.dense

    @property
    def corpus(self) -> Corpus:
        items = tuple(Item(str(i), text) for i, text in enumerate(self.texts))
        return Corpus(items, self.dense, self.vectors.sparse)


def known(name: str, texts: list[str], labels: list[str], encoder: Encoder) -> Known:
    outputs = [one for one in ("dense", "sparse") if one in encoder.card.representations]
    numbers = np.unique(labels, return_inverse=True)[1]
    return Known(name, texts, numbers, encoder.encode_documents(texts, outputs=outputs))


def articles(path: Path, encoder: Encoder) -> dict[str, Known]:
    found = {}
    for task in iter_tasks(path):
        language = task.name.rpartition("/")[2]
        if language in LANGUAGES:
            rows = sorted(task.documents.items(), key=lambda row: tuple(map(int, row[0][1:].split("-"))))
            labels = [id.partition("-")[0] for id, _ in rows]
            found[language] = known(f"XQuAD {language}", [text for _, text in rows], labels, encoder)
    return found


def intents(path: Path, language: str, encoder: Encoder) -> Known:
    labels: dict[str, str] = {}
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["query_lang"] == language:
                labels.update(dict.fromkeys((row["query"], row["positive"]), row["group"].split("/")[1]))
    return known(f"intents {language}", list(labels), list(labels.values()), encoder)


def mixed(parts: list[Known]) -> Known:
    """The same articles in several languages."""
    texts = [text for part in parts for text in part.texts]
    groups = np.concatenate([part.groups for part in parts])
    return Known(f"XQuAD, {len(parts)} languages", texts, groups, Encoded.concat([part.vectors for part in parts]))


# ---- what is measured ---------------------------------------------------------------------------------------


def clusters(given: Known) -> dict[str, dict[str, float]]:
    import umap

    rows, count = centred(given.dense), int(given.groups.max()) + 1

    def by_umap(least: int) -> Ints:
        low = umap.UMAP(15, 5, min_dist=0.0, metric="cosine", random_state=0).fit_transform(given.dense)
        return HDBSCAN(min_cluster_size=least, copy=True).fit_predict(low)

    ways: dict[str, Callable[[], Ints]] = {
        "threefold, number known": lambda: cluster(given.corpus, count).labels,
        "threefold, number found": lambda: cluster(given.corpus).labels,
        "k-means, number known": lambda: KMeans(count, n_init=4, random_state=0).fit_predict(given.dense),
        "k-means, centred, known": lambda: KMeans(count, n_init=4, random_state=0).fit_predict(rows),
        "average linkage, known": lambda: AgglomerativeClustering(
            count, metric="cosine", linkage="average"
        ).fit_predict(rows),
        "HDBSCAN": lambda: HDBSCAN(min_cluster_size=3, copy=True).fit_predict(rows),
        "UMAP + HDBSCAN (BERTopic's way)": lambda: by_umap(5),
        "EVoC": lambda: _evoc(given.dense),
    }
    found = {}
    for name, way in ways.items():
        began = time.perf_counter()
        labels = way()
        found[name] = {
            "v_measure": v_measure_score(given.groups, labels),
            "rand": adjusted_rand_score(given.groups, labels),
            "groups": len(set(labels.tolist()) - {-1}),
            "without": float((labels == -1).mean()),
            "seconds": time.perf_counter() - began,
        }
    return found


def _evoc(rows: Floats) -> Ints:
    import evoc

    return evoc.EVoC(random_state=0).fit_predict(rows)


def classifiers(given: Known, shots: int) -> dict[str, float]:
    """Mean accuracy over the seeds, for the labels that have examples left to judge by."""
    counts = np.bincount(given.groups)
    usable = np.flatnonzero(counts[given.groups] >= shots + 3)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        learned = np.concatenate([
            rng.choice(np.flatnonzero(given.groups == label), shots, replace=False)
            for label in np.unique(given.groups[usable])
        ])  # fmt: skip
        judged = np.setdiff1d(usable, learned)
        for name, score in _accuracies(given.vectors, given.groups, learned, judged):
            found.setdefault(name, []).append(score)
    return {name: float(np.mean(scores)) for name, scores in found.items()}


def _accuracies(vectors: Encoded, labels: Ints, learned: Ints, judged: Ints) -> Iterator[tuple[str, float]]:
    assert vectors.dense is not None
    mean = vectors.dense[learned].mean(axis=0)
    for name in ("dense", "sparse", "dense+sparse"):
        rows = features(vectors.only(*name.split("+")), mean)  # type: ignore[arg-type]
        for c in (1.0, C, 100.0) if name == "dense+sparse" else (C,):
            model = LogisticRegression(C=c, max_iter=2_000).fit(rows[learned], labels[learned])
            yield f"{name}, C={c:g}", model.score(rows[judged], labels[judged])
    rows = centred(vectors.dense)
    for name, model in (("nearest example", KNeighborsClassifier(1)), ("nearest mean", NearestCentroid())):
        yield name, model.fit(rows[learned], labels[learned]).score(rows[judged], labels[judged])


def across(english: Known, other: Known) -> dict[str, float]:
    """Learned from three paragraphs of each article in English, judged on the others in another language."""
    place_ = np.concatenate([np.arange(n) for n in np.bincount(english.groups)])
    learned, judged = np.flatnonzero(place_ < 3), np.flatnonzero(place_ >= 3)
    both = Encoded.concat([english.vectors.take(learned), other.vectors.take(judged)])
    labels = np.concatenate([english.groups[learned], other.groups[judged]])
    n = len(learned)
    return dict(_accuracies(both, labels, np.arange(n), np.arange(n, len(labels))))


def recommended(given: Known) -> dict[str, float]:
    """Recall at 4 of the article's other paragraphs, from each paragraph alone, by the scores of all."""
    assert given.vectors.sparse is not None
    dense = given.dense @ given.dense.T
    raw = sparse_matrix(given.vectors.sparse, given.vectors.sparse)
    lengths = np.sqrt(np.diagonal(raw))
    words = raw / lengths / lengths[:, None]
    ways = {"dense": dense, "terms": words, "terms, without lengths": raw}
    ways |= {f"dense + {share:g} terms": dense + share * words for share in (0.2, 0.3, 0.5, 1.0)}
    ways["dense and terms by rank"] = _reciprocal(dense) + _reciprocal(words)
    found = {}
    for name, scores in ways.items():
        np.fill_diagonal(scores, -np.inf)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :4]
        right = (given.groups[best] == given.groups[:, None]).sum(axis=1)
        found[name] = float((right / np.minimum(4, np.bincount(given.groups)[given.groups] - 1)).mean())
    return found


def _reciprocal(scores: Floats) -> Floats:
    """1 / (60 + rank) of every item for every item."""
    return 1.0 / (60.0 + np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1.0)


def strangers(given: Known) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        usual = rng.choice(int(given.groups.max()) + 1, 8, replace=False)
        inside = np.flatnonzero(np.isin(given.groups, usual))
        odd = rng.choice(np.flatnonzero(~np.isin(given.groups, usual)), 2, replace=False)
        part = given.corpus.take(np.concatenate([inside, odd]))
        truth = np.arange(len(part)) >= len(inside)
        for name, scores in _strangeness(part).items():
            found.setdefault(name, []).append(roc_auc_score(truth, scores))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _strangeness(part: Corpus) -> dict[str, Floats]:
    rows, found = centred(part.dense), {}
    for neighbours in (1, 2, 3, 5, 10):
        scores = np.empty(len(part))
        for one in outliers(part, len(part), neighbours=neighbours):
            scores[one.number] = one.score
        found[f"threefold, {neighbours} neighbours"] = scores
    for neighbours in (3, 5, 10):
        model = LocalOutlierFactor(neighbours, metric="cosine").fit(rows)
        found[f"local outlier factor, {neighbours} neighbours"] = -model.negative_outlier_factor_
    found["isolation forest"] = -IsolationForest(random_state=0).fit(rows).score_samples(rows)
    return found


def repeated(given: Known, encoder: Encoder) -> dict[str, Any]:
    """Of each edit the share of texts whose cosine to what they were made of is above, and of different paragraphs."""
    rng, least = random.Random(0), (0.85, 0.9, 0.95, 0.98)
    shares: dict[str, Any] = {}
    for name, edit in EDITS.items():
        edited = encoder.encode_documents([edit(text, rng) for text in given.texts], outputs=["dense"]).dense
        assert edited is not None
        cosines = np.einsum("nd,nd->n", given.dense, edited)
        shares[name] = {f"{one:g}": float((cosines >= one).mean()) for one in least}
    alike = given.dense @ given.dense.T - 2 * np.eye(len(given.texts))
    shares["another paragraph"] = {f"{one:g}": len(duplicates(given.corpus, one)) / len(given.texts) for one in least}
    return {"shares": shares, "largest_of_others": float(alike.max())}


def selections(given: Known) -> dict[str, float]:
    """Groups that a selection of as many items as there are groups has, as a share of them."""
    count, rows = int(given.groups.max()) + 1, centred(given.dense)
    drawn = [np.random.default_rng(seed).choice(len(rows), count, replace=False) for seed in SEEDS]
    centres = KMeans(count, n_init=4, random_state=0).fit(rows).cluster_centers_
    ways = {
        "threefold": [pick(given.corpus, count)],
        "nearest to k-means centres": [(rows @ centres.T).argmax(axis=0)],
        "drawn": drawn,
    }
    return {
        name: float(np.mean([len(set(given.groups[one].tolist())) for one in chosen])) / count
        for name, chosen in ways.items()
    }


def maps(given: Known) -> dict[str, dict[str, float]]:
    rows, found = centred(given.dense), {}
    for method in ("tsne", "umap", "pca"):
        began = time.perf_counter()
        xy = place(given.corpus, method=method).xy  # type: ignore[arg-type]
        took = time.perf_counter() - began
        distances = ((xy[:, None] - xy[None]) ** 2).sum(axis=-1) + np.diag(np.full(len(xy), np.inf))
        same = float((given.groups[distances.argmin(axis=1)] == given.groups).mean())
        trust = float(trustworthiness(rows, xy, metric="cosine"))
        found[method] = {"same_group": same, "trustworthiness": trust, "seconds": took}
    return found


def _without(parts: list[str], count: int, rng: random.Random) -> str:
    gone = set(rng.sample(range(len(parts)), min(count, len(parts) - 1)))
    return " ".join(part for i, part in enumerate(parts) if i not in gone)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("xquad", type=Path)
    options.add_argument("intents", type=Path)
    options.add_argument("--model", default=None)
    options.add_argument("--output", type=Path, default=None)
    given = options.parse_args()
    warnings.simplefilter("ignore")  # of umap and numba: about threads and deprecations
    encoder = Encoder(given.model, device="cpu")
    by_language = articles(given.xquad, encoder)
    english, several = by_language["en"], mixed(list(by_language.values()))
    asked = intents(given.intents, "en", encoder)
    result: dict[str, Any] = {"model": encoder.card.name, "precision": encoder.precision}
    result["clusters"] = {one.name: clusters(one) for one in (english, by_language["zh"], several, asked)}
    result["classifiers"] = {f"{asked.name}, {shots} examples": classifiers(asked, shots) for shots in (2, 5)}
    for language, other in by_language.items():
        result["classifiers"][f"XQuAD, English to {language}"] = across(english, other)
    result["recommended"] = {one.name: recommended(one) for one in (english, by_language["zh"], several)}
    result["outliers"] = {one.name: strangers(one) for one in (english, by_language["zh"])}
    result["duplicates"] = repeated(english, encoder)
    result["selections"] = {one.name: selections(one) for one in (english, asked)}
    result["maps"] = {one.name: maps(one) for one in (english, several)}
    for section, rows in result.items():
        print(section, json.dumps(rounded(rows, 4), indent=2, ensure_ascii=False), sep=": ")
    write(result, given.output, 4)


if __name__ == "__main__":
    main()

"""What people do with vectors besides searching: each a function of arrays, and of a collection's items.

    from threefold.analyze import cluster, gather

    for group in cluster(gather(papers), 12).groups:
        print(group.size, group.keywords)

scikit-learn does what it does well (extra `analyze`); what it lacks is here: words for a cluster from learned weights,
near-duplicates that keep one, a selection that stands for all, maps to look at.
"""

from __future__ import annotations

from threefold.analyze.classify import Classifier, CrossValidation, Prediction, cross_validate, zero_shot
from threefold.analyze.clusters import Clustering, Group, cluster
from threefold.analyze.corpus import Corpus, Item, gather, of_texts
from threefold.analyze.diverse import pick, vendi
from threefold.analyze.duplicates import Duplicate, duplicates
from threefold.analyze.maps import Map, draw, place
from threefold.analyze.outliers import Outlier, outliers

__all__ = [
    "Classifier",
    "Clustering",
    "Corpus",
    "CrossValidation",
    "Duplicate",
    "Group",
    "Item",
    "Map",
    "Outlier",
    "Prediction",
    "cluster",
    "cross_validate",
    "draw",
    "duplicates",
    "gather",
    "of_texts",
    "outliers",
    "pick",
    "place",
    "vendi",
    "zero_shot",
]

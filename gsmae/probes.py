"""Frozen features: one vector per object, and what simple classifiers make of it (scikit-learn, extra `probe`).

The encoder is not trained and sees no label. Features are standardised by the training split alone; the one parameter
of a classifier is chosen on other objects than those it is measured on.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batch import Batch
from .errors import GsmaeError
from .models import Encoder


@dataclass(frozen=True)
class Features:
    """Objects as vectors.

    vectors  [n, 2 D] float32: maximum and mean over the tokens of the encoder, after its last norm
    labels   [n] int64
    uids     n names
    """

    vectors: np.ndarray
    labels: np.ndarray
    uids: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A fitted classifier of standardised features; `tried` is the accuracy that chose its parameter, by parameter."""

    method: str
    parameter: float
    tried: dict[float, float]
    classifier: Any

    @property
    def converged(self) -> bool:
        """Whether the solver came to an end before it was stopped."""
        last = self.classifier[-1]
        return not hasattr(last, "n_iter_") or int(np.max(last.n_iter_)) < last.max_iter

    def predict(self, vectors: np.ndarray) -> np.ndarray:
        """Labels of feature vectors, [n] int64."""
        return np.asarray(self.classifier.predict(vectors), dtype=np.int64)


def feature(tokens: Tensor) -> Tensor:
    """The feature of an object: maximum, then mean, over its tokens: [..., G, D] -> [..., 2 D] float32."""
    return torch.cat([tokens.max(dim=-2).values, tokens.mean(dim=-2)], dim=-1).float()


@torch.no_grad()
def features(encoder: Encoder, batches: Iterable[Batch]) -> Features:
    """One vector per object, in the order of the batches; the encoder should be in evaluation mode."""
    vectors, labels, uids = [], [], []
    for batch in batches:
        tokens = encoder(batch.points).tokens
        vectors.append(feature(tokens).cpu().numpy())
        labels.append(batch.labels.cpu().numpy())
        uids += batch.uids
    if not uids:
        raise ValueError("no objects to embed")
    return Features(np.concatenate(vectors), np.concatenate(labels), tuple(uids))


def _linear(parameter: float, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=parameter, max_iter=2000)


def _svm(parameter: float, seed: int) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=parameter, max_iter=5000, random_state=seed)


def _knn(parameter: float, seed: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(int(parameter), metric="cosine")


# name -> (classifier of one parameter, the values that are tried): C of logistic regression and of the one-against-all
# linear SVM, neighbours by cosine distance
METHODS: dict[str, tuple[Callable[[float, int], Any], tuple[float, ...]]] = {
    "linear": (_linear, (0.001, 0.01, 0.1, 1, 10)),
    "svm": (_svm, (0.0001, 0.001, 0.01, 0.1, 1)),
    "knn": (_knn, (1, 3, 5, 10, 20)),
}


def fit(method: str, train: Features, val: Features, seed: int = 0) -> Probe:
    """Fit on `train`, once for each parameter; that with the best accuracy on `val` stays, the smallest of equals.

    Raises GsmaeError without scikit-learn, or where `train` has one class only.
    """
    _ready(train)
    found = {}
    for parameter in _grid(method, len(train.labels)):
        classifier = _fitted(method, parameter, train.vectors, train.labels, seed)
        found[parameter] = (float((classifier.predict(val.vectors) == val.labels).mean()), classifier)
    best = max(found, key=lambda parameter: found[parameter][0])
    return Probe(method, best, {p: accuracy for p, (accuracy, _) in found.items()}, found[best][1])


def fit_few(method: str, train: Features, seed: int = 0, parts: int = 5) -> Probe:
    """As `fit` where there is no validation split: the parameter is chosen by cross-validation within `train`.

    parts  of the cross-validation, at most as many as the smallest class has objects; each class is spread over all
    """
    _ready(train)
    smallest = int(np.bincount(train.labels)[np.unique(train.labels)].min())
    parts = min(parts, smallest)
    if parts < 2:
        raise GsmaeError("a class has one object to learn from: a parameter cannot be chosen, use 2 shots or more")
    from sklearn.model_selection import StratifiedKFold

    cuts = list(StratifiedKFold(parts, shuffle=True, random_state=seed).split(train.vectors, train.labels))
    tried = {}
    for parameter in _grid(method, min(len(a) for a, _ in cuts)):
        right = 0
        for rest, held in cuts:
            classifier = _fitted(method, parameter, train.vectors[rest], train.labels[rest], seed)
            right += int((classifier.predict(train.vectors[held]) == train.labels[held]).sum())
        tried[parameter] = right / len(train.labels)
    best = max(tried, key=lambda parameter: tried[parameter])
    return Probe(method, best, tried, _fitted(method, best, train.vectors, train.labels, seed))


def _grid(method: str, objects: int) -> Sequence[float]:
    values = METHODS[method][1]
    return [v for v in values if method != "knn" or v <= objects]


def _fitted(method: str, parameter: float, vectors: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `Probe.converged` says it of the one that is used
        return make_pipeline(StandardScaler(), METHODS[method][0](parameter, seed)).fit(vectors, labels)


def _ready(train: Features) -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise GsmaeError("probes need scikit-learn: pip install 'gsmae[probe]'")
    if len(np.unique(train.labels)) < 2:
        raise GsmaeError("all training objects are of one class: there is nothing to tell apart")

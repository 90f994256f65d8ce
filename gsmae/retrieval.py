"""How good a search by features is: average precision, precision, recall and hits within the first k."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Retrieval:
    """Means over the queries, in 0..1.

    map        mean average precision over the whole ranking
    precision  share of the first k that are relevant (of k, also where the gallery is smaller)
    recall     share of the relevant that are among the first k
    hit        share of queries with at least one relevant among the first k
    queries    that have something relevant in the gallery; the others are left out: `without`
    """

    map: float
    precision: float
    recall: float
    hit: float
    k: int
    queries: int
    without: int


def ranking(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Gallery rows by falling cosine similarity, those of lower index first among equals.

    queries  [Q, F], gallery [G, F]; a vector of zeros is equally far from all
    returns  [Q, G] int64
    """
    return np.argsort(-(_unit(queries) @ _unit(gallery).T), axis=1, kind="stable")


def standardized(vectors: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Columns less their mean and over their standard deviation in `by` [n, F]: [Q, F] float64; a constant one is 0.

    What all objects have in common would otherwise decide every cosine.
    """
    center, spread = by.mean(axis=0, dtype=np.float64), by.std(axis=0, dtype=np.float64)
    return np.where(spread > 1e-12, (vectors - center) / np.where(spread > 1e-12, spread, 1), 0.0)


def measure(order: np.ndarray, relevant: np.ndarray, k: int) -> Retrieval:
    """Measure rankings.

    order     [Q, G] gallery indices, best first
    relevant  [Q, G] bool, by gallery index
    Raises ValueError for k below 1 or where no query has anything relevant.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    found = np.take_along_axis(np.asarray(relevant, dtype=bool), order, axis=1)
    total = found.sum(axis=1)
    without = int((total == 0).sum())
    found, total = found[total > 0], total[total > 0]
    if not len(found):
        raise ValueError("no query has anything relevant in the gallery")
    precisions = found.cumsum(axis=1) / np.arange(1, found.shape[1] + 1)
    top = found[:, :k].sum(axis=1)
    return Retrieval(
        map=float(((precisions * found).sum(axis=1) / total).mean()),
        precision=float((top / k).mean()),
        recall=float((top / total).mean()),
        hit=float((top > 0).mean()),
        k=k,
        queries=len(found),
        without=without,
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)

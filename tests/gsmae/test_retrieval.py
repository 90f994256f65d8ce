import numpy as np
import pytest
import torch

from gsmae.retrieval import measure, ranking, standardized


def test_by_hand():
    # relevant at the places 1 and 3 of 4; at the place 2
    order = np.array([[2, 0, 3, 1], [0, 1, 2, 3]])
    relevant = np.zeros((2, 4), dtype=bool)
    relevant[0, [2, 3]] = relevant[1, 1] = True
    found = measure(order, relevant, k=1)
    assert found.map == pytest.approx(((1 / 1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert (found.precision, found.recall, found.hit) == (1 / 2, 1 / 4, 1 / 2)
    found = measure(order, relevant, k=3)
    assert (found.precision, found.recall, found.hit) == (pytest.approx((2 / 3 + 1 / 3) / 2), 1, 1)


def test_agrees_with_torchmetrics():
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalPrecision, RetrievalRecall

    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(30, 8)), rng.normal(size=(50, 8))
    relevant = rng.integers(6, size=(30, 1)) == rng.integers(5, size=(1, 50))  # one class in six has nothing
    found = measure(ranking(queries, gallery), relevant, k=7)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, gallery)]
    # torchmetrics takes what has a negative score for not found at all: cosines are moved above zero
    scores, truth = torch.from_numpy(unit[0] @ unit[1].T + 1).flatten(), torch.from_numpy(relevant).flatten()
    which = torch.arange(30).repeat_interleave(50)
    theirs = {"map": RetrievalMAP, "precision": RetrievalPrecision, "recall": RetrievalRecall, "hit": RetrievalHitRate}
    for name, metric in theirs.items():
        options = {} if name == "map" else {"top_k": 7}
        expected = metric(empty_target_action="skip", **options)(scores, truth, indexes=which)
        assert getattr(found, name) == pytest.approx(float(expected), abs=1e-6), name
    assert found.without == int((~relevant.any(axis=1)).sum()) > 0 and found.queries + found.without == 30


def test_average_precision_agrees_with_scikit_learn():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(1)
    similarity, relevant = rng.normal(size=(1, 40)), rng.uniform(size=(1, 40)) < 0.2
    found = measure(np.argsort(-similarity, axis=1), relevant, k=5)
    assert found.map == pytest.approx(average_precision_score(relevant[0], similarity[0]))


def test_equal_similarities_go_to_the_lower_index_and_lengths_do_not_matter():
    gallery = np.array([[2.0, 0], [0, 1], [7.0, 0], [0, 0]])
    assert ranking(np.array([[1.0, 0], [0, 0]]), gallery).tolist() == [[0, 2, 1, 3], [0, 1, 2, 3]]


def test_standardising_by_others_and_constant_columns():
    by = np.array([[0.0, 5.0], [2.0, 5.0]])
    assert standardized(np.array([[3.0, 9.0]]), by).tolist() == [[2.0, 0.0]]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="no query has anything relevant"):
        measure(np.array([[0, 1]]), np.zeros((1, 2), dtype=bool), 1)
    with pytest.raises(ValueError, match="k is 0"):
        measure(np.array([[0, 1]]), np.ones((1, 2), dtype=bool), 0)

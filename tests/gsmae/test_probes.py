import numpy as np
import pytest
import torch

from gsmae.batch import Batch
from gsmae.errors import GsmaeError
from gsmae.features import FeatureSpec
from gsmae.models import Encoder, EncoderConfig
from gsmae.probes import METHODS, Features, features, fit, fit_few


def blobs(seed: int, count: int, scale: float = 1.0) -> Features:
    """Three classes around the corners of a triangle in two of ten columns; the other columns are loud noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    corners = np.array([[0, 0], [4, 0], [0, 4]])[labels]
    vectors = rng.normal(size=(count, 10))
    vectors[:, :2] += corners
    return Features((vectors * scale).astype(np.float32), labels, tuple(map(str, range(count))))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_separates_what_is_separate_and_says_what_chose_its_parameter(method):
    probe = fit(method, blobs(0, 90), blobs(1, 60))
    assert (probe.predict(blobs(2, 300).vectors) == blobs(2, 300).labels).mean() > 0.75
    assert probe.converged
    assert probe.tried[probe.parameter] == max(probe.tried.values()) and len(probe.tried) == 5


def test_the_parameter_is_chosen_by_val_and_by_nothing_else():
    """With val's labels turned round, the parameter that fits worst to the truth wins."""
    train, val = blobs(0, 60), blobs(1, 60)
    turned = Features(val.vectors, (val.labels + 1) % 3, val.uids)
    tried, opposite = fit("knn", train, val).tried, fit("knn", train, turned)
    assert opposite.tried[opposite.parameter] == max(opposite.tried.values()) < 0.5 < min(tried.values())


def test_agrees_with_scikit_learn_by_hand():
    """Standardised by hand with the training objects alone, and given to LinearSVC."""
    from sklearn.svm import LinearSVC

    train, val, test = (blobs(i, n, scale=7.0) for i, n in ((0, 45), (1, 30), (2, 200)))
    probe = fit("svm", train, val, seed=3)
    mean, std = train.vectors.mean(axis=0), train.vectors.std(axis=0)
    by_hand = LinearSVC(C=probe.parameter, max_iter=5000, random_state=3)
    by_hand.fit((train.vectors - mean) / std, train.labels)
    assert (probe.predict(test.vectors) == by_hand.predict((test.vectors - mean) / std)).mean() > 0.99


@pytest.mark.filterwarnings("error")
def test_a_solver_that_was_stopped_is_told(monkeypatch):
    def hasty(parameter, seed):
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=parameter, max_iter=2)

    monkeypatch.setitem(METHODS, "linear", (hasty, (1000.0,)))
    assert not fit("linear", blobs(0, 90), blobs(1, 60)).converged


def test_nearest_neighbours_by_hand():
    train = Features(np.array([[0, 1], [1, 0], [0, -1], [-1, 0]], np.float32), np.array([0, 0, 1, 1]), tuple("abcd"))
    val = Features(np.array([[0.1, 3.0], [-2.0, -0.1]], np.float32), np.array([0, 1]), tuple("ef"))
    probe = fit("knn", train, val)
    assert probe.tried == {1: 1.0, 3: 1.0} and probe.parameter == 1  # more than four neighbours are not there
    assert probe.predict(np.array([[5.0, 0.2], [0.1, -9.0]], np.float32)).tolist() == [0, 1]


def test_few_objects_choose_within_themselves():
    train = blobs(0, 15)
    assert (fit_few("linear", train).predict(blobs(1, 90).vectors) == blobs(1, 90).labels).mean() > 0.5
    assert fit_few("svm", train, seed=1).tried == fit_few("svm", train, seed=1).tried
    one = Features(train.vectors[:4], np.array([0, 0, 0, 1]), train.uids[:4])
    with pytest.raises(GsmaeError, match="one object to learn from"):
        fit_few("linear", one)
    with pytest.raises(GsmaeError, match="one class"):
        fit("linear", Features(train.vectors[::3], train.labels[::3], train.uids[::3]), train)


def test_a_feature_is_the_maximum_and_the_mean_over_tokens():
    config = EncoderConfig(width=12, depth=1, heads=2, groups=4, group_size=4)
    encoder = Encoder(config, FeatureSpec(), generator=torch.Generator().manual_seed(0)).eval()
    points = torch.randn(3, 32, 14, generator=torch.Generator().manual_seed(1))
    found = features(
        encoder, [Batch(points[:2], torch.tensor([4, 2]), ("a", "b")), Batch(points[2:], torch.tensor([0]), ("c",))]
    )
    with torch.no_grad():
        tokens = encoder(points).tokens
    assert found.vectors.shape == (3, 24) and found.labels.tolist() == [4, 2, 0] and found.uids == ("a", "b", "c")
    expected = torch.cat([tokens.amax(dim=1), tokens.sum(dim=1) / 4], dim=1).numpy()
    assert found.vectors == pytest.approx(expected, abs=1e-5)

import pytest
import torch
from torch import nn

from gsmae.batch import Batch
from gsmae.tasks import Classify
from gsmae.voting import voted


class FirstRow(nn.Module):
    """The scores of an object are the first two columns of its first row."""

    def forward(self, points):
        return points[:, 0, :2]


def batch(**scores) -> Batch:
    points = torch.zeros(len(scores), 4, 14)
    points[:, 0, :2] = torch.tensor([scores[uid] for uid in scores])
    return Batch(points, torch.tensor([{"a": 0, "b": 1, "c": 1}[uid] for uid in scores]), tuple(scores))


def test_scores_are_averaged_by_object_whatever_the_order():
    first = [batch(a=[3.0, 0.0], b=[1.0, 0.0]), batch(c=[0.0, 1.0])]
    second = [batch(c=[5.0, 0.0], b=[0.0, 2.0]), batch(a=[0.0, 1.0])]
    result = voted(FirstRow(), [first, second])
    # means: a [1.5, 0.5], b [0.5, 1], c [2.5, 0.5]: a and b are right, c is not
    assert result["predicted"] == {"a": 0, "b": 1, "c": 0} and result["votes"] == 2
    assert result["accuracy"] == pytest.approx(2 / 3) and result["class_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert result["confusion"] == [[1, 0], [1, 1]]


def test_one_vote_is_the_plain_evaluation():
    looks = [batch(a=[3.0, 0.0], b=[1.0, 0.0]), batch(c=[0.0, 1.0])]
    plain, one = Classify().evaluate(FirstRow(), looks), voted(FirstRow(), [looks])
    assert one.pop("votes") == 1 and one.pop("loss") == pytest.approx(plain.pop("loss")) and one == plain


def test_looks_at_different_objects_are_an_error():
    with pytest.raises(ValueError, match="different objects"):
        voted(FirstRow(), [[batch(a=[1.0, 0.0], b=[1.0, 0.0])], [batch(a=[1.0, 0.0])]])
    with pytest.raises(ValueError, match="no objects"):
        voted(FirstRow(), [])

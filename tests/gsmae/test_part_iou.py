"""The ShapeNetPart conventions, against a second implementation written as PointNet's evaluation is: point by point."""

import numpy as np
import pytest
import torch

from gsmae.batch import Batch
from gsmae.metrics import part_iou
from gsmae.tasks import Segment

PARTS = {"bag": [0, 1], "cap": [2, 3], "chair": [4, 5, 6, 7], "mug": [8]}


def by_loops(scores, truths, categories):
    """Instance and class mIoU and accuracy in plain Python."""
    shapes: dict[str, list[float]] = {}
    right = total = 0
    for score, truth, category in zip(scores, truths, categories, strict=True):
        answer = {}
        for i in range(len(truth)):
            if truth[i] >= 0:
                best = PARTS[category][0]
                for part in PARTS[category]:
                    if score[i, part] > score[i, best]:
                        best = part
                answer[i] = best
        if not answer:
            continue
        right += sum(answer[i] == truth[i] for i in answer)
        total += len(answer)
        ious = []
        for part in PARTS[category]:
            mine, theirs = {i for i in answer if answer[i] == part}, {i for i in answer if truth[i] == part}
            ious.append(len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0)
        shapes.setdefault(category, []).append(sum(ious) / len(ious))
    everything = [v for values in shapes.values() for v in values]
    means = {c: float(np.mean(v)) for c, v in shapes.items()}
    return float(np.mean(everything)), float(np.mean(list(means.values()))), right / total, means


def objects(seed, count=25):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        category = str(rng.choice(list(PARTS)))
        points = int(rng.integers(1, 60))
        here = PARTS[category][: int(rng.integers(1, len(PARTS[category]) + 1))]  # some parts are absent
        truth = rng.choice([-1, *here], size=points)
        score = rng.normal(size=(points, 9))
        score[np.arange(points), truth] += 1.5 * (truth >= 0)
        yield score.astype(np.float32), truth, category


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_plain_loops(seed):
    scores, truths, categories = zip(*objects(seed), strict=True)
    found = part_iou(list(map(torch.tensor, scores)), list(map(torch.tensor, truths)), categories, PARTS)
    instance, category, accuracy, means = by_loops(scores, truths, categories)
    assert found.instance == pytest.approx(instance) and found.category == pytest.approx(category)
    assert found.accuracy == pytest.approx(accuracy) and found.per_category == pytest.approx(means)
    assert instance != pytest.approx(category)
    each = [iou for iou in found.per_object if iou is not None]
    assert np.mean(each) == pytest.approx(instance) and len(found.per_object) == len(scores)
    assert [iou is None for iou in found.per_object] == [bool((truth < 0).all()) for truth in truths]


def test_agrees_with_scikit_learn_where_no_part_is_absent():
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(0)
    truth, score = np.arange(80) % 4 + 4, rng.normal(size=(80, 9)).astype(np.float32)
    found = part_iou([torch.tensor(score)], [torch.tensor(truth)], ["chair"], PARTS)
    predicted = score[:, 4:8].argmax(axis=1) + 4
    assert found.instance == pytest.approx(jaccard_score(truth, predicted, average="macro"))


class ByPlace(torch.nn.Module):
    """A point's part is the whole number that is its first coordinate; notes which points it was asked about."""

    def __init__(self):
        super().__init__()
        self.asked: list[float] = []

    def forward(self, points, queries, category):
        self.asked += queries[..., 1].flatten().tolist()
        return torch.nn.functional.one_hot(queries[..., 0].long(), 9).float()


def test_every_labelled_point_is_measured_once_and_fillers_are_not():
    """Two objects of three and of five points in one batch, as the loader fills them up: parts 0 0 1 | 4 5 5 6 4."""
    queries = torch.zeros(2, 5, 3)
    queries[0, :, 0] = torch.tensor([0, 1, 1, 0, 0])  # answers; the last two are fillers
    queries[1, :, 0] = torch.tensor([4, 5, 4, 6, 4])
    queries[..., 1] = torch.arange(10).reshape(2, 5)
    parts = torch.tensor([[0, 0, 1, -1, -1], [4, 5, 5, 6, 4]])
    batch = Batch(torch.zeros(2, 4, 14), torch.tensor([0, 2]), ("bag/a", "chair/b"), queries, parts)
    model = ByPlace()
    found = Segment(list(PARTS), PARTS).evaluate(model, [batch])
    bag = (1 / 2 + 1 / 2) / 2  # part 0: one of two; part 1: one of two
    chair = (2 / 3 + 1 / 2 + 1 + 1) / 4  # the seventh part is absent from both: 1
    assert found["instance_iou"] == pytest.approx((bag + chair) / 2) and found["class_iou"] == found["instance_iou"]
    assert found["point_accuracy"] == pytest.approx(6 / 8) and found["objects"] == 2
    assert found["iou"] == {"bag/a": pytest.approx(bag), "chair/b": pytest.approx(chair)}
    assert sorted(model.asked) == list(range(10))

import pytest
import torch

from gsmae.metrics import accuracies, confusion, part_iou


def test_accuracies_by_hand():
    counts = confusion(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 0]), 3)
    assert counts.tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]
    overall, mean = accuracies(counts)
    assert overall == 0.5 and mean == pytest.approx((2 / 3 + 0) / 2)  # the class that does not occur does not count


def test_accuracies_agree_with_torchmetrics():
    from torchmetrics.functional.classification import multiclass_accuracy

    g = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(7, (500,), generator=g), torch.randint(7, (500,), generator=g)
    overall, mean = accuracies(confusion(truth, predicted, 7))
    assert overall == pytest.approx(float(multiclass_accuracy(predicted, truth, 7, average="micro")))
    assert mean == pytest.approx(float(multiclass_accuracy(predicted, truth, 7, average="macro")))


PARTS = {"chair": [0, 1], "lamp": [2, 3, 4]}


def scores(answers: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), 5).float()


def test_part_iou_by_hand():
    chair = (scores([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))  # part 0: 2/3, part 1: 1/2
    lamp = (scores([2, 2, 3]), torch.tensor([2, 2, 3]))  # all right; part 4 is absent from both: 1
    result = part_iou([chair[0], lamp[0]], [chair[1], lamp[1]], ["chair", "lamp"], PARTS)
    assert result.per_category == {"chair": pytest.approx((2 / 3 + 1 / 2) / 2), "lamp": 1.0}
    assert result.instance == result.category == pytest.approx((7 / 12 + 1) / 2)
    assert result.accuracy == pytest.approx(6 / 7)


def test_the_answer_stays_within_the_parts_of_the_category():
    wrong_category = torch.tensor([[0.1, 0.0, 9.0, 0.0, 0.0]])
    assert part_iou([wrong_category], [torch.tensor([0])], ["chair"], PARTS).instance == 1


def test_class_and_instance_means_differ_when_categories_do():
    good, bad = (scores([0, 1]), torch.tensor([0, 1])), (scores([2, 2]), torch.tensor([3, 3]))
    result = part_iou([good[0]] * 3 + [bad[0]], [good[1]] * 3 + [bad[1]], ["chair"] * 3 + ["lamp"], PARTS)
    lamp = (0 + 0 + 1) / 3
    assert result.instance == pytest.approx((3 + lamp) / 4) and result.category == pytest.approx((1 + lamp) / 2)


def test_unlabelled_points_and_objects_do_not_count():
    result = part_iou([scores([0, 1])] * 2, [torch.tensor([0, -1]), torch.tensor([-1, -1])], ["chair"] * 2, PARTS)
    assert result.accuracy == 1
    with pytest.raises(ValueError, match="no labelled points"):
        part_iou([scores([0])], [torch.tensor([-1])], ["chair"], PARTS)

"""What results are measured by: accuracies, and the ShapeNetPart conventions of intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts of (true, predicted) pairs, [classes, classes] int64, rows are the truth."""
    return torch.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracies(counts: Tensor) -> tuple[float, float]:
    """Overall accuracy, and the mean over classes that occur, from a confusion matrix; in 0..1.

    Raises ValueError for an empty matrix.
    """
    if counts.sum() == 0:
        raise ValueError("no predictions to measure")
    right, total = counts.diagonal().double(), counts.sum(dim=1).double()
    present = total > 0
    return float(right.sum() / total.sum()), float((right[present] / total[present]).mean())


def classification(counts: Tensor, loss: float, predicted: dict[str, int]) -> dict[str, Any]:
    """What is said of a classification, by plain values.

    counts     its confusion matrix
    loss       mean over the objects
    predicted  uid -> class
    """
    overall, by_class = accuracies(counts)
    return {"accuracy": overall, "class_accuracy": by_class, "loss": loss, "objects": int(counts.sum()),
            "confusion": counts.tolist(), "predicted": predicted}  # fmt: skip


@dataclass(frozen=True)
class PartIoU:
    """Part segmentation by the ShapeNetPart conventions, in 0..1.

    instance   mean over objects of the mean IoU over the parts of the object's category
    category   mean over categories of that category's instance mean
    accuracy   share of labelled points with the right part
    per_category  category -> its instance mean
    per_object    each object's mean over the parts of its category, in the order given; None without labelled points
    """

    instance: float
    category: float
    accuracy: float
    per_category: dict[str, float]
    per_object: tuple[float | None, ...]


def part_iou(
    scores: Sequence[Tensor], parts: Sequence[Tensor], categories: Sequence[str], category_parts: dict[str, list[int]]
) -> PartIoU:
    """Score objects one by one; the answer is the argmax within the category's parts, an absent part counts 1.

    scores          per object [P, parts of all categories], higher is likelier
    parts           per object [P] global part index; -1 = not labelled, left out
    categories      per object
    category_parts  category -> its global part indices
    Objects without any labelled point are left out. Raises ValueError when none is left.
    """
    ious: dict[str, list[float]] = {}
    per_object: list[float | None] = []
    right = total = 0
    for score, truth, category in zip(scores, parts, categories, strict=True):
        labelled = truth >= 0
        if not labelled.any():
            per_object.append(None)
            continue
        own = torch.tensor(category_parts[category])
        truth = truth[labelled].cpu()
        predicted = own[score[labelled].cpu()[:, own].argmax(dim=1)]
        right += int((predicted == truth).sum())
        total += len(truth)
        each = []
        for part in own:
            union = int(((predicted == part) | (truth == part)).sum())
            both = int(((predicted == part) & (truth == part)).sum())
            each.append(both / union if union else 1.0)
        per_object.append(sum(each) / len(each))
        ious.setdefault(category, []).append(sum(each) / len(each))
    if not total:
        raise ValueError("no labelled points to measure")
    per_category = {c: sum(v) / len(v) for c, v in sorted(ious.items())}
    everything = [v for values in ious.values() for v in values]
    return PartIoU(
        instance=sum(everything) / len(everything),
        category=sum(per_category.values()) / len(per_category),
        accuracy=right / total,
        per_category=per_category,
        per_object=tuple(per_object),
    )

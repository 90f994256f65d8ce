"""Test-time voting: the same objects seen several times, their scores averaged. Off unless asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch
from .metrics import classification, confusion


def voted(model: nn.Module, looks: Iterable[Iterable[Batch]]) -> dict[str, Any]:
    """The metrics of a classification whose class scores are averaged over looks, as `Classify.evaluate` gives them.

    looks  for each vote the batches of all objects, in whatever order and with whatever windows and moves
    Raises ValueError for no looks, or looks at different objects.
    """
    sums: dict[str, Tensor] = {}
    labels: dict[str, int] = {}
    votes = 0
    for batches in looks:
        seen: set[str] = set()
        for batch in batches:
            scores = model(batch.points).double().cpu()
            for uid, label, row in zip(batch.uids, batch.labels.tolist(), scores, strict=True):
                sums[uid], labels[uid] = sums.get(uid, torch.zeros_like(row)) + row, label
                seen.add(uid)
        votes += 1
        if seen != sums.keys():
            raise ValueError("the looks are at different objects")
    if not votes or not sums:
        raise ValueError("no objects to measure")
    mean = torch.stack([sums[uid] for uid in sorted(sums)]) / votes
    truth = torch.tensor([labels[uid] for uid in sorted(sums)])
    predicted = mean.argmax(dim=1)
    counts = confusion(truth, predicted, mean.shape[1])
    answers = dict(zip(sorted(sums), predicted.tolist(), strict=True))
    return {**classification(counts, float(F.cross_entropy(mean, truth)), answers), "votes": votes}

"""What a run learns: its network, its loss and how it is measured. A new task is a class and a line in TASKS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch
from .features import FeatureSpec
from .metrics import classification, confusion, part_iou
from .models import (
    Classifier,
    ClassifierConfig,
    GaussianLatent,
    GaussianMAE,
    LatentOutput,
    MAEConfig,
    MAEOutput,
    PointNet2,
    PointNet2Config,
    Segmenter,
    SegmenterConfig,
    effective_rank,
)

Pretraining = GaussianMAE | GaussianLatent


class Plain:
    """A task whose model is trained by its loss alone."""

    def after_step(self, model: nn.Module, share_done: float) -> None:
        """Nothing; see `gsmae.training.Task.after_step`."""

    def weight(self, batch: Batch) -> int | Tensor:
        """Its objects; see `gsmae.training.Task.weight`."""
        return len(batch)


class Pretrain(Plain):
    """Prediction of hidden groups; the best checkpoint has the lowest validation loss under fixed masks.

    A loss against targets in feature space says nothing, for the targets move: there the newest checkpoint is the best,
    and how far apart the features of different objects are is measured, so that a collapse is seen.
    """

    config = MAEConfig
    selects = ("loss", -1)

    @staticmethod
    def model(config: MAEConfig, spec: FeatureSpec, generator: torch.Generator | None = None) -> Pretraining:
        """The network of the configured objective, with weights drawn from the generator."""
        return OBJECTIVES[config.objective](config, spec, generator=generator)

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over the fields, each logged; or the loss of latent targets, with the features' spread."""
        output = _predicted(model, batch, generator)
        return output.loss, output.logs

    def after_step(self, model: nn.Module, share_done: float) -> None:
        """A teacher, where there is one, follows."""
        if isinstance(model, GaussianLatent):
            model.follow(share_done)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Any]:
        """Mean loss over the objects; the masks depend only on the position of the batch."""
        sums: dict[str, float] = {}
        pooled: list[Tensor] = []
        objects = 0
        for number, batch in enumerate(batches):
            generator = torch.Generator(batch.points.device).manual_seed(number)
            output = _predicted(model, batch, generator)
            logs = output.logs
            if isinstance(output, LatentOutput):
                pooled.append(output.pooled)
                logs = {"loss_latent": output.loss}
            else:
                logs = {"loss": output.loss, **logs}
            for name, value in logs.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
            objects += len(batch)
        metrics = {name: value / objects for name, value in sums.items()} | {"objects": objects}
        if pooled:
            features = torch.cat(pooled)
            metrics["feature_std"] = float(features.std(dim=0, unbiased=False).mean())
            metrics["feature_rank"] = effective_rank(features)
        return metrics


class Classify(Plain):
    """One label per object; overall accuracy picks the checkpoint."""

    config = ClassifierConfig
    selects = ("accuracy", 1)

    @staticmethod
    def model(config: ClassifierConfig, spec: FeatureSpec, generator: torch.Generator | None = None) -> Classifier:
        """The network, with weights drawn from the generator."""
        return Classifier(config, spec, generator=generator)

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy without label smoothing (as the released code; the paper does not say)."""
        scores = model(batch.points)
        right = (scores.argmax(dim=1) == batch.labels).float().mean()
        return F.cross_entropy(scores, batch.labels), {"accuracy": right}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Any]:
        """Overall and mean class accuracy, the loss and the confusion matrix; one reading per object, no voting."""
        counts, loss, answers = None, 0.0, {}
        for batch in batches:
            scores = model(batch.points)
            predicted = scores.argmax(dim=1)
            here = confusion(batch.labels, predicted, scores.shape[1]).cpu()
            counts = here if counts is None else counts + here
            loss += float(F.cross_entropy(scores, batch.labels, reduction="sum"))
            answers |= dict(zip(batch.uids, predicted.tolist(), strict=True))
        if counts is None:
            raise ValueError("no objects to measure")
        return classification(counts, loss / int(counts.sum()), answers)


class PointNet2Classify(Classify):
    """As Classify, by a supervised PointNet++ on the same batches: a baseline."""

    config = PointNet2Config

    @staticmethod
    def model(config: PointNet2Config, spec: FeatureSpec, generator: torch.Generator | None = None) -> PointNet2:  # type: ignore[override]
        """The network, with weights drawn from the generator."""
        return PointNet2(config, spec, generator=generator)


class Segment(Plain):
    """One part per labelled surface point, the category given; instance mIoU picks the checkpoint.

    classes  names of the categories, by label
    parts    category -> its global part indices
    """

    config = SegmenterConfig
    selects = ("instance_iou", 1)

    def __init__(self, classes: list[str], parts: dict[str, list[int]]):
        self.classes, self.parts = classes, parts

    @staticmethod
    def model(config: SegmenterConfig, spec: FeatureSpec, generator: torch.Generator | None = None) -> Segmenter:
        """The network, with weights drawn from the generator."""
        return Segmenter(config, spec, generator=generator)

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of the labelled points; points without a label do not count."""
        queries, parts = _labelled(batch)
        scores = model(batch.points, queries, batch.labels)
        loss = F.nll_loss(scores.flatten(0, 1), parts.flatten(), ignore_index=-1, reduction="sum")
        return loss / self.weight(batch).clamp_min(1), {}

    def weight(self, batch: Batch) -> Tensor:
        """Its labelled points."""
        return (_labelled(batch)[1] >= 0).sum()

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Any]:
        """Instance and class mIoU by the ShapeNetPart conventions, and the IoU of each object (`iou`, by uid); every
        labelled point is read once."""
        scores, parts, categories, uids = [], [], [], []
        for batch in batches:
            queries, truth = _labelled(batch)
            scores += list(model(batch.points, queries, batch.labels))
            parts += list(truth)
            categories += [self.classes[i] for i in batch.labels.tolist()]
            uids += batch.uids
        result = part_iou(scores, parts, categories, self.parts)
        each = {uid: iou for uid, iou in zip(uids, result.per_object, strict=True) if iou is not None}
        return {"instance_iou": result.instance, "class_iou": result.category, "point_accuracy": result.accuracy,
                "per_category": result.per_category, "objects": len(parts), "iou": each}  # fmt: skip


OBJECTIVES: dict[str, type[GaussianMAE] | type[GaussianLatent]] = {"reconstruct": GaussianMAE, "latent": GaussianLatent}
TASKS = {"pretrain": Pretrain, "classify": Classify, "segment": Segment, "pointnet2": PointNet2Classify}


def _predicted(model: nn.Module, batch: Batch, generator: torch.Generator) -> MAEOutput | LatentOutput:
    assert isinstance(model, Pretraining)
    groups = model.encoder.group(batch.points)
    mask = model.draw_mask(groups, generator, batch.normalization)
    return model(groups, mask, model.config.masked)


def _labelled(batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.queries is None or batch.parts is None:
        raise ValueError("this batch has no labelled points; was it made for segmentation?")
    return batch.queries, batch.parts

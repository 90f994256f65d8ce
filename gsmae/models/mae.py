"""Gaussian-MAE: hide most groups of a splat, encode the rest, predict the hidden Gaussians (paper, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import FeatureSpec
from ..gaussians import WIDTH, WIDTHS, columns
from ..groups import Groups, rows, select
from ..ops import chamfer
from ..ops.reference.points import chamfer_matches
from ..shapes import ellipsoids
from .blocks import initialize
from .masked import MAEConfig, Masked

WEIGHTS = {"centers": 0.1}  # where the configuration names none


@dataclass(frozen=True)
class MAEOutput:
    """One forward pass; V visible and M masked groups of K Gaussians.

    loss       scalar      weighted sum of `losses`
    losses     by field, scalars: Chamfer L2 for means, L1 for the others, not weighted
               and, where centres are predicted, "centers"
    predicted  by field, [B, M, K, width]; means are relative to the centre
    targets    by field, [B, M, K, width], in the order of `predicted`'s slots
    mask       [B, G] bool, True = masked
    groups     the splats' groups
    encoded    [B, V, D]   features of the visible groups, in order of index
    decoded    [B, M, D]   the decoder's features of the masked groups, in order of index
    centers    [B, M, C]   centres of the masked groups as the decoder had them, given or predicted
    """

    loss: Tensor
    losses: dict[str, Tensor]
    predicted: dict[str, Tensor]
    targets: dict[str, Tensor]
    mask: Tensor
    groups: Groups
    encoded: Tensor
    decoded: Tensor
    centers: Tensor

    @property
    def logs(self) -> dict[str, Tensor]:
        """What is logged beside the loss."""
        return {f"loss_{name}": value for name, value in self.losses.items()}


class GaussianMAE(Masked):
    """The pretraining network of the paper; every embedded field of the hidden groups is predicted."""

    def __init__(self, config: MAEConfig, spec: FeatureSpec, *, generator: torch.Generator | None = None):
        super().__init__(config, spec, generator=generator)
        width, size = config.encoder.width, config.encoder.group_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, size * WIDTHS[name]) for name in spec.embed})
        self._initialize(self.heads, generator)
        if config.centers == "predicted":
            self.center_head = nn.Linear(width, len(columns(spec.group)))
            initialize(self.center_head, generator)

    def forward(self, points: Tensor | Groups, mask: Tensor, masked: int | None = None) -> MAEOutput:
        """Reconstruct the masked groups.

        points  normalised Gaussians [B, N, 14], or groups that `encoder.group` made of them
        mask    [B, G] bool, True = masked, the same number in every row (a ValueError otherwise)
        masked  that number, if it is known; without it the mask is counted, for which a GPU has to be waited for
        """
        groups = self.encoder.group(points)
        if mask.shape != groups.centers.shape[:2]:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, the groups {tuple(groups.centers.shape[:2])}")
        masked = _count(mask) if masked is None else masked
        mask = mask.to(groups.centers.device, non_blocking=True)
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)  # visible before masked, each in order of index
        visible, hidden = order.split([mask.shape[1] - masked, masked], dim=1)

        losses = {}
        by = columns(self.spec.group)
        centers, located = rows(groups.centers, hidden), select(rows(groups.centers, order), by)
        if self.config.centers == "predicted":
            encoded, found = self._encode_and_find(groups, visible, hidden)
            losses["centers"] = F.mse_loss(found.float(), located[:, -masked:].float())
            found = found.detach().to(located.dtype)  # the decoder's loss is not to move the centres about
            located = torch.cat([located[:, :-masked], found], dim=1)
            centers = centers.clone()
            for column, values in zip(by, found.unbind(-1), strict=True):  # a list as an index would be waited for
                centers[..., column] = values
        else:
            encoded = self._encode(groups, visible)
        decoded = self._decode(encoded, located, masked)
        predicted = self._predict(decoded)
        targets = self._targets(rows(groups.points, hidden), predicted)
        losses = _losses(predicted, targets) | losses
        terms = [self.config.weights.get(name, WEIGHTS.get(name, 1.0)) * loss for name, loss in losses.items()]
        loss = torch.stack(terms).sum()
        return MAEOutput(loss, losses, predicted, targets, mask, groups, encoded, decoded, centers)

    def _encode_and_find(self, groups: Groups, visible: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the visible groups [B, V, D] as `_encode`, and where the hidden groups seem to lie [B, M, C].

        The same blocks carry the hidden groups' tokens, which know their contents but not their centres; each looks at
        the visible tokens with their positions and at the other hidden ones. The visible tokens do not look back.
        """
        tokens = self.encoder.tokenize(groups.points)
        x, lost = rows(tokens, visible), rows(tokens, hidden)
        positions = self.encoder.locate(rows(groups.centers, visible))
        for block in self.encoder.blocks:
            context = x + positions
            x, lost = block(context), block(lost, context)
        return self.encoder.norm(x), self.center_head(self.encoder.norm(lost))

    def _predict(self, decoded: Tensor) -> dict[str, Tensor]:
        size = self.config.encoder.group_size
        return {
            name: activate(name, head(decoded).unflatten(-1, (size, WIDTHS[name])), self.spec)
            for name, head in self.heads.items()
        }

    def _targets(self, points: Tensor, predicted: dict[str, Tensor]) -> dict[str, Tensor]:
        """The nearest K Gaussians of each masked group, by field; `match` may reorder all but the means."""
        points = points[:, :, : self.config.encoder.group_size]
        targets = {name: select(points, columns([name])) for name in predicted}
        if self.config.match == "slots":
            return targets
        nearest, _ = chamfer_matches(predicted["means"].flatten(0, 1), targets["means"].flatten(0, 1))
        return {
            name: values if name == "means" else rows(values.flatten(0, 1), nearest).view_as(values)
            for name, values in targets.items()
        }


def activate(field: str, x: Tensor, spec: FeatureSpec) -> Tensor:
    """From a head's output to the range that a field has in the feature space; see `FeatureSpec.normalize`.

    Opacities: tanh, or sigmoid where not normalised. Scales: tanh, or ReLU where not normalised. Quaternions: tanh,
    then w := 1 - w, then unit length, so that zero is the identity. Means, SH and shapes are left as they are.
    """
    normalized = field in spec.normalize
    if field == "opacities":
        return torch.tanh(x) if normalized else torch.sigmoid(x)
    if field == "scales":
        return torch.tanh(x) if normalized else torch.relu(x)
    if field == "quats":
        x = torch.tanh(x)
        x = torch.cat([1 - x[..., :1], x[..., 1:]], dim=-1)
        return x / (x.norm(dim=-1, keepdim=True) + 1e-9)
    return x


def reconstruct(output: MAEOutput) -> Tensor:
    """Feature rows of the splats with every masked group replaced by its prediction, for people to look at.

    returns  [B, G K, 14], masked groups first, about the centres that the decoder had; fields that were not predicted
             are the masked Gaussians' own. Predicted shapes become scales and quats
    """
    groups = output.groups
    batch, count, _ = groups.centers.shape
    masked, size = next(iter(output.predicted.values())).shape[1:3]
    order = output.mask.to(torch.uint8).argsort(dim=1, stable=True, descending=True)
    points, centers = rows(groups.points, order)[:, :, :size].clone(), rows(groups.centers, order).clone()
    centers[:, :masked] = output.centers
    for name, values in output.predicted.items():
        values = values.detach().to(points.dtype)
        points[:, :masked, :, columns([name])] = values
        if name == "shapes":
            scales, quats = ellipsoids(values)
            points[:, :masked, :, columns(["scales", "quats"])] = torch.cat([scales, quats], dim=-1)
    points[..., :3] += centers[:, :, None, :3]
    return points[..., :WIDTH].reshape(batch, count * size, -1)


def _losses(predicted: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Chamfer L2 on the relative means, L1 on every other field, in float32."""
    losses = {}
    for name, values in predicted.items():
        values, target = values.float(), targets[name].float()
        if name == "means":
            losses[name] = chamfer(values.flatten(0, 1), target.flatten(0, 1))
        else:
            losses[name] = F.l1_loss(values, target)
    return losses


def _count(mask: Tensor) -> int:
    counts = mask.sum(dim=1)
    low, high = int(counts.min()), int(counts.max())
    if low != high:
        raise ValueError(f"every row of a mask must hide as many groups; they hide {low} to {high}")
    if not 0 < low < mask.shape[1]:
        raise ValueError(f"the mask hides {low} of {mask.shape[1]} groups; some must be hidden and some not")
    return low

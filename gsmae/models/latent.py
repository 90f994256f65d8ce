"""Latent targets: blocks of hidden groups are predicted in the feature space of a slowly following teacher.

After Gaussian-JEPA (arXiv 2608.15651): one visible context, blocks of hidden groups, no Gaussian is reconstructed. Its
two projections and its regularisers are not here: the teacher, the stop of gradients and, where asked for, VICReg's
variance hinge keep features apart, and their spread is logged.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..averages import approach
from ..features import FeatureSpec, Normalization
from ..gaussians import columns
from ..groups import Groups, block_parts, rows, select
from .masked import MAEConfig, Masked


@dataclass(frozen=True)
class LatentOutput:
    """One forward pass; V visible and M hidden groups.

    loss       scalar, smooth L1 between predicted and target, and the weighted penalty
    predicted  [B, M, D], by block, in each in order of index
    targets    [B, M, D]  the teacher's features, each of mean zero and variance one
    encoded    [B, V, D]  features of the visible groups
    pooled     [B, D]     mean of the targets, for the spread of features
    logs       what is logged beside the loss: the spread of the batch's features (0 = collapsed)
    """

    loss: Tensor
    predicted: Tensor
    targets: Tensor
    encoded: Tensor
    pooled: Tensor
    logs: dict[str, Tensor]


class GaussianLatent(Masked):
    """The pretraining network with targets in feature space: a student that is trained and a teacher that follows.

    The teacher is part of the module, so of every checkpoint; it gets no gradients and stays in evaluation mode.
    """

    def __init__(self, config: MAEConfig, spec: FeatureSpec, *, generator: torch.Generator | None = None):
        super().__init__(config, spec, generator=generator)
        self.head = nn.Linear(config.encoder.width, config.encoder.width)
        self._initialize(self.head, generator)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        self.sizes = shares(config.masked, config.latent.blocks)

    def train(self, mode: bool = True) -> GaussianLatent:
        super().train(mode)
        self.teacher.eval()
        return self

    def draw_mask(
        self, groups: Groups, generator: torch.Generator, normalization: Normalization | None = None
    ) -> Tensor:
        """Blocks [B, G] int64, 0 = visible, else the number of the block from one; `config.mask` does not matter."""
        return block_parts(groups.centers, self.sizes, generator)

    def forward(self, points: Tensor | Groups, blocks: Tensor, masked: int | None = None) -> LatentOutput:
        """Predict the teacher's features of each block from the visible groups.

        points  normalised Gaussians [B, N, 14], or groups that `encoder.group` made of them
        blocks  [B, G] as `draw_mask` draws them: the sizes are the configuration's
        masked  not needed; as in `GaussianMAE`
        """
        groups = self.encoder.group(points)
        order = blocks.argsort(dim=1, stable=True)
        visible, *hidden = order.split([order.shape[1] - sum(self.sizes), *self.sizes], dim=1)
        with torch.no_grad():
            seen = self.teacher.transform(self.teacher.tokenize(groups.points), self.teacher.locate(groups.centers))
            features = F.layer_norm(seen.float(), seen.shape[-1:])
        encoded = self._encode(groups, visible)
        located = select(groups.centers, columns(self.spec.group))
        known = rows(located, visible)
        found = [self._decode(encoded, torch.cat([known, rows(located, h)], dim=1), h.shape[1]) for h in hidden]
        predicted = self.head(torch.cat(found, dim=1)).float()
        targets = rows(features, torch.cat(hidden, dim=1))
        loss = F.smooth_l1_loss(predicted, targets)
        spread = encoded.float().mean(dim=1).std(dim=0, unbiased=False)
        if self.config.latent.spread:
            loss = loss + self.config.latent.spread * F.relu(1 - spread).mean()
        pooled = features.mean(dim=1)
        deviation = pooled.std(dim=0, unbiased=False).mean()
        logs = {"student_std": spread.mean().detach(), "teacher_std": deviation}
        return LatentOutput(loss, predicted, targets, encoded, pooled, logs)

    @torch.no_grad()
    def follow(self, share_done: float) -> None:
        """Move the teacher towards the student; called after every optimiser step.

        share_done  0..1 of the run, by which the momentum grows from the configured one to one
        """
        start = self.config.latent.momentum
        momentum = 1 - (1 - start) * (1 + math.cos(math.pi * share_done)) / 2
        approach([*self.teacher.parameters()], [*self.encoder.parameters()], 1 - momentum)
        for kept, new in zip(self.teacher.buffers(), self.encoder.buffers(), strict=True):
            kept.copy_(new)


def shares(total: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Parts of a number in given proportions, none empty: (11, 9, 7, 5) of 32 are themselves.

    Raises ValueError where there are fewer than parts.
    """
    if total < len(sizes):
        raise ValueError(f"{total} hidden groups are too few for {len(sizes)} blocks")
    ends = [round(total * sum(sizes[: i + 1]) / sum(sizes)) for i in range(len(sizes))]
    parts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    while 0 in parts:
        parts[parts.index(max(parts))] -= 1
        parts[parts.index(0)] += 1
    return tuple(parts)


def effective_rank(features: Tensor) -> float:
    """Effective number of dimensions: exp of the entropy of the covariance's normalised spectrum (Roy, Vetterli 2007).

    features  [B, D], B at least 2
    """
    values = torch.linalg.svdvals(features.double() - features.double().mean(dim=0)).square()
    share = values / values.sum().clamp_min(1e-30)
    return float(torch.exp(-(share * share.clamp_min(1e-30).log()).sum()))

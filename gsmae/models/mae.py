"""Gaussian-MAE: hide most groups of a splat, encode the rest, predict the hidden Gaussians (paper, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ..config import Config
from ..errors import nearest_name
from ..features import FeatureSpec
from ..gaussians import FIELDS, columns
from ..groups import Groups, block_mask, masked_count, random_mask, rows, select
from ..ops import chamfer
from ..ops.reference.points import chamfer_matches
from .blocks import PositionEmbedding, initialize, initialize_decoder, stack, token
from .encoder import Encoder, EncoderConfig


class MAEConfig(Config):
    """The masked autoencoder; defaults are the paper's."""

    encoder: EncoderConfig = EncoderConfig()
    """the part that is kept after pretraining"""
    decoder_depth: int = Field(default=4, ge=1)
    """transformer blocks of the decoder, as wide as the encoder"""
    decoder_heads: int = Field(default=6, ge=1)
    """attention heads of the decoder; they divide the width"""
    mask: Literal["random", "block"] = "random"
    """which groups are hidden: any, or a contiguous block"""
    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    """share of the groups that is hidden, rounded down: 38 of 64"""
    tokenize: Literal["all", "visible"] = "all"
    """groups that pass the tokenizer. "all" as released: those that will be hidden are thrown away afterwards.
    "visible" is much faster and in evaluation equal; in training, BatchNorm then sees only the visible groups"""
    match: Literal["slots", "nearest"] = "slots"
    """target of a predicted Gaussian's attributes: the Gaussian in the same slot, as released, or the one that the
    Chamfer distance of the positions pairs it with"""
    weights: dict[str, float] = Field(default_factory=dict)
    """loss weights by field; those not named are one"""

    @field_validator("weights")
    @classmethod
    def _known(cls, weights: dict[str, float]) -> dict[str, float]:
        for name in weights:
            if name not in FIELDS:
                raise ValueError(f"unknown field '{name}': {nearest_name(name, FIELDS)}")
        return weights

    @model_validator(mode="after")
    def _fits(self) -> MAEConfig:
        if self.encoder.width % self.decoder_heads:
            raise ValueError(f"width {self.encoder.width} is not a multiple of {self.decoder_heads} decoder heads")
        return self

    @property
    def masked(self) -> int:
        """How many groups of each splat are hidden."""
        return masked_count(self.encoder.groups, self.mask_ratio)


@dataclass(frozen=True)
class MAEOutput:
    """One forward pass; V visible and M masked groups of K Gaussians.

    loss       scalar      weighted sum of `losses`
    losses     by field, scalars: Chamfer L2 for means, L1 for the others, not weighted
    predicted  by field, [B, M, K, width]; means are relative to the centre
    targets    by field, [B, M, K, width], in the order of `predicted`'s slots
    mask       [B, G] bool, True = masked
    groups     the splats' groups
    encoded    [B, V, D]   features of the visible groups, in order of index
    decoded    [B, M, D]   the decoder's features of the masked groups, in order of index
    """

    loss: Tensor
    losses: dict[str, Tensor]
    predicted: dict[str, Tensor]
    targets: dict[str, Tensor]
    mask: Tensor
    groups: Groups
    encoded: Tensor
    decoded: Tensor


class GaussianMAE(nn.Module):
    """The pretraining network.

    config     sizes and choices
    spec       fields that are embedded, grouped by and normalised; every embedded field is predicted
    generator  source of the initial weights; None is torch's own
    """

    def __init__(self, config: MAEConfig, spec: FeatureSpec, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config, self.spec = config, spec
        width, size = config.encoder.width, config.encoder.group_size
        self.encoder = Encoder(config.encoder, spec, generator=generator)
        self.mask_token = token(width, generator)
        self.decoder_position = PositionEmbedding(len(columns(spec.group)), width)
        self.decoder_blocks = stack(width, config.decoder_depth, config.decoder_heads, config.encoder.drop_path)
        self.decoder_norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, size * FIELDS[name]) for name in spec.embed})
        initialize(self.decoder_position, generator)
        initialize(self.heads, generator)
        initialize_decoder(self.decoder_blocks, generator)

    def draw_mask(self, groups: Groups, generator: torch.Generator) -> Tensor:
        """A mask [B, G] as the configuration says; on the generator's device, or for blocks the centres'."""
        if self.config.mask == "block":
            return block_mask(groups.centers, self.config.mask_ratio, generator)
        batch, count, _ = groups.centers.shape
        return random_mask(batch, count, self.config.mask_ratio, generator)

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

        encoded = self._encode(groups, visible)
        decoded = self._decode(encoded, rows(groups.centers, order), masked)
        predicted = self._predict(decoded)
        targets = self._targets(rows(groups.points, hidden), predicted)
        losses = _losses(predicted, targets)
        terms = [self.config.weights.get(name, 1.0) * loss for name, loss in losses.items()]
        return MAEOutput(torch.stack(terms).sum(), losses, predicted, targets, mask, groups, encoded, decoded)

    def _encode(self, groups: Groups, visible: Tensor) -> Tensor:
        if self.config.tokenize == "all":
            tokens = rows(self.encoder.tokenize(groups.points), visible)
        else:
            tokens = self.encoder.tokenize(rows(groups.points, visible))
        return self.encoder.transform(tokens, self.encoder.locate(rows(groups.centers, visible)))

    def _decode(self, encoded: Tensor, centers: Tensor, masked: int) -> Tensor:
        x = torch.cat([encoded, self.mask_token.to(encoded.dtype).expand(len(encoded), masked, -1)], dim=1)
        positions = self.decoder_position(select(centers, columns(self.spec.group)))
        for block in self.decoder_blocks:
            x = block(x + positions)
        return self.decoder_norm(x[:, -masked:])

    def _predict(self, decoded: Tensor) -> dict[str, Tensor]:
        size = self.config.encoder.group_size
        return {
            name: activate(name, head(decoded).unflatten(-1, (size, FIELDS[name])), self.spec)
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
    then w := 1 - w, then unit length, so that zero is the identity. Means and SH are left as they are.
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

    returns  [B, G K, 14], masked groups first; fields that were not predicted are the masked Gaussians' own
    """
    groups = output.groups
    batch, count, _ = groups.centers.shape
    masked, size = next(iter(output.predicted.values())).shape[1:3]
    order = output.mask.to(torch.uint8).argsort(dim=1, stable=True, descending=True)
    points, centers = rows(groups.points, order)[:, :, :size].clone(), rows(groups.centers, order)
    for name, values in output.predicted.items():
        points[:, :masked, :, columns([name])] = values.detach().to(points.dtype)
    points[..., :3] += centers[:, :, None, :3]
    return points.reshape(batch, count * size, -1)


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

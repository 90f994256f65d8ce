"""Centres and neighbourhoods: the groups of Gaussians that become tokens (paper, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import ops
from .gaussians import columns
from .importance import heaviest
from .shares import drawn


@dataclass(frozen=True)
class Groups:
    """B splats cut into G overlapping groups of K Gaussians.

    points   [B, G, K, C]  nearest to the centre first; the means are relative to the centre, all else is absolute
    centers  [B, G, C]     the central Gaussians as they were
    indices  [B, G, K]     rows of the input, int64; the centre (or a duplicate of lower index) comes first
    C is 14, or 20 where the FeatureSpec uses shapes.
    """

    points: Tensor
    centers: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def to(self, device, non_blocking: bool = False) -> Groups:
        """The same groups on another device."""
        return Groups(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))


@torch.no_grad()
def group(points: Tensor, by: Iterable[str], groups: int, size: int) -> Groups:
    """Farthest point sampling, first index 0, then the nearest neighbours, both over the columns of the fields `by`.

    points  [B, N, C]  feature columns (`gsmae.features.normalize`, `expand`)
    by      names of fields, as in `FeatureSpec.group`
    groups  G, at most N
    size    K, at most N
    Raises ValueError where N is too small.
    """
    space = select(points, columns(by)).contiguous()
    center_indices, indices = ops.group(space, groups, size)
    centers, members = rows(points, center_indices), rows(points, indices)
    relative = members[..., :3] - centers[:, :, None, :3]
    return Groups(torch.cat([relative, members[..., 3:]], dim=-1), centers, indices)


def rows(values: Tensor, indices: Tensor) -> Tensor:
    """Rows by index: [B, N, ...] and [B, ...] int64 -> [B, ..., ...]."""
    batch = torch.arange(len(values), device=values.device).reshape(-1, *[1] * (indices.ndim - 1))
    return values[batch, indices]


def select(points: Tensor, chosen: list[int]) -> Tensor:
    """The chosen feature columns of [..., C]; without a copy where they are adjacent."""
    if chosen == list(range(chosen[0], chosen[-1] + 1)):
        return points[..., chosen[0] : chosen[-1] + 1]
    # by slices: indexing with a list would copy the list to the device and wait for it
    return torch.cat([points[..., i : i + 1] for i in chosen], dim=-1)


def masked_count(groups: int, ratio: float) -> int:
    """How many of the groups a ratio masks, rounded down; at least one is masked and at least one is not."""
    return min(max(int(ratio * groups), 1), groups - 1)


def random_mask(batch: int, groups: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Mask the same number of randomly chosen groups in every sample.

    returns  [B, G] bool on the generator's device, True = masked; `masked_count` of them per row
    """
    noise = drawn(batch, lambda n: torch.rand(n, groups, generator=generator, device=generator.device))
    return _mark(noise.argsort(dim=1)[:, : masked_count(groups, ratio)], groups)


def block_mask(centers: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Mask one contiguous block per sample: the groups nearest to a randomly chosen centre (Point-BERT).

    centers  [B, G, >= 3], positions first
    returns  [B, G] bool on the device of the centres, True = masked; `masked_count` of them per row
    """
    batch, groups = centers.shape[:2]
    seed = drawn(batch, lambda n: torch.randint(groups, (n, 1), generator=generator, device=generator.device))
    seed = seed.to(centers.device)
    means = centers[..., :3].contiguous()
    return _mark(ops.nearest(rows(means, seed), means, masked_count(groups, ratio))[:, 0], groups)


def importance_mask(log_weights: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Mask groups that carry much of the splat's look more often than others.

    log_weights  [B, G]
    returns      [B, G] bool on the device of the weights, True = masked; `masked_count` of them per row, drawn one
                 after the other without replacement, with probability by weight
    """
    groups = log_weights.shape[1]
    return _mark(heaviest(log_weights, masked_count(groups, ratio), generator), groups)


def block_parts(centers: Tensor, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Cut compact blocks that do not overlap out of each sample, each around a centre that is still free.

    centers  [B, G, >= 3], positions first
    sizes    groups of each block, together fewer than G
    returns  [B, G] int64 on the device of the centres, 0 = in no block, else the number of the block from one
    """
    batch, count = centers.shape[:2]
    shape = len(sizes), count
    noise = drawn(batch, lambda n: torch.rand(n, *shape, generator=generator, device=generator.device))
    noise = noise.to(centers.device)
    parts = torch.zeros(batch, count, dtype=torch.int64, device=centers.device)
    means = centers[..., :3]
    for number, size in enumerate(sizes, start=1):
        seed = noise[:, number - 1].masked_fill(parts > 0, -1).argmax(dim=1, keepdim=True)
        distance = (means - rows(means, seed)).square().sum(dim=-1).masked_fill(parts > 0, torch.inf)
        parts = parts.scatter(1, distance.topk(size, dim=1, largest=False).indices, number)
    return parts


def _mark(indices: Tensor, groups: int) -> Tensor:
    return torch.zeros(len(indices), groups, dtype=torch.bool, device=indices.device).scatter(1, indices, True)

"""Partial shapes: splats of which the half beyond a random plane is gone, as queries of a search."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gsmae.batch import Batch
from gsmae.features import FeatureSpec, normalize
from gsmae.gaussians import Gaussians
from gsmae.importance import log_weights

from . import draws
from .datasets import SplatDataset, to_gaussians
from .streams import has_fields


def plane(uid: str, seed: int) -> Tensor:
    """A unit normal, uniform over the sphere, that depends on the seed and the uid alone: [3] float32."""
    u, v = draws.uniforms(draws.key(seed, "plane", uid), 2).tolist()
    z, angle = 2 * u - 1, 2 * np.pi * v
    r = np.sqrt(1 - z * z)
    return torch.tensor([r * np.cos(angle), r * np.sin(angle), z], dtype=torch.float32)


def cut(gaussians: Gaussians, normal: Tensor, keep: float = 0.5) -> Gaussians:
    """The share `keep` (at least one) of the Gaussians that lie lowest along the normal, in their order."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, expected above 0 and at most 1")
    count = max(1, round(keep * len(gaussians)))
    lowest = (gaussians.means @ normal).argsort(stable=True)[:count]
    return gaussians[lowest.sort().values]


def partial_batches(
    dataset: SplatDataset,
    spec: FeatureSpec,
    *,
    batch_size: int,
    gaussians: int,
    keep: float = 0.5,
    seed: int = 0,
) -> Iterator[Batch]:
    """All objects of a dataset once, by uid, each cut by its own plane and only then normalised.

    The normalisation thereby knows nothing of what was cut away. Rows are the first of the packed order, which is
    random, or drawn where `spec.draw` says so; an object with fewer than `gaussians` begins again.
    """
    has_fields(dataset, spec)
    for first in range(0, len(dataset), batch_size):
        numbers = range(first, min(first + batch_size, len(dataset)))
        points = []
        for i in numbers:
            uid = dataset.uids[i]
            part = cut(to_gaussians(dataset.rows(i), 0), plane(uid, seed), keep)
            chosen = np.arange(gaussians) % len(part)
            if spec.draw == "importance":
                chosen = draws.weighted(draws.key("drawn", uid), log_weights(part).numpy(), gaussians)
            points.append(normalize(part, spec)[0][torch.from_numpy(chosen)])
        labels = torch.from_numpy(dataset.labels[list(numbers)])
        yield Batch(torch.stack(points), labels, tuple(dataset.uids[i] for i in numbers))

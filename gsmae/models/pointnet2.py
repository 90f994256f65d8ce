"""PointNet++ with single-scale grouping (Qi et al., 2017), a supervised network to compare with.

Set abstraction is PyTorch Geometric's PointNetConv; centres and neighbours are ours, so torch-cluster is not needed.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import ops
from ..config import Config
from ..errors import GsmaeError
from ..features import FeatureSpec, expand
from ..gaussians import columns
from ..groups import rows, select
from ..shares import Dropout


class PointNet2Config(Config):
    """Sizes of the network; defaults are those of the PointNet++ paper for 1,024 points."""

    classes: int = Field(default=40, ge=1)
    """number of classes"""
    centers: tuple[int, int] = (512, 128)
    """centres of the two set abstractions; never more than there are points"""
    neighbors: tuple[int, int] = (32, 64)
    """most points of a ball: the nearest so many"""
    radii: tuple[float, float] = (0.2, 0.4)
    """radii of the balls, by the object's radius"""
    share: float = Field(default=1.0, gt=0)
    """of the paper's layer widths, for small machines"""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """in the head"""


class PointNet2(nn.Module):
    """Class scores by two set abstractions, a maximum over all and a three-layer head.

    The positions are means; whatever else `spec.embed` names goes in as features of the points. `spec.group` is not
    used. Raises GsmaeError without PyTorch Geometric.
    """

    def __init__(self, config: PointNet2Config, spec: FeatureSpec, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config, self.spec = config, spec
        self._given = columns([name for name in spec.embed if name != "means"])
        a, b, c, d, e = (max(8, round(config.share * width)) for width in (64, 128, 256, 512, 1024))
        with torch.random.fork_rng(devices=[]):  # PyTorch Geometric draws from the global state only
            if generator is not None:
                torch.manual_seed(generator.initial_seed())
            self.first = _abstraction([len(self._given) + 3, a, a, b])
            self.second = _abstraction([b + 3, b, b, c])
            self.whole = _layers([c + 3, c, d, e], plain_last=False)
            self.head = _layers([e, d, c, config.classes], plain_last=True)
        self.dropout = Dropout(config.dropout)

    def forward(self, points: Tensor) -> Tensor:
        """Class scores [B, classes] of normalised Gaussians [B, N, 14]."""
        points = expand(points, self.spec)
        places = points[..., :3].contiguous()
        features = select(points, self._given) if self._given else None
        for layer, count, most, radius in zip(
            (self.first, self.second), self.config.centers, self.config.neighbors, self.config.radii, strict=True
        ):
            places, features = _abstract(layer, places, features, count, most, radius)
        assert features is not None
        x = self.whole(torch.cat([features, places], dim=-1).flatten(0, 1))
        x = x.unflatten(0, features.shape[:2]).amax(dim=1)
        for linear, norm in zip(self.head.lins, self.head.norms, strict=False):  # the last layer is linear alone
            x = self.dropout(self.head.act(norm(linear(x))))
        return self.head.lins[-1](x)


def balls(places: Tensor, centers: Tensor, most: int, radius: float) -> Tensor:
    """Edges from points to the centres in whose ball they lie, the nearest `most` of each: [2, E] int64.

    places  [B, N, 3], centers [B, G, 3]; rows count through the batch. A centre that is a point has itself.
    """
    batch, n, g = len(places), places.shape[1], centers.shape[1]
    near = ops.nearest(centers, places, min(most, n))
    apart = (rows(places, near) - centers[:, :, None]).square().sum(dim=-1)
    first = torch.arange(batch, device=places.device)[:, None, None]
    source, target = (
        near + first * n,
        torch.arange(batch * g, device=places.device).reshape(batch, g, 1).expand_as(near),
    )
    inside = (apart <= radius * radius).flatten().nonzero()[:, 0]  # how many is the one thing a GPU is waited for
    return torch.stack([source.flatten()[inside], target.flatten()[inside]])


def _abstract(layer: Any, places: Tensor, features: Tensor | None, count: int, most: int, radius: float):
    with torch.no_grad():
        centers = rows(places, ops.farthest_points(places, min(count, places.shape[1]))).contiguous()
        edges = balls(places, centers, most, radius)
    given = None if features is None else features.flatten(0, 1)
    out = layer((given, None), (places.flatten(0, 1), centers.flatten(0, 1)), edges)
    return centers, out.unflatten(0, centers.shape[:2])


def _abstraction(widths: list[int]) -> Any:
    return _library().PointNetConv(_layers(widths, plain_last=False), add_self_loops=False)


def _layers(widths: list[int], **options: Any) -> Any:
    return _library().MLP(widths, **options)


def _library() -> Any:
    try:
        import torch_geometric.nn
    except ImportError:
        raise GsmaeError("this network needs PyTorch Geometric: pip install 'gsmae[baselines]'") from None
    return torch_geometric.nn

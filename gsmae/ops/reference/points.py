"""Point operations in plain torch: farthest points, nearest neighbours, interpolation, Chamfer distance.

A squared distance is the sum of the squared differences in the order of the columns, and every operation rounds: a
product that is fused with its sum (`addcmul`) is rounded once on some devices and twice on others, and where two
distances are as good as equal, each device would choose other points.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 24  # distances held at once by `nearest`, so that its memory does not grow with the batch


@torch.no_grad()
def farthest_points(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Indices of `count` points that cover the set: each the farthest from those before it, in all C columns.

    points   [B, N, C]; every sample is covered on its own, and no point is special (the origin can be chosen)
    count    1..N; a ValueError names both otherwise
    start    index of the first point
    returns  [B, count] int64, no index twice: ties, duplicates among them, go to the lowest index not yet chosen

    Farthest point sampling of PointNet++ (arXiv 1706.02413, section 3.2), in any number of dimensions.
    """
    check_farthest(points, count, start)
    batch, n, width = points.shape
    columns = _working(points).permute(2, 0, 1).contiguous()  # a column at a time keeps the memory accesses in a row
    chosen = torch.empty(batch, count, dtype=torch.int64, device=points.device)
    current = torch.full((batch, 1), start, dtype=torch.int64, device=points.device)
    to_chosen = torch.full((batch, n), torch.inf, dtype=columns.dtype, device=points.device)
    distance, difference = torch.empty_like(to_chosen), torch.empty_like(to_chosen)
    for step in range(count):
        chosen[:, step] = current[:, 0]
        center = columns.gather(2, current.expand(width, batch, 1))
        distance.zero_()
        for column, value in zip(columns, center, strict=True):
            torch.sub(column, value, out=difference)
            distance.add_(difference.square_())
        torch.minimum(to_chosen, distance, out=to_chosen)
        to_chosen.scatter_(1, current, -1.0)  # below every distance: never again
        torch.argmax(to_chosen, dim=1, keepdim=True, out=current)
    return chosen


@torch.no_grad()
def nearest(query: Tensor, points: Tensor, k: int) -> Tensor:
    """Indices of the k points nearest to each query, nearest first; ties go to the lower index.

    query    [B, G, C]
    points   [B, N, C]
    k        1..N; a ValueError names both otherwise
    returns  [B, G, k] int64
    """
    check_nearest(query, points, k)
    (batch, groups, _), n = query.shape, points.shape[1]
    query, points = _working(query), _working(points)
    size = max(1, CHUNK // max(1, groups * n))
    chunks = [
        _smallest(_squared_distances(query[i : i + size], points[i : i + size]), k) for i in range(0, batch, size)
    ]
    return torch.cat(chunks) if chunks else torch.empty(0, groups, k, dtype=torch.int64, device=points.device)


def group(points: Tensor, count: int, k: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Farthest points and the points nearest to each, in the same columns: groups that cover the set.

    points   [B, N, C]
    count    1..N groups, and k 1..N points in each; a ValueError names both otherwise
    start    index of the first centre
    returns  [B, count] int64, as `farthest_points`, and [B, count, k] int64, as `nearest` of those
    """
    check_farthest(points, count, start)
    check_nearest(points, points, k)
    centers = farthest_points(points, count, start)
    return centers, nearest(_rows(points, centers), points, k)


def three_nearest(query: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The three centres nearest to each query and the weights 1 / (d^2 + 1e-8), normalised.

    query    [B, P, 3]
    centers  [B, G, 3]; with fewer than three centres all of them are used
    returns  indices [B, P, k] int64 and weights [B, P, k] that sum to one, k = min(3, G)

    PointNet++ (arXiv 1706.02413, equation 2).
    """
    return weighted(query, centers, nearest(query, centers, min(3, centers.shape[1])))


def interpolate(query: Tensor, centers: Tensor, features: Tensor) -> Tensor:
    """Features at the queries, carried from the three nearest centres (`three_nearest`).

    query     [B, P, 3]
    centers   [B, G, 3]
    features  [B, G, D]
    returns   [B, P, D]; differentiable in all three
    """
    return mixed(features, *three_nearest(query, centers))


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Chamfer distance: mean squared distance to the nearest of the other set, both ways, averaged over the sets.

    a        [R, K, 3]
    b        [R, M, 3]
    returns  scalar, differentiable in both
    """
    to_b, to_a = chamfer_matches(a, b)
    return (a - _rows(b, to_b)).square().sum(-1).mean() + (b - _rows(a, to_a)).square().sum(-1).mean()


@torch.no_grad()
def chamfer_matches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Which point of the other set is nearest; ties go to the lower index.

    a        [R, K, 3]
    b        [R, M, 3]
    returns  [R, K] int64 into b and [R, M] int64 into a
    """
    distance = _squared_distances(_working(a), _working(b))
    return distance.argmin(dim=2), distance.argmin(dim=1)


def weighted(query: Tensor, centers: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The indices [B, P, k] and the weights of those centres, as `three_nearest` gives them."""
    found = _rows(centers, indices)
    closeness = 1 / ((query[:, :, None] - found).square().sum(dim=-1) + 1e-8)
    return indices, closeness / closeness.sum(dim=-1, keepdim=True)


def mixed(features: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Sums of the rows `indices` [B, P, k] of the features [B, G, D] by weight [B, P, k]: [B, P, D]."""
    rows = weights.new_zeros(*weights.shape[:2], features.shape[1]).scatter(2, indices, weights)
    return rows.to(features.dtype) @ features  # a matrix product both ways: no gathered copy, no atomic additions


def check_farthest(points: Tensor, count: int, start: int) -> None:
    """Raises ValueError for what `farthest_points` refuses."""
    n = points.shape[1]
    if not 1 <= count <= n:
        raise ValueError(f"farthest_points: count is {count}, but there are {n} points to choose from")
    if not 0 <= start < n:
        raise ValueError(f"farthest_points: start is {start}, but there are {n} points")


def check_nearest(query: Tensor, points: Tensor, k: int) -> None:
    """Raises ValueError for what `nearest` refuses."""
    n = points.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"nearest: k is {k}, but there are {n} points to choose from")
    if query.shape[0] != points.shape[0] or query.shape[2] != points.shape[2]:
        raise ValueError(f"nearest: queries {list(query.shape)} and points {list(points.shape)} do not fit together")
    if points.shape[2] == 0:
        raise ValueError("points need at least one column")


def _working(points: Tensor) -> Tensor:
    """The same points in a type that distances can be compared in."""
    return points if points.dtype == torch.float64 else points.float()


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[R, K, C] and [R, M, C] -> [R, K, M], from differences: an expanded square loses the small distances."""
    distance = difference = None
    for x, y in zip(a.unbind(-1), b.unbind(-1), strict=True):
        if distance is None or difference is None:
            difference = x[:, :, None] - y[:, None, :]
            distance = difference * difference
        else:
            torch.sub(x[:, :, None], y[:, None, :], out=difference)
            distance.add_(difference.square_())
    if distance is None:
        raise ValueError("points need at least one column")
    return distance


def _smallest(distance: Tensor, k: int) -> Tensor:
    """Indices of the k smallest of the last axis, smallest first, ties to the lower index."""
    if distance.dtype != torch.float32:
        return distance.sort(dim=-1, stable=True).indices[..., :k]
    # topk breaks ties as it likes; the bits of a float that is not negative order as it does, so that a key of the
    # bits and the index has no ties
    index = torch.arange(distance.shape[-1], device=distance.device)
    key = (distance.view(torch.int32).to(torch.int64) << 32) | index
    return key.topk(k, dim=-1, largest=False, sorted=True).values & 0xFFFFFFFF


def _rows(points: Tensor, indices: Tensor) -> Tensor:
    """[B, N, C] and [B, ...] int64 -> [B, ..., C]."""
    flat = indices.flatten(1)
    return points.gather(1, flat[..., None].expand(-1, -1, points.shape[-1])).unflatten(1, indices.shape[1:])

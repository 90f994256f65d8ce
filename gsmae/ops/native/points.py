"""Farthest points and neighbours on the CPU by csrc/points.cpp; the promises are those of the reference."""

import torch
from torch import Tensor

from ..reference.points import check_farthest, check_nearest, mixed, weighted
from .library import library, threads


@torch.no_grad()
def farthest_points(points: Tensor, count: int, start: int = 0) -> Tensor:
    """See gsmae.ops.reference.points.farthest_points; the same indices."""
    check_farthest(points, count, start)
    chosen = torch.empty(len(points), count, dtype=torch.int64)
    _cover(points, start, chosen, None)
    return chosen


@torch.no_grad()
def nearest(query: Tensor, points: Tensor, k: int) -> Tensor:
    """See gsmae.ops.reference.points.nearest; the same indices."""
    check_nearest(query, points, k)
    query, points = query.detach().contiguous(), points.detach().contiguous()
    (batch, count, width), queries = points.shape, query.shape[1]
    found = torch.empty(batch, queries, k, dtype=torch.int64)
    call = library().kernel("gsmae_points_nearest", "lllippipi", "i")
    _check(call(batch, queries, count, width, query.data_ptr(), points.data_ptr(), k, found.data_ptr(), threads()))
    return found


@torch.no_grad()
def group(points: Tensor, count: int, k: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """See gsmae.ops.reference.points.group; the same indices, from distances that are computed once."""
    check_farthest(points, count, start)
    check_nearest(points, points, k)
    centers = torch.empty(len(points), count, dtype=torch.int64)
    neighbours = torch.empty(len(points), count, k, dtype=torch.int64)
    _cover(points, start, centers, neighbours)
    return centers, neighbours


def three_nearest(query: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """See gsmae.ops.reference.points.three_nearest; the same indices, and so the same weights and gradients."""
    return weighted(query, centers, nearest(query, centers, min(3, centers.shape[1])))


def interpolate(query: Tensor, centers: Tensor, features: Tensor) -> Tensor:
    """See gsmae.ops.reference.points.interpolate; the same values and gradients."""
    return mixed(features, *three_nearest(query, centers))


def _cover(points: Tensor, start: int, centers: Tensor, neighbours: Tensor | None) -> None:
    points = points.detach().contiguous()
    batch, count, width = points.shape
    call = library().kernel("gsmae_points_cover", "llipllippi", "i")
    _check(
        call(
            batch,
            count,
            width,
            points.data_ptr(),
            centers.shape[1],
            start,
            0 if neighbours is None else neighbours.shape[2],
            centers.data_ptr(),
            None if neighbours is None else neighbours.data_ptr(),
            threads(),
        )
    )


def _check(status: int) -> None:
    if status != 0:
        raise MemoryError("gsmae.ops: out of memory among points; take a smaller batch")

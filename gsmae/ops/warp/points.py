"""Farthest points and neighbours of a whole batch in two launches; the promises are those of the reference.

`group` is two launches and not one: on a GPU farthest point sampling is a chain of `count` short steps, which a block
for each cloud takes without ever asking the host, while neighbours have no order among them, so that the whole GPU
finds them at once. Distances computed twice cost less than neighbours that wait for the chain. Nothing here waits for
the GPU, and all of it can be captured in a CUDA graph, after a first call that loads the kernels.

Points that are not finite are treated as csrc/points.cpp treats them: no distance to them is a number or finite, so
they are the farthest, lowest index first, and no index comes twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import points as reference
from ..reference.points import check_farthest, check_nearest, mixed, weighted
from . import runtime

MOST = 1024  # neighbours are picked one after the other; where more are wanted, a sort is faster
ROOM = 1 << 25  # distances that `nearest` holds at once, 128 MiB, whatever the batch


@torch.no_grad()
def farthest_points(points: Tensor, count: int, start: int = 0) -> Tensor:
    """See gsmae.ops.reference.points.farthest_points; the same indices."""
    check_farthest(points, count, start)
    rows = points.detach().contiguous()
    return _cover(rows, rows.mT.contiguous(), count, start)


@torch.no_grad()
def nearest(query: Tensor, points: Tensor, k: int) -> Tensor:
    """See gsmae.ops.reference.points.nearest; the same indices. By the reference where k is more than 1024."""
    check_nearest(query, points, k)
    if k > MOST:
        return reference.nearest(query, points, k)
    (batch, queries, width), n = query.shape, points.shape[1]
    rows = query.detach().contiguous().view(-1, width)
    picks = torch.empty(0, dtype=torch.int64, device=points.device)
    return _select(points.detach().mT.contiguous(), rows, picks, batch, queries, n, k)


@torch.no_grad()
def group(points: Tensor, count: int, k: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """See gsmae.ops.reference.points.group; the same indices. Three launches, with the one that turns the columns."""
    check_farthest(points, count, start)
    check_nearest(points, points, k)
    (batch, n, width), rows = points.shape, points.detach().contiguous()
    columns = rows.mT.contiguous()
    centers = _cover(rows, columns, count, start)
    if k > MOST:
        return centers, reference.nearest(rows.gather(1, centers[..., None].expand(-1, -1, width)), rows, k)
    return centers, _select(columns, rows.view(-1, width), centers.view(-1), batch, count, n, k)


def three_nearest(query: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """See gsmae.ops.reference.points.three_nearest; the same indices, and so the same weights and gradients."""
    return weighted(query, centers, nearest(query, centers, min(3, centers.shape[1])))


def interpolate(query: Tensor, centers: Tensor, features: Tensor) -> Tensor:
    """See gsmae.ops.reference.points.interpolate; the same values and gradients."""
    return mixed(features, *three_nearest(query, centers))


def _cover(rows: Tensor, columns: Tensor, count: int, start: int) -> Tensor:
    """Farthest points of rows [B, N, C], which are columns [B, C, N]: [B, count]."""
    (batch, n, width), device = rows.shape, rows.device
    chosen = torch.empty(batch, count, dtype=torch.int64, device=device)
    gaps = torch.empty(batch, n, dtype=torch.float32, device=device)
    threads = batch * (1 if device.type == "cpu" else runtime.BLOCK)
    with runtime.on(device) as wp:
        runtime.launch(
            wp, runtime.kernels("points").cover, threads, device, columns, rows.view(-1, width) if width else gaps, n,
            width, count, start, gaps, chosen,
        )  # fmt: skip
    return chosen


def _select(columns: Tensor, rows: Tensor, picks: Tensor, batch: int, queries: int, n: int, k: int) -> Tensor:
    """The k nearest of columns [B, C, N] to each of the rows, or to those of the rows that are picked: [B, queries, k].

    A warp holds the distances of one query at a time, and as many warps run as there is room for.
    """
    device, total = columns.device, batch * queries
    found = torch.empty(batch, queries, k, dtype=torch.int64, device=device)
    room = torch.empty(min(total, max(ROOM // n, 1)), n, dtype=torch.int32, device=device)
    with runtime.on(device) as wp:
        runtime.launch(
            wp, runtime.kernels("points").select, len(room) * (1 if device.type == "cpu" else 32), device, columns,
            rows, picks, n, columns.shape[1], total, queries, k, room, found.view(-1, k),
        )  # fmt: skip
    return found

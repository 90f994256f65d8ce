"""Polygons -> triangles, without adding vertices; correct for concave polygons, which fans are not."""

from __future__ import annotations

import heapq

import numpy as np

from gsmae.errors import GsmaeError

MAX_WORK = 5e7  # corners squared of all concave polygons: one of 7,000 corners takes some seconds


@np.errstate(over="ignore", invalid="ignore")  # whether positions are finite is checked when the mesh is complete
def triangulate(points: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles that cover each polygon once, in the polygons' order and winding.

    points   [M, 3] the corners' positions, polygon after polygon
    counts   [P] corners of each polygon; one of fewer than 3 gives no triangle
    returns  corners [T, 3] int64, rows of `points`; polygon [T] int64, which polygon each triangle belongs to
    Raises GsmaeError for polygons whose corners would take minutes; who knows the file adds its name.
    """
    starts = np.cumsum(counts) - counts
    corners, owners = [], []
    three = np.flatnonzero(counts == 3)
    corners.append(starts[three, None] + np.arange(3))
    owners.append(three)
    four = np.flatnonzero(counts == 4)
    if len(four):
        first, second = _split_quads(points[starts[four, None] + np.arange(4)])
        corners += [starts[four, None] + first, starts[four, None] + second]
        owners += [four, four]
    work = 0.0
    for polygon in np.flatnonzero(counts > 4):
        start, count = int(starts[polygon]), int(counts[polygon])
        flat = _flattened(points[start : start + count])
        work += 0 if flat is None else count**2
        if work > MAX_WORK:
            raise GsmaeError(f"has concave polygons of too many corners, one of {count}")
        triangles = start + (fan(count) if flat is None else _clip_ears(flat))
        corners.append(triangles)
        owners.append(np.full(len(triangles), polygon))
    corner, owner = np.concatenate(corners), np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return corner[order], owner[order]


def strip(count: int) -> np.ndarray:
    """The triangles [count - 2, 3] of a strip of `count` corners, all wound as the first."""
    i = np.arange(max(count - 2, 0))
    return np.stack([i, i + 1 + i % 2, i + 2 - i % 2], axis=1)


def fan(count: int) -> np.ndarray:
    """The triangles [count - 2, 3] of a fan of `count` corners about the first."""
    i = np.arange(max(count - 2, 0))
    return np.stack([np.zeros_like(i), i + 1, i + 2], axis=1)


def _split_quads(quads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two triangles of quads [Q, 4, 3]: cut from corner 0, or from 1 where that cut would leave the quad."""
    normal = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    along = [np.cross(quads[:, i + 1] - quads[:, i], quads[:, (i + 2) % 4] - quads[:, i + 1]) for i in (0, 1, 2)]
    at_1 = (along[0] * normal).sum(1)
    at_3 = (np.cross(quads[:, 3] - quads[:, 2], quads[:, 0] - quads[:, 3]) * normal).sum(1)
    concave = ((at_1 < 0) | (at_3 < 0))[:, None]
    return np.where(concave, [1, 2, 3], [0, 1, 2]), np.where(concave, [1, 3, 0], [0, 2, 3])


def _flattened(points: np.ndarray) -> np.ndarray | None:
    """A polygon [n, 3] in the plane that it is seen largest in, [n, 2], counter-clockwise; None where a fan will do."""
    following = np.roll(points, -1, axis=0)
    normal = np.cross(points - points[0], following - points[0]).sum(0)
    drop = int(np.abs(normal).argmax())
    flat = np.delete(points, drop, axis=1) * (1 if (normal[drop] > 0) == (drop != 1) else -1, 1)
    sides = _cross(flat, np.roll(flat, -1, axis=0), np.roll(flat, -2, axis=0))
    return None if not np.isfinite(sides).all() or (sides >= 0).all() else flat


def _clip_ears(flat: np.ndarray) -> np.ndarray:
    """Triangles [n - 2, 3] of one polygon [n, 2] by ear clipping.

    Always the ear with the lowest corner is cut. A corner that is none is looked at again only when a neighbour of it
    or the corner that lay in its way is gone.
    """
    count = len(flat)
    alive = np.ones(count, dtype=bool)
    before, after = np.roll(np.arange(count), 1), np.roll(np.arange(count), -1)
    waiting: dict[int, list[int]] = {}  # corner -> those whose ear it lies in
    queue, queued, out, left = list(range(count)), set(range(count)), [], count
    while left > 3 and queue:
        b = heapq.heappop(queue)
        queued.discard(b)
        if not alive[b]:
            continue
        a, c = int(before[b]), int(after[b])
        if _cross(flat[a], flat[b], flat[c]) <= 0:
            continue
        blocker = _inside(flat, alive, a, b, c)
        if blocker >= 0:
            waiting.setdefault(blocker, []).append(b)
            continue
        out.append((a, b, c))
        alive[b], after[a], before[c], left = False, c, a, left - 1
        for corner in (a, c, *waiting.pop(b, ())):
            if corner not in queued:
                queued.add(corner)
                heapq.heappush(queue, corner)
    rest = np.flatnonzero(alive).tolist()  # more than three where it crosses itself: then a fan like everybody's
    return np.array([*out, *((rest[0], rest[i], rest[i + 1]) for i in range(1, left - 1))])


def _inside(flat: np.ndarray, alive: np.ndarray, a: int, b: int, c: int) -> int:
    """The first corner that is left and lies in the triangle abc, -1 if none does.

    A corner that repeats one of the ear's own does not lie inside it (polygons with bridges to their holes).
    """
    box = flat[[a, b, c]]
    low, high = box.min(axis=0), box.max(axis=0)
    near = np.flatnonzero(alive & (flat >= low).all(axis=1) & (flat <= high).all(axis=1))
    near = near[(near != a) & (near != b) & (near != c)]
    others = flat[near]
    inside = (
        (_cross(flat[a], flat[b], others) >= 0)
        & (_cross(flat[b], flat[c], others) >= 0)
        & (_cross(flat[c], flat[a], others) >= 0)
    )
    found = near[inside & ~(others[:, None] == box).all(-1).any(-1)]
    return int(found[0]) if len(found) else -1


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Twice the signed area of triangles abc in the plane."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

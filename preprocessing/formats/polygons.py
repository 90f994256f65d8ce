"""Polygons -> triangles, without adding vertices; correct for concave polygons, which fans are not."""

from __future__ import annotations

import numpy as np


@np.errstate(over="ignore", invalid="ignore")  # whether positions are finite is checked when the mesh is complete
def triangulate(points: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles that cover each polygon once, in the polygons' order and winding.

    points   [M, 3] the corners' positions, polygon after polygon
    counts   [P] corners of each polygon; one of fewer than 3 gives no triangle
    returns  corners [T, 3] int64, rows of `points`; polygon [T] int64, which polygon each triangle belongs to
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
    for polygon in np.flatnonzero(counts > 4):
        start, count = int(starts[polygon]), int(counts[polygon])
        triangles = start + _clip_ears(points[start : start + count])
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


def _clip_ears(points: np.ndarray) -> np.ndarray:
    """Triangles [n - 2, 3] of one polygon [n, 3], by ear clipping in the plane that it is seen largest in."""
    count = len(points)
    fan = np.array([(0, i, i + 1) for i in range(1, count - 1)])
    following = np.roll(points, -1, axis=0)
    normal = np.cross(points - points[0], following - points[0]).sum(0)
    drop = int(np.abs(normal).argmax())
    flat = np.delete(points, drop, axis=1) * (1 if (normal[drop] > 0) == (drop != 1) else -1, 1)
    sides = _cross(flat, np.roll(flat, -1, axis=0), np.roll(flat, -2, axis=0))
    if not np.isfinite(sides).all() or (sides >= 0).all():
        return fan
    left, out = list(range(count)), []
    while len(left) > 3:
        for i in range(len(left)):
            a, b, c = left[i - 1], left[i], left[(i + 1) % len(left)]
            if _cross(flat[a], flat[b], flat[c]) <= 0:
                continue
            others = flat[[j for j in left if j not in (a, b, c)]]
            inside = (
                (_cross(flat[a], flat[b], others) >= 0)
                & (_cross(flat[b], flat[c], others) >= 0)
                & (_cross(flat[c], flat[a], others) >= 0)
            )
            # a corner that repeats one of the ear's own does not lie inside it (polygons with bridges to their holes)
            own = (others[:, None] == flat[[a, b, c]]).all(-1).any(-1)
            if not (inside & ~own).any():
                out.append((a, b, c))
                del left[i]
                break
        else:  # crosses itself: no ear is left, so the rest is a fan like everybody's
            return np.array([*out, *((left[0], left[i], left[i + 1]) for i in range(1, len(left) - 1))])
    return np.array([*out, tuple(left)])


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Twice the signed area of triangles abc in the plane."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

"""Where optimisation puts the centres of Gaussians, against points drawn uniformly from the mesh's surface.

The first claim of ShapeSplat (arXiv 2408.10906) is that the two are distributed differently, although a fit starts from
uniform points. Here, for every object, three sets of M points each are compared: M centres drawn without replacement, M
surface samples, and M other surface samples as the reference. What the surface samples score against the reference is
what chance alone gives; the centres differ where they score otherwise.

Lengths are in radii of the object: from the middle of its surface samples' bounding box to the farthest of them. A
radius for coverage is in spacings: mean distances from a surface sample to its nearest neighbour in that object.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from gsmae.errors import InputError
from gsmae.progress import bar

from . import draws
from .manifest import Build
from .objects import Objects
from .statistics import spread_of

log = logging.getLogger(__name__)

REACH = np.linspace(0, 4, 81)  # radii of the curves of coverage, in spacings
CROWDING = np.linspace(0, 4, 41)  # edges of the histograms of distances to the nearest neighbour, in spacings
FEWEST = 8  # points a set


@dataclass(frozen=True)
class Scores:
    """What one set of M points scores.

    spacing       mean distance to the nearest other point of the set
    unevenness    standard deviation of that distance over its mean: 0 for a lattice, 0.52 for independent uniform
                  points on a plane, more where they cluster (Clark and Evans 1954)
    to_surface    mean distance to the nearest reference point
    from_surface  mean distance of a reference point to the nearest of the set: large where the surface is left bare
    chamfer       half of the sum of these two
    coverage      share of the reference points with one of the set within a radius
    height        mean distance to the tangent plane of the nearest reference point: how far off the surface
    """

    spacing: float
    unevenness: float
    to_surface: float
    from_surface: float
    chamfer: float
    coverage: float
    height: float


SCORES = tuple(Scores.__dataclass_fields__)


@dataclass(frozen=True)
class Comparison:
    """One object: M points a set of its Gaussians. `reach` is the coverage at each radius of REACH [2, 81], `crowding`
    the share of points per bin of CROWDING [2, 40], centres first."""

    uid: str
    category: str
    points: int
    gaussians: int
    centres: Scores
    surface: Scores
    reach: np.ndarray
    crowding: np.ndarray


@dataclass(frozen=True)
class Centroids:
    """What `centroids` found.

    radius   of the coverage, in spacings
    example  uid, centres [M, 3] and surface samples [M, 3] of the object whose Chamfer ratio is in the middle
    without  objects without, or with too few, surface samples, or that could not be read
    """

    path: str
    radius: float
    objects: tuple[Comparison, ...]
    example: tuple[str, np.ndarray, np.ndarray]
    without: int


def centroids(
    path: str | Path | Build,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = 200,
    count: int = 2048,
    radius: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Centroids | None:
    """Compare centres and surface, object by object; None where no object has enough surface samples.

    limit   objects at most, evenly spread over the classes; None: all
    count   points a set, but no more than an object has Gaussians, or half its surface samples
    radius  of the coverage, in spacings
    """
    objects = Objects(path, split=split, classes=classes, limit=limit)
    found: list[Comparison] = []
    places: list[int] = []

    def sets(i: int) -> tuple[Comparison, np.ndarray, np.ndarray] | None:
        entry, surface = objects.entries[i], objects.surface(i)
        if surface is None or len(surface[0]) < 2 * FEWEST:
            return None
        means = objects.gaussians(i).means.numpy()
        return (
            compare(means, *surface, uid=entry.uid, category=entry.category, seed=seed, count=count, radius=radius)
            if len(means) >= FEWEST
            else None
        )

    for i in bar("centroids", "object", range(len(objects)), disable=not progress):
        try:
            made = sets(i)
        except InputError as error:
            log.warning("not compared: %s", error)
            continue
        if made is not None:
            found.append(made[0])
            places.append(i)
    if not found:
        return None
    ratios = [c.centres.chamfer / max(c.surface.chamfer, 1e-12) for c in found]
    middle = int(np.argsort(ratios)[len(found) // 2])
    again = sets(places[middle])  # a second look is cheaper than holding the points of all
    assert again is not None
    return Centroids(
        str(objects.path), radius, tuple(found), (found[middle].uid, *again[1:]), len(objects) - len(found)
    )


def compare(
    means: np.ndarray,
    points: np.ndarray,
    normals: np.ndarray,
    *,
    uid: str = "",
    category: str = "",
    seed: int = 0,
    count: int = 2048,
    radius: float = 1.0,
) -> tuple[Comparison, np.ndarray, np.ndarray]:
    """Compare centres [N, 3] with surface samples [P, 3] of one object; also returns the M centres and the M surface
    samples that were drawn, which depend on (seed, uid) alone. ValueError for fewer than FEWEST points a set."""
    m = min(count, len(means), len(points) // 2)
    if m < FEWEST:
        raise ValueError(f"{len(means)} centres and {len(points)} surface samples are too few to compare")
    middle = (points.min(axis=0).astype(np.float64) + points.max(axis=0)) / 2
    unit = float(np.linalg.norm(points - middle, axis=1).max()) or 1.0
    order = _sorted(points)[draws.permutation(len(points), draws.key("surface", seed, uid))]
    chosen = _sorted(means)[draws.permutation(len(means), draws.key("centres", seed, uid))[:m]]
    drawn = means[chosen], points[order[:m]], points[order[m : 2 * m]]
    centres, surface, reference = ((x - middle) / unit for x in drawn)
    planes = reference, normals[order[m : 2 * m]].astype(np.float64)
    spacing = max(float(_to_neighbour(surface).mean()), 1e-12)
    by_chance = _scored(surface, planes, spacing, radius)
    found = _scored(centres, planes, spacing, radius)
    reach, crowding = (np.stack([a, b]) for a, b in zip(found[1:], by_chance[1:], strict=True))
    return Comparison(uid, category, m, len(means), found[0], by_chance[0], reach, crowding), centres, surface


def _scored(
    points: np.ndarray, planes: tuple[np.ndarray, np.ndarray], spacing: float, radius: float
) -> tuple[Scores, np.ndarray, np.ndarray]:
    """Scores of one set, its coverage at REACH and its histogram over CROWDING."""
    reference, normals = planes
    own = _to_neighbour(points)
    to_surface, nearest = KDTree(reference).query(points)
    from_surface = KDTree(points).query(reference)[0]
    height = np.abs(((points - reference[nearest]) * normals[nearest]).sum(axis=1))
    scores = Scores(
        spacing=float(own.mean()),
        unevenness=float(own.std() / max(own.mean(), 1e-12)),
        to_surface=float(to_surface.mean()),
        from_surface=float(from_surface.mean()),
        chamfer=float(to_surface.mean() + from_surface.mean()) / 2,
        coverage=float((from_surface <= radius * spacing).mean()),
        height=float(height.mean()),
    )
    reach = (from_surface[:, None] <= REACH * spacing).mean(axis=0)
    return scores, reach, np.histogram(own / spacing, CROWDING)[0] / len(points)


def _sorted(points: np.ndarray) -> np.ndarray:
    """The order by coordinates, so that a build and its shuffled pack draw the same points."""
    return np.lexsort(points.T)


def _to_neighbour(points: np.ndarray) -> np.ndarray:
    """Distance from each point to the nearest other one."""
    return KDTree(points).query(points, k=2)[0][:, 1]


def summary(found: Centroids) -> dict[str, Any]:
    """For each score its `Spread` over the objects (of the centres, the surface samples and their ratio), and on how
    many of them the centres score higher."""
    scores: dict[str, dict[str, Any]] = {}
    for name in SCORES:
        centres, surface = (
            np.array([getattr(getattr(c, k), name) for c in found.objects]) for k in ("centres", "surface")
        )
        ratio = centres[surface > 0] / surface[surface > 0]
        spreads = {"centres": spread_of(centres), "surface": spread_of(surface), "ratio": spread_of(ratio)}
        scores[name] = {**spreads, "higher": int((centres > surface).sum())}
    head = {"objects": len(found.objects), "without": found.without, "radius": found.radius}
    return {**head, "points": spread_of([c.points for c in found.objects]), "scores": scores}


def as_table(found: Centroids) -> list[dict[str, Any]]:
    """One flat row for each object."""
    table = []
    for c in found.objects:
        row: dict[str, Any] = {"uid": c.uid, "category": c.category, "gaussians": c.gaussians, "points": c.points}
        for kind, scores in (("centres", c.centres), ("surface", c.surface)):
            row |= {f"{kind}_{name}": getattr(scores, name) for name in SCORES}
        table.append(row)
    return table


def as_text(found: Centroids) -> list[str]:
    """The summary for people."""
    said, n = summary(found), len(found.objects)
    lines = [
        f"centres of Gaussians against uniform surface samples: {n} objects, {said['points'].median:,.0f} points each; "
        "median over objects (5 % - 95 %), lengths in object radii:"
    ]
    for name in SCORES:
        score = said["scores"][name]
        c, s, r = (
            f"{x.median:.3g} ({x.percentiles[5]:.3g} - {x.percentiles[95]:.3g})"
            for x in (score["centres"], score["surface"], score["ratio"])
        )
        lines.append(f"  {name:<12}  centres {c}; surface {s}; ratio {r}, higher on {score['higher']} of {n}")
    return lines

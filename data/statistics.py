"""Numbers about many splats in one pass: per class how many, how good, how opaque, how large, how long.

Values of single Gaussians are pooled over a class. Their mean and standard deviation are exact; their percentiles come
from histograms, so that memory does not grow with the data, and are right within 0.001 (opacity) or 0.2 % (the rest).
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gsmae.errors import InputError
from gsmae.gaussians import Gaussians
from gsmae.progress import bar

from .manifest import Build
from .objects import Objects

log = logging.getLogger(__name__)

PERCENTS: tuple[int, ...] = (1, 5, 25, 50, 75, 95, 99)
OBJECT_MEASURES = ("gaussians", "psnr")  # one value an object
MEASURES = (*OBJECT_MEASURES, "opacity", "scale", "anisotropy")
ALL = "(all)"  # the row of all classes together
RATIO = 1.002  # of neighbouring edges on a logarithmic axis
EDGES = {
    "opacity": np.linspace(0, 1, 1001),
    "scale": np.exp(np.arange(math.log(1e-9), math.log(1e3), math.log(RATIO))),
    "anisotropy": np.exp(np.arange(0, math.log(1e9), math.log(RATIO))),
}


@dataclass(frozen=True)
class Spread:
    """How the values of one measure are spread; `percentiles` maps a percent to a value. All 0 without any value."""

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    percentiles: dict[int, float]

    @property
    def median(self) -> float:
        """The value in the middle."""
        return self.percentiles[50]


class Histogram:
    """Values added array by array: count, mean, variance and range exactly, percentiles to within a bin of `edges`.

    Values beyond the edges count in the bins at the ends.
    """

    def __init__(self, edges: np.ndarray):
        self.edges, self.bins = edges, np.zeros(len(edges) - 1, dtype=np.int64)
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Count values [n] (Chan et al. 1979 for the variance)."""
        v = np.asarray(values, dtype=np.float64)
        if not len(v):
            return
        mean = float(v.mean())
        self._join(len(v), mean, float(np.square(v - mean).sum()), float(v.min()), float(v.max()))
        place = np.searchsorted(self.edges, v, side="right") - 1
        self.bins += np.bincount(place.clip(0, len(self.bins) - 1), minlength=len(self.bins))

    def merge(self, other: Histogram) -> None:
        """Count what another histogram with the same edges has counted."""
        if other.count:
            self._join(other.count, other.mean, other.squares, other.minimum, other.maximum)
            self.bins += other.bins

    def spread(self) -> Spread:
        """The spread of what was counted."""
        if not self.count:
            return Spread(0, 0.0, 0.0, 0.0, 0.0, dict.fromkeys(PERCENTS, 0.0))
        below = np.concatenate([[0], np.cumsum(self.bins)])
        ranks = np.array(PERCENTS) / 100 * self.count
        at = np.interp(ranks, below, self.edges).clip(self.minimum, self.maximum)
        std = math.sqrt(max(self.squares, 0.0) / self.count)
        percentiles = dict(zip(PERCENTS, at.tolist(), strict=True))
        return Spread(self.count, self.mean, std, self.minimum, self.maximum, percentiles)

    def _join(self, count: int, mean: float, squares: float, low: float, high: float) -> None:
        total, apart = self.count + count, mean - self.mean
        self.squares += squares + apart * apart * self.count * count / total
        self.mean += apart * count / total
        self.count, self.minimum, self.maximum = total, min(self.minimum, low), max(self.maximum, high)


@dataclass(frozen=True)
class ClassStatistics:
    """One class, or all. `splits` counts objects ("" = no split); `measures` has a `Spread` for each of MEASURES."""

    objects: int
    gaussians: int
    splits: dict[str, int]
    measures: dict[str, Spread]


@dataclass(frozen=True)
class Statistics:
    """What `statistics` counted.

    kind     "splat", "build", "pack" or "collection"
    classes  class -> its numbers, sorted; the last row, ALL, is of all of them
    failed   objects that a build gave up on
    broken   uid -> why, of objects that could not be read and are not counted
    """

    path: str
    kind: str
    classes: dict[str, ClassStatistics]
    failed: int = 0
    broken: dict[str, str] = field(default_factory=dict)


@dataclass
class _Tally:
    splits: dict[str, int] = field(default_factory=dict)
    gaussians: list[int] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    pooled: dict[str, Histogram] = field(default_factory=lambda: {n: Histogram(e) for n, e in EDGES.items()})

    def merge(self, other: _Tally) -> None:
        for split, count in other.splits.items():
            self.splits[split] = self.splits.get(split, 0) + count
        self.gaussians += other.gaussians
        self.psnr += other.psnr
        for name, histogram in other.pooled.items():
            self.pooled[name].merge(histogram)

    def done(self) -> ClassStatistics:
        measures = {"gaussians": spread_of(self.gaussians), "psnr": spread_of(self.psnr)}
        measures |= {name: histogram.spread() for name, histogram in self.pooled.items()}
        return ClassStatistics(len(self.gaussians), sum(self.gaussians), dict(sorted(self.splits.items())), measures)


def statistics(
    path: str | Path | Build,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Statistics:
    """Count the objects of a source (see `Objects`), class by class, holding one at a time.

    gaussians   number of an object
    psnr        of an object on its test views, in dB, where a build said it
    opacity     0..1
    scale       geometric mean of the three standard deviations, in the splat's units (objects fill the unit sphere)
    anisotropy  longest over shortest standard deviation

    Raises InputError as `Objects` does; broken objects are left out and named.
    """
    objects = Objects(path, split=split, classes=classes, limit=limit)
    tallies: dict[str, _Tally] = {}
    broken: dict[str, str] = {}
    for i, entry in enumerate(bar("stats", "object", objects, disable=not progress)):
        try:
            values = measured(objects.gaussians(i))
        except InputError as error:
            if objects.kind == "splat":
                raise
            broken[entry.uid] = str(error)
            log.warning("left out: %s", error)
            continue
        tally = tallies.setdefault(entry.category or entry.uid, _Tally())
        tally.splits[entry.split] = tally.splits.get(entry.split, 0) + 1
        tally.gaussians.append(len(values["opacity"]))
        if entry.psnr is not None:
            tally.psnr.append(entry.psnr)
        for name, histogram in tally.pooled.items():
            histogram.add(values[name])
    together = _Tally()
    for tally in tallies.values():
        together.merge(tally)
    rows = {name: tallies[name].done() for name in sorted(tallies)} | {ALL: together.done()}
    return Statistics(str(objects.path), objects.kind, rows, objects.failed, broken)


def measured(gaussians: Gaussians) -> dict[str, np.ndarray]:
    """Opacity, scale and anisotropy of every Gaussian, as `statistics` defines them: [N] float64 each."""
    logs = gaussians.log_scales.double()
    longest = logs.amax(dim=1) - logs.amin(dim=1)
    values = {"opacity": gaussians.opacities, "scale": logs.mean(dim=1).exp(), "anisotropy": longest.exp()}
    return {name: v.double().numpy() for name, v in values.items()}


def spread_of(values: Sequence[float] | np.ndarray) -> Spread:
    """The exact spread of a few values."""
    v = np.asarray(values, dtype=np.float64)
    if not len(v):
        return Spread(0, 0.0, 0.0, 0.0, 0.0, dict.fromkeys(PERCENTS, 0.0))
    percentiles = dict(zip(PERCENTS, np.percentile(v, PERCENTS).tolist(), strict=True))
    return Spread(len(v), float(v.mean()), float(v.std()), float(v.min()), float(v.max()), percentiles)


def rows(found: Statistics) -> Iterator[dict[str, Any]]:
    """One flat row for each class and measure that has values, as for a CSV."""
    for name, numbers in found.classes.items():
        for measure, s in numbers.measures.items():
            if s.count:
                row = {"class": name, "objects": numbers.objects, "measure": measure, "count": s.count}
                row |= {"mean": s.mean, "std": s.std, "min": s.minimum}
                yield row | {f"p{k}": v for k, v in s.percentiles.items()} | {"max": s.maximum}


def as_csv(table: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as CSV; numbers in six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def as_text(found: Statistics) -> list[str]:
    """The table for people: mean ± std over objects, median (5 % to 95 %) over Gaussians."""
    heads = ("class", "objects", "Gaussians", "PSNR (dB)", "opacity", "scale x 1000", "anisotropy")
    table: list[tuple[str, ...]] = [heads]
    for name, c in found.classes.items():
        g, p = c.measures["gaussians"], c.measures["psnr"]
        cells = [
            name,
            f"{c.objects:,}",
            f"{g.mean:,.0f} ± {g.std:,.0f}",
            f"{p.mean:.2f} ± {p.std:.2f}" if p.count else "-",
        ]
        for measure, factor in (("opacity", 1), ("scale", 1000), ("anisotropy", 1)):
            s = c.measures[measure]
            low, middle, high = (f"{s.percentiles[k] * factor:.3g}" for k in (5, 50, 95))
            cells.append(f"{middle} ({low} - {high})")
        table.append(tuple(cells))
    widths = [max(len(row[k]) for row in table) for k in range(len(heads))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    lines.append("mean ± std over objects; median (5 % - 95 %) over Gaussians; scale: geometric mean of the three")
    return lines

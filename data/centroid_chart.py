"""The comparison of centres and surface samples as one figure, for a paper or a talk."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from gsmae.files import write_aside

from .centroids import CROWDING, REACH, SCORES, Centroids

CENTRES, SURFACE, INK, LINE = "#c1440e", "#2f6690", "#3a3a38", "#d8d8d4"
NAMES = {"to_surface": "centre to surface", "from_surface": "surface to centre", "chamfer": "Chamfer"}


def draw(found: Centroids) -> Figure:
    """The figure: one object's points from the front, distances to neighbours, coverage, and every object's ratios."""
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor("white")
    axes = figure.subplot_mosaic([list("AABBCC"), list("DDDEEE")])
    uid, centres, surface = found.example
    reach = 1.05 * np.abs(np.concatenate([centres, surface])[:, [0, 2]]).max(axis=0)
    _points(axes["A"], surface, SURFACE, f"uniform surface samples\n{uid}", reach)
    _points(axes["B"], centres, CENTRES, f"as many centres of Gaussians\n{uid}", reach)
    _crowding(axes["C"], found)
    _coverage(axes["D"], found)
    _ratios(axes["E"], found)
    n, median = len(found.objects), int(np.median([c.points for c in found.objects]))
    figure.suptitle(
        f"Centres of Gaussians against uniform surface samples: {n} objects, {median:,} points each "
        "(bands: 5 % to 95 % of the objects)",
        size=12,
    )
    return figure


def save(figure: Figure, folder: Path, name: str = "centroids") -> list[Path]:
    """Write the figure as PNG and SVG; equal figures, equal bytes."""
    written = []
    with matplotlib.rc_context({"svg.hashsalt": "gsmae", "svg.fonttype": "none"}):
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
            path = folder / f"{name}{suffix}"
            with write_aside(path) as temporary:
                figure.savefig(temporary, format=suffix[1:], dpi=150, metadata=metadata)
            written.append(path)
    return written


def _points(axes: Axes, points: np.ndarray, color: str, title: str, reach: np.ndarray) -> None:
    """Points from the front (x to the right, z up); those behind are fainter."""
    order = np.argsort(-points[:, 1])
    near = 1 - np.argsort(np.argsort(points[:, 1])) / len(points)
    colors = np.tile(to_rgba(color), (len(points), 1))
    colors[:, 3] = 0.25 + 0.75 * near
    axes.scatter(*points[order][:, [0, 2]].T, s=3, c=colors[order], linewidths=0, rasterized=True)
    axes.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, size=10, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _crowding(axes: Axes, found: Centroids) -> None:
    """Distances to the nearest neighbour: mean over the objects, and the middle 90 % of them."""
    widths = np.diff(CROWDING)
    values = np.stack([c.crowding for c in found.objects]) / widths  # [objects, 2, bins]
    x = (CROWDING[:-1] + CROWDING[1:]) / 2
    for k, (color, name) in enumerate(((CENTRES, "centres"), (SURFACE, "surface samples"))):
        low, high = np.percentile(values[:, k], (5, 95), axis=0)
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(x, values[:, k].mean(axis=0), color=color, linewidth=1.8, label=name)
    chance = np.pi / 2 * x * np.exp(-np.pi / 4 * x**2)
    axes.plot(x, chance, color=INK, linewidth=1, linestyle=(0, (3, 2)), label="chance on a plane")
    axes.set(xlim=(0, 3), ylim=(0, None))
    _finish(axes, "distance to the nearest neighbour", "mean distances of surface samples", "density")


def _coverage(axes: Axes, found: Centroids) -> None:
    """Share of the reference points within a radius."""
    values = np.stack([c.reach for c in found.objects])
    for k, (color, name) in enumerate(((CENTRES, "by centres"), (SURFACE, "by other surface samples"))):
        low, middle, high = np.percentile(values[:, k], (5, 50, 95), axis=0)
        axes.fill_between(REACH, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(REACH, middle, color=color, linewidth=1.8, label=name)
    axes.set(xlim=(0, REACH[-1]), ylim=(0, 1.01))
    _finish(axes, "share of the surface covered", "radius, mean distances of surface samples", "")


def _ratios(axes: Axes, found: Centroids) -> None:
    """Every object's score of the centres over that of its surface samples; the line is the median."""
    for row, name in enumerate(reversed(SCORES)):
        pairs = [(getattr(c.centres, name), getattr(c.surface, name)) for c in found.objects]
        ratios = np.array([a / b for a, b in pairs if b > 0 and a > 0])
        if len(ratios):
            jitter = 0.28 * np.sin(2.4 * np.arange(len(ratios)))
            axes.scatter(ratios, row + jitter, s=14, c=CENTRES, alpha=0.55, linewidths=0)
            axes.plot([np.median(ratios)] * 2, [row - 0.38, row + 0.38], color=INK, linewidth=1.8)
    axes.axvline(1, color=SURFACE, linewidth=1.2)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(SCORES)), [NAMES.get(name, name) for name in reversed(SCORES)])
    _finish(axes, "centres over surface samples, by object", "ratio; the blue line is chance", "", legend=False)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.grid(axis="y", visible=False)


def _finish(axes: Axes, title: str, below: str, beside: str, legend: bool = True) -> None:
    axes.set_title(title, size=10, color=INK)
    axes.set_xlabel(below, size=9, color=INK)
    axes.set_ylabel(beside, size=9, color=INK)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=INK, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    if legend:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)

"""Small charts as inline SVG that take their colours from the page, so that they follow its light or dark scheme.

No text of the folders goes into a chart: names stand beside it in HTML, where the template escapes them.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

WIDTH, HEIGHT = 320, 180  # CSS pixels at scale 1
POINTS = 300  # of a curve; more are averaged in bins
# stand-ins that no chart uses otherwise -> what the page calls them
INK, LINE, FIRST, SECOND = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
VARIABLES = {INK: "var(--soft)", LINE: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}


@dataclass(frozen=True)
class Chart:
    """One picture and the words around it. `svg` is ours and safe, everything else is escaped by the page."""

    title: str
    svg: Markup
    caption: str = ""


def histogram(
    title: str,
    values: Sequence[float] | np.ndarray,
    *,
    unit: str = "",
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> Chart | None:
    """How many values fall where, with the median marked; None without a finite value.

    log     bins of equal ratio; values that are not positive are left out
    limits  ends of the axis, instead of the least and greatest value
    """
    v = np.asarray(values, dtype=np.float64)
    v = v[np.isfinite(v) & ((v > 0) | (not log))]
    if not len(v):
        return None
    low, high = limits or (float(v.min()), float(v.max()))
    bins = int(np.clip(2 * len(v) ** 0.5, 8, 40))
    whole = not log and limits is None and high - low < 2 * bins and bool((v == np.round(v)).all())
    if whole:  # counts that hardly differ: a bar for each
        edges = np.arange(low - 0.5, high + 1)
        edges = edges if len(edges) > 3 else np.array([low - 1.5, *edges, high + 1.5])
    elif log:
        low, high = (low, high) if high > 1.05 * low else (low / 1.5, high * 1.5)
        edges = np.geomspace(low, high, bins + 1)
    else:
        pad = 0.0 if high - low > 1e-6 * max(abs(high), 1e-9) else max(abs(high) * 0.05, 0.5)
        edges = np.linspace(low - pad, high + pad, bins + 1)
    counts, _ = np.histogram(v, edges)
    figure, axes = _figure()
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=FIRST, edgecolor="none")
    median = float(np.median(v))
    axes.axvline(median, color=SECOND, linewidth=1.8, linestyle=(0, (3, 2)))
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value) if value else ""))  # 0 is the ground
    _x_axis(axes, log, whole)
    middle = f"{_short(median)}{f' {unit}' if unit else ''}"
    caption = f"median {middle}, from {_short(v.min())} to {_short(v.max())}" if v.min() < v.max() else f"all {middle}"
    return Chart(title, _svg(figure), caption)


def curves(
    title: str,
    train: tuple[Sequence[float], Sequence[float]],
    val: tuple[Sequence[float], Sequence[float]],
    *,
    last: float = 0.0,
    linear: bool = False,
) -> Chart | None:
    """One quantity over the steps, on the training batches (line) and the validation split (dots); None if empty.

    train, val  steps and values, of one length each; long ones are averaged in bins
    last        step at which the axis ends at least, so that the charts of one run have one axis
    linear      a linear axis in any case; else a quantity that spans more than a factor of 30 gets a logarithmic one,
                and the caption says so
    """
    lines = [_thinned(*train), _thinned(*val)]
    everything = np.concatenate([y for _, y in lines])
    if not len(everything):
        return None
    figure, axes = _figure()
    (tx, ty), (vx, vy) = lines
    axes.plot(tx, ty, color=FIRST, linewidth=1.4, solid_joinstyle="round", marker="o" if len(tx) == 1 else "", ms=3)
    axes.plot(vx, vy, color=SECOND, linewidth=1.4, marker="o" if len(vx) <= 40 else "", ms=3)
    log = not linear and everything.min() > 0 and everything.max() > 30 * everything.min()
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    _x_axis(axes, False, whole=True)
    end = max(last, 1.0, *(float(x.max()) for x, _ in lines if len(x)))
    axes.set_xlim(-0.01 * end, 1.01 * end)
    if everything.min() == everything.max() and not log:
        pad = max(abs(everything.max()) * 0.1, 1e-3)
        axes.set_ylim(everything.min() - pad, everything.max() + pad)
    said = [f"{name} {_short(y[-1])}" for name, y in (("train", ty), ("val", vy)) if len(y)]
    return Chart(title, _svg(figure), f"last: {', '.join(said)}{' (log axis)' if log else ''}")


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points: means over equal runs of steps."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) <= POINTS:
        return x, y
    cuts = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*cuts, len(x)])
    return np.add.reduceat(x, cuts) / sizes, np.add.reduceat(y, cuts) / sizes


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(which="both", length=0, colors=INK, labelsize=10, pad=3)
    return figure, axes


def _x_axis(axes: Axes, log: bool, whole: bool = False) -> None:
    if log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        decades = np.log10(high / low)  # powers of ten alone would leave a short axis without a number
        subs = (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3 else (1,)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))


def _short(value: float, position: int | None = None) -> str:
    """12.5k, 0.034, 1e-06: at most a few characters."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if size >= 1e3:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-3 or size == 0 else f"{value:.0e}".replace("e-0", "e-")


def _svg(figure: Figure) -> Markup:
    """The figure as an element for an HTML page: colours by variable, no metadata, no identifier that could clash."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gsmae"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    raw = buffer.getvalue()
    raw = raw[raw.index("<svg") :]
    raw = re.sub(r"<metadata>.*?</metadata>", "", raw, flags=re.S)
    raw = re.sub(r"<!--.*?-->", "", raw, flags=re.S)
    raw = re.sub(r"<style.*?</style>", "", raw, flags=re.S)  # would hold for the whole page
    raw = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" aria-hidden="true">', raw, count=1)
    raw = raw.replace("xlink:href", "href")
    for color, variable in VARIABLES.items():
        raw = raw.replace(color, variable)
    raw = re.sub(r" font-family: [^;\"]*;", "", raw)  # the page's own
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', raw))
    mark = hashlib.sha256(raw.encode()).hexdigest()[:8]
    raw = re.sub(r' id="([^"]+)"', lambda m: f' id="{m[1]}-{mark}"' if m[1] in used else "", raw)
    raw = re.sub(r'(url\(#|href="#)([^)"]+)', rf"\1\2-{mark}", raw)
    return Markup(re.sub(r"\n\s*", "\n", raw).strip())

"""Accuracies of tables as a picture: every seed a dot, the mean a bar, the arm that others are compared with dashed.

python scripts/studies/figure.py TABLE.json ... --out FIGURE.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from gsmae.reproduce.tables import METRICS

INK, DOT, MEAN, GRID = "#1f2430", "#4c72b0", "#1f2430", "#d9dce3"


def rows(path: Path) -> list[tuple[str, list[float], bool]]:
    """(arm, percentages by seed, whether others are compared with it), of the arms that have a number."""
    table = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for arm in table["arms"]:
        metric = METRICS["classify" if arm["task"] == "pointnet2" else arm["task"]][0]
        values = [100 * seed["metrics"][metric] for seed in arm["seeds"] if seed["metrics"]]
        if values:
            found.append((arm["name"], values, arm["name"] in table["against"]))
    return found


def draw(tables: list[Path], out: Path) -> None:
    """One panel a table, side by side, on one scale."""
    panels = [(json.loads(p.read_text(encoding="utf-8"))["table"], rows(p)) for p in tables]
    panels = [(name, arms) for name, arms in panels if arms]
    most = max(len(arms) for _, arms in panels)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 0.6 + 0.42 * most), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, (name, arms) in zip(axes[0], panels, strict=True):
        for place, (_, values, against) in enumerate(arms):
            mean = sum(values) / len(values)
            if against:
                axis.axvline(mean, color=MEAN, linestyle=(0, (4, 3)), linewidth=0.8)
            axis.plot([mean, mean], [place - 0.28, place + 0.28], color=MEAN, linewidth=2)
            axis.plot(values, [place] * len(values), "o", color=DOT, markersize=5, alpha=0.8)
        axis.set_yticks(range(len(arms)), [arm for arm, _, _ in arms])
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_title(name, loc="left", fontsize=10, color=INK)
        axis.grid(axis="x", color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(length=0, labelsize=9, colors=INK)
        axis.set_xlabel("accuracy on test, %", fontsize=9, color=INK)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    draw(a.tables, a.out)
    print(a.out)


if __name__ == "__main__":
    main()

"""Accuracy of frozen features by the length of pretraining, from the table of scripts/studies/long/length.yaml.

python scripts/studies/curve.py TABLE.json --out FIGURE.png [--longest 500]

A line for each input, every seed a dot; dashed, the same network with random weights and its standard deviation over
the seeds. Arms are called "INPUT, N epochs", "INPUT, longest" and "INPUT, random weights".
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

INK, GRID = "#1f2430", "#d9dce3"
COLORS = ("#4c72b0", "#c44e52", "#55a868")


def lines(path: Path, longest: int) -> dict[str, dict[int, list[float]]]:
    """Input -> epochs (0: random weights) -> percentages by seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for arm in json.loads(path.read_text(encoding="utf-8"))["arms"]:
        kind, what = arm["name"].rsplit(", ", 1)
        number = re.fullmatch(r"(\d+) epochs", what)
        epochs = int(number.group(1)) if number else {"longest": longest, "random weights": 0}[what]
        values = [100 * seed["metrics"]["accuracy"] for seed in arm["seeds"] if seed["metrics"]]
        if values:
            found.setdefault(kind, {})[epochs] = values
    return found


def draw(path: Path, out: Path, longest: int) -> None:
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for (kind, values), color in zip(lines(path, longest).items(), COLORS, strict=False):
        trained = sorted(e for e in values if e)
        if 0 in values:
            mean, std = float(np.mean(values[0])), float(np.std(values[0], ddof=1)) if len(values[0]) > 1 else 0.0
            axis.axhline(mean, color=color, linestyle=(0, (4, 3)), linewidth=1, label=f"{kind}, random weights")
            axis.axhspan(mean - std, mean + std, color=color, alpha=0.1, linewidth=0)
        axis.plot(trained, [np.mean(values[e]) for e in trained], color=color, linewidth=2, label=f"{kind}, pretrained")
        for epochs in trained:
            axis.plot([epochs] * len(values[epochs]), values[epochs], "o", color=color, markersize=4, alpha=0.7)
    axis.set_xscale("log")
    ticks = sorted({e for values in lines(path, longest).values() for e in values if e})
    axis.set_xticks(ticks, [str(e) for e in ticks])
    axis.minorticks_off()
    axis.set_xlabel("epochs of pretraining, each length a run of its own", fontsize=9, color=INK)
    axis.set_ylabel("accuracy of a linear SVM on test, %", fontsize=9, color=INK)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=9, colors=INK)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--longest", type=int, default=500)
    a = parser.parse_args()
    draw(a.table, a.out, a.longest)
    print(a.out)


if __name__ == "__main__":
    main()

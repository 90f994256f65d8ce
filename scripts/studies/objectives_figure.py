"""One picture of a study by objectives.py: held-out losses over the epochs, and masked reconstructions of two variants.

    python scripts/studies/objectives_figure.py STUDY SPLAT.ply [SPLAT.ply ...] --out figure.png
        [--variants base shapes] [--seed 0] [--mask-seed 0]

The splats should be of the validation split. Every row has the same Gaussians and the same mask: input, what the
network saw, and what each variant made of the rest. The curves are of the first variant.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from gsmae import zoo
from gsmae.models import GaussianMAE
from gsmae.ply import read_ply
from gsmae.reconstruct import picture, reconstruct_splat

NAMES = {"loss_means": "means (Chamfer)", "loss_opacities": "opacities", "loss_scales": "scales", "loss_quats": "quats",
         "loss_shapes": "shapes", "loss_sh": "colours"}  # fmt: skip
SIZE = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", type=Path)
    parser.add_argument("splats", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs=2, default=["base", "shapes"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mask-seed", type=int, default=0)
    a = parser.parse_args()
    runs = [a.study / f"{name}-{a.seed}" for name in a.variants]
    rows = []
    for file in a.splats:
        pictures = []
        for number, run in enumerate(runs):
            model = zoo.load_trained(run).model
            assert isinstance(model, GaussianMAE)
            row = picture(reconstruct_splat(model, read_ply(file), a.mask_seed), SIZE)
            pictures.append(np.asarray(row)[:, 2 * SIZE * (number > 0) :])
        rows.append(np.concatenate(pictures, axis=1))
    sheet = np.concatenate(rows, axis=0)

    figure = Figure(figsize=(11, 11 * 0.66 * sheet.shape[0] / sheet.shape[1]), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    shown = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    looks = [row for row in shown if row["split"] == "val"]
    first = next(row for row in shown if row["split"] == "train")
    for key, name in NAMES.items():
        if key in looks[0]:
            left.plot(
                [0] + [r["epoch"] for r in looks], [1] + [r[key] / first[key] for r in looks], "o-", ms=3, label=name
            )
    left.set(xlabel="epoch", ylabel="held-out loss / loss of the first training step", ylim=(0, 1.05))
    left.set_title(f"{a.variants[0]}: held-out losses", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    right.imshow(sheet, interpolation="none")
    names = ["input", "visible", *(f"predicted: {name}" for name in a.variants)]
    right.set_xticks([SIZE * (i + 0.5) for i in range(4)], names, fontsize=9)
    right.xaxis.tick_top()
    right.tick_params(length=0)
    right.set_yticks([])
    right.spines[:].set_visible(False)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(a.out)
    Image.open(a.out).convert("RGB").quantize(128).save(a.out, optimize=True)


if __name__ == "__main__":
    main()

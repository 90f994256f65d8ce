"""How much of what classifiers find is colour: no training, on train and val only.

    python scripts/studies/colours.py SPLATS POINTS [--seeds 0 1 2]

statistics  mean and standard deviation over an object's Gaussians of some of the 14 normalised columns: accuracy of the
            best of three simple classifiers
encoders    features of the encoder of recipe small with random weights, BatchNorm's statistics taken from all of train,
            by what is embedded: accuracy of a linear SVM, mean and standard deviation over the seeds

Accuracies are on val, which also chooses the classifiers' parameters: optimistic, alike for all. Prints one line each.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from features import fresh

from data.datasets import SplatDataset
from gsmae import recipes
from gsmae.cli.inputs import placed, stream_of
from gsmae.features import FeatureSpec, normalize
from gsmae.gaussians import FIELDS, columns
from gsmae.models import Encoder
from gsmae.probes import METHODS, Features, features, fit

GAUSSIANS = 1024
ARMS = {
    "points": ("points", ("means",)),
    "points, colours": ("points", ("means", "sh")),
    "centres": ("splats", ("means",)),
    "centres, colours": ("splats", ("means", "sh")),
    "all fields but colours": ("splats", ("means", "opacities", "scales", "quats")),
    "all fields": ("splats", tuple(FIELDS)),
}


def statistics(pack: Path) -> None:
    found = {}
    for split in ("train", "val"):
        dataset = SplatDataset(pack, split=split)
        rows = [normalize(dataset[i].gaussians, FeatureSpec())[0].numpy() for i in range(len(dataset))]
        found[split] = np.stack([np.concatenate([r.mean(0), r.std(0)]) for r in rows]), dataset.labels
    width = found["train"][0].shape[1] // 2
    for name, fields in {**{f: (f,) for f in FIELDS}, "all": tuple(FIELDS)}.items():
        own = [c + more for more in (0, width) for c in columns(fields)]
        train, val = (Features(found[s][0][:, own].astype(np.float32), found[s][1], ()) for s in ("train", "val"))
        tried = {m: max(fit(m, train, val).tried.values()) for m in METHODS}
        best = max(tried, key=lambda m: tried[m])
        print(f"statistics | {name} | {100 * tried[best]:.1f} | {best}", flush=True)


def encoders(packs: dict[str, Path], seeds: list[int]) -> None:
    recipe = recipes.PRETRAIN["small"]
    config = recipe.train.model_copy(update={"gaussians": GAUSSIANS, "batch_size": 64})
    for name, (pack, embed) in ARMS.items():
        sets = {split: SplatDataset(packs[pack], split=split) for split in ("train", "val")}
        spec, place = FeatureSpec(embed=embed), placed([*sets.values()], "cpu")
        streams = {split: stream_of(one, spec, config, None, None, place) for split, one in sets.items()}
        found = []
        for seed in seeds:
            encoder = Encoder(recipe.model.encoder, spec, generator=torch.Generator().manual_seed(seed))
            encoder = fresh(encoder, streams["train"])
            train, val = (features(encoder, streams[split].epoch(0)) for split in ("train", "val"))
            found.append(100 * max(fit("svm", train, val).tried.values()))
        spread = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
        print(f"encoders | {name} | {np.mean(found):.1f}{spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("splats", type=Path)
    parser.add_argument("points", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    a = parser.parse_args()
    torch.set_num_threads(1)
    statistics(a.splats)
    with torch.no_grad():
        encoders({"splats": a.splats, "points": a.points}, a.seeds)


if __name__ == "__main__":
    main()

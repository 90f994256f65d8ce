"""What each option of pretraining changes, on real splats: one small network, the same data and steps, one option each.

    python scripts/studies/objectives.py PACK --out STUDY [--seeds 0 1] [--epochs 30] [--only base latent ...]
    python scripts/studies/objectives.py PACK --out STUDY --table

Each run is pretraining by `gsmae.training.train` on the training split. Then, with the encoder frozen:

reconstruction  errors of positions and ellipsoids on the validation split, the same Gaussians and the same random masks
                for every run that reconstructs, whatever it was trained with
linear, kNN     accuracy over the classes on the validation split, of a logistic regression and of the 5 nearest
                neighbours (cosine) fitted on the training split; and in five folds over both splits, which is less
                noisy (the objects of the training split were seen in pretraining, without their labels)

The test split is not read. One JSON per run in --out; a run whose JSON is there is not made again, one that was cut off
goes on from its checkpoint. --table writes table.md and table.json of what is there.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.augment import AUGMENTATIONS
from data.datasets import SplatDataset
from data.streams import batches
from gsmae.features import FeatureSpec
from gsmae.gaussians import rotation_matrices
from gsmae.groups import random_mask
from gsmae.models import EncoderConfig, GaussianMAE, LatentConfig, MAEConfig
from gsmae.ops import chamfer
from gsmae.shapes import ellipsoids
from gsmae.tasks import Pretrain
from gsmae.training import TrainConfig, train

ENCODER = EncoderConfig(width=96, depth=3, heads=3, groups=24, group_size=12, points=384)
MODEL = MAEConfig(encoder=ENCODER, decoder_depth=1, decoder_heads=3, tokenize="visible")
SHAPES = {"embed": ("means", "opacities", "shapes", "sh")}
LATENT = {"objective": "latent", "mask_ratio": 0.5}

# name -> changes of the FeatureSpec, of MAEConfig, and whether it is trained at all
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "untrained": ({}, {}, False),
    "untrained, shapes": (SHAPES, {}, False),
    "base": ({}, {}, True),
    "shapes": (SHAPES, {}, True),
    "group by shapes": ({**SHAPES, "group": ("means", "shapes")}, {}, True),
    "draw by importance": ({"draw": "importance"}, {}, True),
    "mask by importance": ({}, {"mask": "importance"}, True),
    "mask a block": ({}, {"mask": "block"}, True),
    "match nearest": ({}, {"match": "nearest"}, True),
    "tokenize all": ({}, {"tokenize": "all"}, True),
    "predicted centres": ({}, {"tokenize": "all", "centers": "predicted"}, True),
    "latent": ({}, {**LATENT, "latent": LatentConfig(momentum=0.99)}, True),
    "latent, spread 0.1": ({}, {**LATENT, "latent": LatentConfig(momentum=0.99, spread=0.1)}, True),
    "shapes, match nearest": (SHAPES, {"match": "nearest"}, True),
    "latent, shapes": (SHAPES, {**LATENT, "latent": LatentConfig(momentum=0.99)}, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write the table of what is there, and train nothing")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    a.out.mkdir(parents=True, exist_ok=True)
    for seed in a.seeds if not a.table else []:
        for name in a.only:
            file = a.out / f"{slug(name)}-{seed}.json"
            if not file.exists():
                result = one(name, seed, a.pack, a.out / f"{slug(name)}-{seed}", a.epochs)
                write(file, json.dumps(result, indent=1) + "\n")
                print(json.dumps(result), flush=True)
    write(a.out / "table.json", json.dumps(summary(a.out), indent=1) + "\n")
    write(a.out / "table.md", table(summary(a.out)))


def one(name: str, seed: int, pack: Path, run: Path, epochs: int) -> dict[str, Any]:
    """Train one variant with one seed, then measure it."""
    spec_changes, model_changes, trained = VARIANTS[name]
    spec = FeatureSpec(**spec_changes)
    config = MAEConfig(**{**dict(MODEL), **model_changes})
    how = TrainConfig(
        epochs=epochs, batch_size=16, gaussians=ENCODER.points, lr=1e-3, warmup_epochs=epochs / 20, clip=10, seed=seed,
        val_every=max(epochs // 6, 1), save_every=max(epochs // 6, 1), keep=1,
    )  # fmt: skip
    sets = {split: SplatDataset(pack, split) for split in ("train", "val")}
    torch.manual_seed(seed)
    model = Pretrain.model(config, spec, torch.Generator().manual_seed(seed))
    result: dict[str, Any] = {"variant": name, "seed": seed, "epochs": epochs if trained else 0}
    if trained:
        options: dict[str, Any] = {"batch_size": how.batch_size, "gaussians": how.gaussians, "seed": seed}
        stream = batches(sets["train"], spec, augment=AUGMENTATIONS["default"], drop_last=True, **options)
        val = batches(sets["val"], spec, shuffle=False, **options)
        before = time.process_time()
        task: Any = Pretrain()
        report = train(task, model, stream, val, how, run, header(config, spec))
        result |= {"cpu_s": round(time.process_time() - before, 1), "steps": report.steps, "val": last(run)}
    model.eval()
    with torch.no_grad():
        if isinstance(model, GaussianMAE):
            result |= reconstruction(model, spec, sets["val"])
        result |= probes(lambda points: model.encoder(points).tokens, spec, sets)
        if trained and not isinstance(model, GaussianMAE):
            teacher = probes(lambda points: model.teacher(points).tokens, spec, sets)
            result |= {f"teacher_{key}": value for key, value in teacher.items()}
    return result


def header(config: MAEConfig, spec: FeatureSpec) -> dict[str, Any]:
    """What a checkpoint needs to be loaded again."""
    return {"task": "pretrain", "spec": spec.model_dump(mode="json"), "model": config.model_dump(mode="json")}


def last(run: Path) -> dict[str, Any]:
    """The last validation metrics of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {k: v for k, v in [r for r in rows if r["split"] == "val"][-1].items() if isinstance(v, float)}


def reconstruction(model: GaussianMAE, spec: FeatureSpec, dataset: SplatDataset) -> dict[str, float]:
    """Errors of the hidden groups in units that do not depend on the fields that were chosen, under equal masks.

    chamfer  mean squared distance, both ways, of the means, in squared radii of the splat, times 1000; about the true
             centres, also where the decoder had predicted ones
    logs     Frobenius distance of log(R diag(s) R^T), where axes below 1/1000 radius count as that
    axes     Frobenius distance of R diag(s) R^T, in 1/1000 radius
    Both of the Gaussian in the same slot, and (_near) of the one whose mean is nearest to the predicted mean.
    """
    plain = spec.model_copy(update={"draw": "uniform"})
    sums: dict[str, float] = {}
    count = 0
    for number, batch in enumerate(batches(dataset, plain, batch_size=32, gaussians=ENCODER.points, shuffle=False)):
        groups = model.encoder.group(batch.points)
        mask = random_mask(len(batch), ENCODER.groups, 0.6, torch.Generator().manual_seed(number))
        out = model(groups, mask)
        truth = groups.points[mask].unflatten(0, (len(batch), -1))[:, :, : ENCODER.group_size]
        assert batch.normalization is not None
        predicted, true = out.predicted["means"].flatten(0, 1), truth[..., :3].flatten(0, 1)
        errors = {"chamfer": 1000 * float(chamfer(predicted, true))}
        there = batch.normalization.linear_scales(truth), truth[..., 7:11]
        if "shapes" in spec.embed:
            here = ellipsoids(out.predicted["shapes"])
        else:
            columns = torch.cat([truth[..., :4], out.predicted["scales"]], dim=-1)
            here = batch.normalization.linear_scales(columns), out.predicted["quats"]
        partner = torch.cdist(predicted, true).argmin(dim=2)
        for name, curve in (("logs", lambda s: s.clamp_min(1e-3).log()), ("axes", lambda s: 1000 * s.clamp_min(0))):
            a, b = (tensors(curve(scales), quats).flatten(0, 1) for scales, quats in (here, there))
            errors[name] = float((a - b).norm(dim=(-1, -2)).mean())
            paired = b[torch.arange(len(b))[:, None], partner]
            errors[f"{name}_near"] = float((a - paired).norm(dim=(-1, -2)).mean())
        for name, value in errors.items():
            sums[name] = sums.get(name, 0.0) + value * len(batch)
        count += len(batch)
    return {key: value / count for key, value in sums.items()}


def tensors(values: torch.Tensor, quats: torch.Tensor) -> torch.Tensor:
    """R diag(values) R^T, [..., 3, 3]."""
    turns = rotation_matrices(quats)
    return (turns * values[..., None, :]) @ turns.transpose(-1, -2)


def probes(encode: Any, spec: FeatureSpec, sets: dict[str, SplatDataset]) -> dict[str, float]:
    """Accuracies of simple classifiers on frozen features: the mean and the maximum over the tokens."""
    features, labels = {}, {}
    for split, dataset in sets.items():
        rows, named = [], []
        for batch in batches(dataset, spec, batch_size=64, gaussians=ENCODER.points, shuffle=False):
            tokens = encode(batch.points)
            rows.append(torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=1))
            named.append(batch.labels)
        features[split], labels[split] = torch.cat(rows).numpy(), torch.cat(named).numpy()
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    near = make_pipeline(StandardScaler(), KNeighborsClassifier(5, metric="cosine", weights="distance"))
    both, both_labels = (np.concatenate([values[split] for split in sets]) for values in (features, labels))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    found: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # classes of fewer than five objects
        for name, probe in (("linear", linear), ("knn", near)):
            probe.fit(features["train"], labels["train"])
            found[f"{name}_val"] = float(probe.score(features["val"], labels["val"]))
            guessed = np.asarray(cross_val_predict(probe, both, both_labels, cv=folds))
            found[f"{name}_folds"] = float((guessed == both_labels).mean())
            found[f"{name}_folds_balanced"] = float(balanced_accuracy_score(both_labels, guessed))
    return found


def summary(out: Path) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, by variant."""
    results = [json.loads(p.read_text()) for p in sorted(out.glob("*-*.json"))]
    table = []
    for name in VARIANTS:
        rows = [r for r in results if r["variant"] == name]
        if not rows:
            continue
        keys = [k for k, v in rows[0].items() if isinstance(v, float) and all(k in r for r in rows)]
        values = {k: [r[k] for r in rows] for k in keys}
        spread = {k: [statistics.mean(v), statistics.stdev(v) if len(v) > 1 else None] for k, v in values.items()}
        table.append({"variant": name, "seeds": [r["seed"] for r in rows], "epochs": rows[0]["epochs"], **spread})
    return table


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; accuracies in per cent."""
    columns = [("chamfer", 1, 3), ("logs", 1, 3), ("logs_near", 1, 3), ("axes", 1, 2), ("linear_val", 100, 1),
               ("linear_folds", 100, 1), ("knn_folds", 100, 1), ("cpu_s", 1, 0)]  # fmt: skip
    lines = ["| variant | seeds | " + " | ".join(c for c, _, _ in columns) + " |", "| --- " * (len(columns) + 2) + "|"]
    for row in rows:
        cells = [row["variant"], str(len(row["seeds"]))]
        for key, factor, digits in columns:
            mean, spread = row.get(key, [None, None])
            cell = "" if mean is None else f"{factor * mean:.{digits}f}"
            cells.append(cell + ("" if spread is None else f" ± {factor * spread:.{digits}f}"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "_").replace(".", "")


def write(path: Path, text: str) -> None:
    aside = path.with_name("." + path.name)
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


if __name__ == "__main__":
    main()

"""What drawing, masking and tokenizing otherwise does before anything is learned from it, on real splats.

    python scripts/studies/importance.py PACK RUN [--size 128] [--objects 40]

draw      PSNR of pictures of a few Gaussians of an object against pictures of all of them, drawn uniformly and by
          importance; the few enlarged by (all / few)^power, the power tried that is best for each kind
mask      with 0.6 of the groups hidden: share of the splat's importance (opacity x volume^(1/3)) that is hidden, and
          the losses that RUN, pretrained with random masks, has under each kind of mask
tokenize  how far BatchNorm's running statistics of RUN's tokenizer move when they are taken anew from visible groups
          only instead of all, by kind of mask: difference of the means in standard deviations, ratio of the variances

The validation split of PACK; RUN is a run of objectives.py. Prints JSON.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from torch import nn

from data.datasets import SplatDataset
from data.streams import batches
from gsmae import zoo
from gsmae.groups import block_mask, importance_mask, random_mask, rows
from gsmae.importance import thin
from gsmae.models import GaussianMAE
from gsmae.render import orbit, render

KINDS = ("random", "importance", "block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pack", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--objects", type=int, default=40)
    a = parser.parse_args()
    torch.set_num_threads(1)
    dataset = SplatDataset(a.pack, "val")
    model = zoo.load_trained(a.run).model
    assert isinstance(model, GaussianMAE)
    with torch.no_grad():
        print(json.dumps({"draw": drawing(dataset, a.objects, a.size)}), flush=True)
        print(json.dumps({"mask": masking(dataset, model)}), flush=True)
        print(json.dumps({"tokenize": tokenizing(dataset, model)}), flush=True)


def drawing(dataset: SplatDataset, objects: int, size: int) -> dict[str, list[float]]:
    """The best power, the mean PSNR with it and its standard error over objects, by kind and number drawn."""
    found: dict[str, dict[float, list[float]]] = {}
    viewmats, intrinsics = orbit(3, size)
    for i in range(min(objects, len(dataset))):
        g = dataset[i].gaussians
        truth = torch.stack(list(render(g, viewmats, intrinsics, size, size)))
        for count in (384, 1024):
            for kind in ("uniform", "importance"):
                few = g[thin(g, count, kind, torch.Generator().manual_seed(i))]
                for power in (0.0, 0.15, 0.3, 0.5):
                    larger = few.replace(log_scales=few.log_scales + power * math.log(len(g) / len(few)))
                    made = torch.stack(list(render(larger, viewmats, intrinsics, size, size)))
                    psnr = -10 * math.log10(float((made - truth).square().mean()))
                    found.setdefault(f"{kind} {count}", {}).setdefault(power, []).append(psnr)
    best = {name: max(values, key=lambda power: statistics.mean(values[power])) for name, values in found.items()}
    return {name: [best[name], *mean_and_error(values[best[name]])] for name, values in found.items()}


def masks(model: GaussianMAE, groups, normalization, number: int):
    """The three kinds of mask for one batch."""
    weights = model._importance(groups.points, normalization)
    generators = (torch.Generator().manual_seed(number) for _ in KINDS)
    batch, count = groups.centers.shape[:2]
    ratio = model.config.mask_ratio
    yield "random", random_mask(batch, count, ratio, next(generators)), weights
    yield "importance", importance_mask(weights, ratio, next(generators)), weights
    yield "block", block_mask(groups.centers, ratio, next(generators)), weights


def masking(dataset: SplatDataset, model: GaussianMAE) -> dict[str, dict[str, float]]:
    """Hidden share of importance, and losses, by kind of mask."""
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    for number, batch in enumerate(stream(dataset, model)):
        groups = model.encoder.group(batch.points)
        for kind, mask, weights in masks(model, groups, batch.normalization, number):
            shares = (weights.softmax(dim=1) * mask).sum(dim=1)
            out = model(groups, mask)
            values = {"hidden": shares.mean(), "loss": out.loss, **out.losses}
            for name, value in values.items():
                found[kind].setdefault(name, []).append(float(value))
    return {kind: {k: round(statistics.mean(v), 5) for k, v in values.items()} for kind, values in found.items()}


def tokenizing(dataset: SplatDataset, model: GaussianMAE) -> dict[str, dict[str, list[float]]]:
    """Largest and mean shift of running statistics, by kind of mask, both norms of the tokenizer."""
    found = {}
    everything = statistics_of(dataset, model, None)
    for kind in KINDS:
        seen = statistics_of(dataset, model, kind)
        shift, ratio = [], []
        for name, (mean, var) in everything.items():
            shift.append((seen[name][0] - mean).abs() / var.sqrt())
            ratio.append((seen[name][1] / var).log().abs())
        moved, scaled = torch.cat(shift), torch.cat(ratio)
        found[kind] = {
            "means moved by (mean, largest)": [round(float(v), 4) for v in (moved.mean(), moved.max())],
            "variances times (mean, largest)": [round(math.exp(float(v)), 4) for v in (scaled.mean(), scaled.max())],
        }
    return found


def statistics_of(dataset: SplatDataset, model: GaussianMAE, kind: str | None) -> dict[str, tuple]:
    """Mean and variance that BatchNorm takes from the visible groups of the split, or from all."""
    tokenizer = model.encoder.tokenizer
    norms = {name: child for name, child in tokenizer.named_modules() if isinstance(child, nn.BatchNorm1d)}
    saved = {name: (n.momentum, {k: v.clone() for k, v in n.state_dict().items()}) for name, n in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    for number, batch in enumerate(stream(dataset, model)):
        groups = model.encoder.group(batch.points)
        points = groups.points
        for name, mask, _ in masks(model, groups, batch.normalization, number):
            if name == kind:
                order = mask.to(torch.uint8).argsort(dim=1, stable=True)
                points = rows(points, order[:, : int((~mask[0]).sum())])
        model.encoder.tokenize(points)
    found = {}
    for name, norm in norms.items():
        assert norm.running_mean is not None and norm.running_var is not None
        found[name] = norm.running_mean.clone(), norm.running_var.clone()
        norm.momentum = saved[name][0]
        norm.load_state_dict(saved[name][1])
        norm.eval()
    return found


def stream(dataset: SplatDataset, model: GaussianMAE):
    config = model.config.encoder
    return batches(dataset, model.spec, batch_size=32, gaussians=config.points, shuffle=False)


def mean_and_error(values: list[float]) -> list[float]:
    return [round(statistics.mean(values), 2), round(statistics.stdev(values) / len(values) ** 0.5, 2)]


if __name__ == "__main__":
    main()

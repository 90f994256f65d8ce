"""How far labelled points land from where they belong when their scale and centre have to be found from the splat.

    python scripts/bench/parts.py BUILD

For every object of a build the truth is known: its surface samples lie in the splat's frame. 2,500 of them are moved
and scaled as ShapeNetPart's are (centroid to the origin, farthest point to 1) and brought back in three ways: matching
centroids and farthest points, as part segmentation usually normalises; matching the boxes of all points and all
Gaussians; and as `gsmae pack --parts` does. The last two again with 100 opaque Gaussians that float 1.1 to 2 radii
away. Figures are the mean distance of the points from their own places in percent of the object's radius.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor

from data.manifest import read_build
from data.parts import placed
from gsmae.gaussians import Gaussians

POINTS, FLOATERS = 2500, 100


def matched(points: np.ndarray, means: np.ndarray, way: str) -> np.ndarray:
    """Points brought onto means by two boxes or by two centroids."""

    def frame(rows: np.ndarray) -> tuple[np.ndarray, float]:
        if way == "boxes":
            low, high = rows.min(axis=0), rows.max(axis=0)
            return (low + high) / 2, float(np.linalg.norm(high - low))
        return rows.mean(axis=0), float(np.linalg.norm(rows - rows.mean(axis=0), axis=1).max())

    (a, r), (b, s) = frame(points), frame(means)
    return (points - a) * (s / r) + b


def ours(points: np.ndarray, splat: Gaussians) -> np.ndarray:
    p = placed(points, splat)
    return p.scale * points + np.array(p.shift)


def with_floaters(splat: Gaussians, radius: float, generator: torch.Generator) -> Gaussians:
    """The splat and copies of its first Gaussians, opaque, around it."""
    around = torch.randn(FLOATERS, 3, generator=generator)
    around *= radius * (1.1 + 0.9 * torch.rand(FLOATERS, 1, generator=generator)) / around.norm(dim=1, keepdim=True)
    index = torch.cat([torch.arange(len(splat)), torch.arange(FLOATERS) % len(splat)])
    means, logits = splat.means[index].clone(), splat.logit_opacities[index].clone()
    means[len(splat) :], logits[len(splat) :] = around, 3.0
    return splat[index].replace(means=means, logit_opacities=logits)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    build = read_build(parser.parse_args().build)
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[float]] = {}
    seconds = []
    for record in build.done:
        surface = build.surface(record)
        if surface is None:
            continue
        truth: Tensor = torch.from_numpy(surface.read(len(record.part_names))["points"])
        truth = truth[torch.randperm(len(truth), generator=generator)[:POINTS]]
        centre = truth.mean(dim=0)
        radius = float((truth - centre).norm(dim=1).max())
        points, splat = ((truth - centre) / radius).double().numpy(), build.gaussians(record)
        floating = with_floaters(splat, radius, generator)
        start = time.perf_counter()
        found = {"gsmae": ours(points, splat)}
        seconds.append(time.perf_counter() - start)
        found["centroids"] = matched(points, splat.means.double().numpy(), "centroids")
        found["boxes"] = matched(points, splat.means.double().numpy(), "boxes")
        found["boxes, floaters"] = matched(points, floating.means.double().numpy(), "boxes")
        found["gsmae, floaters"] = ours(points, floating)
        for way, landed in found.items():
            away = np.linalg.norm(landed - truth.numpy(), axis=1).mean() / radius
            rows.setdefault(way, []).append(100 * float(away))
    print(f"{len(seconds)} objects, {1000 * statistics.median(seconds):.0f} ms each; % of the radius: median, worst")
    for way in ("centroids", "boxes", "gsmae", "boxes, floaters", "gsmae, floaters"):
        print(f"{way:<16} {statistics.median(rows[way]):6.2f} {max(rows[way]):7.2f}")


if __name__ == "__main__":
    main()

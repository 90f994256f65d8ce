"""Times farthest point sampling and grouping on one thread beside the plain torch twin and other libraries.

    python scripts/bench/grouping.py [--rounds 11] [--variant avx2]

Peers are timed where they are importable, none is a dependency: pip install fpsample torch_quickfps pykdtree. Each is
tried with several bucket sizes and judged by its fastest. First every result is compared. Each round then runs every
way once, so that a busy machine disturbs all of them alike; figures are medians of CPU milliseconds (lowest to
highest), ratios are those of the rounds.
"""

import argparse
import importlib
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gsmae import ops
from gsmae.ops.native import library

HEIGHTS = [1, 2, 3, 5]  # of the buckets' trees; fpsample's manual has 3 and 5, lower ones are faster here
SAMPLING = [(8, 4096, 3, 128), (8, 4096, 14, 128), (32, 1024, 3, 64)]  # B, N, C, G
GROUPING = [(8, 4096, 3, 128, 32), (8, 4096, 14, 128, 32), (32, 1024, 3, 64, 32), (32, 1024, 14, 64, 32)]  # and K
TWIN, OURS = "plain torch", "gsmae"
Ways = dict[str, Callable[[], Any]]


def splats(batch: int, n: int, width: int) -> Tensor:
    """[B, N, C]: positions on bumpy tori in no order, further columns between -1 and 1 that vary along the surface."""
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(batch, n, 2, generator=generator)
    phases = 2 * math.pi * torch.rand(batch, 1, width, generator=generator)
    bump = 1 + 0.08 * torch.sin(7 * angles[..., 0] + phases[..., 0]) * torch.cos(5 * angles[..., 1])
    around = 0.65 + 0.25 * bump * torch.cos(angles[..., 1])
    means = [around * torch.cos(angles[..., 0]), around * torch.sin(angles[..., 0]), 0.25 * bump * angles[..., 1].sin()]
    waves = torch.sin(angles @ torch.randint(-3, 4, (2, width), generator=generator).float() + phases)
    noise = torch.randn(batch, n, width, generator=generator)
    return torch.cat([torch.stack(means, -1), (0.7 * waves + 0.2 * noise).clamp(-1, 1)[..., 3:]], dim=-1).contiguous()


def peer(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def radius(points: Tensor, chosen: Tensor) -> Tensor:
    """[B]: the largest distance of a point to the nearest chosen one."""
    rows = points.gather(1, chosen[..., None].expand(-1, -1, points.shape[2]))
    return torch.cdist(points, rows).amin(2).amax(1)


def quickfps_ways(points: Tensor, count: int) -> dict[str, Callable[[], Tensor]]:
    package = peer("torch_quickfps")
    if package is None:
        return {}
    return {f"torch_quickfps h={h}": lambda h=h: package.sample_idx(points, count, h=h, start_idx=0) for h in HEIGHTS}


def fpsample_ways(points: Tensor, count: int) -> dict[str, Callable[[], Tensor]]:
    package = peer("fpsample")
    if package is None:
        return {}
    clouds = list(points.numpy())

    def each(sample: Callable[..., Any]) -> Tensor:
        return torch.stack([torch.from_numpy(sample(cloud).astype("int64")) for cloud in clouds])

    ways: dict[str, Callable[[], Tensor]] = {
        "fpsample": lambda: each(lambda cloud: package.fps_sampling(cloud, count, start_idx=0))
    }
    if points.shape[2] <= 8:  # it refuses more columns
        for h in HEIGHTS:
            ways[f"fpsample bucket h={h}"] = lambda h=h: each(
                lambda cloud: package.bucket_fps_kdline_sampling(cloud, count, h=h, start_idx=0)
            )
    return ways


def sampling_ways(points: Tensor, count: int) -> Ways:
    """Ways to sample, after a look at what they choose."""
    ours: Ways = {OURS: lambda: ops.farthest_points(points, count)}
    twin: Ways = {TWIN: lambda: ops.reference.points.farthest_points(points, count)}
    expected = twin[TWIN]()
    assert torch.equal(ours[OURS](), expected), "not the indices of the definition"
    peers = {**quickfps_ways(points, count), **fpsample_ways(points, count)}
    for name, way in peers.items():
        found = way()
        if "bucket" in name:  # it starts elsewhere than asked, so that only the coverage can be compared
            assert (radius(points, found) <= 1.15 * radius(points, expected)).all(), f"{name} covers less"
        else:
            assert (found == expected).float().mean() > 0.99, f"{name} chooses others"
    return {**ours, **twin, **peers}


def grouping_ways(points: Tensor, count: int, k: int) -> Ways:
    """Ways to group, after a look at what they choose."""
    ours: Ways = {OURS: lambda: ops.group(points, count, k)}
    twin: Ways = {TWIN: lambda: ops.reference.points.group(points, count, k)}
    centers, neighbours = twin[TWIN]()
    got = ours[OURS]()
    assert torch.equal(got[0], centers) and torch.equal(got[1], neighbours), "not the indices of the definition"

    def common() -> tuple[Tensor, Tensor]:  # what one would write today in a few lines of torch
        chosen = ops.reference.points.farthest_points(points, count)
        rows = points.gather(1, chosen[..., None].expand(-1, -1, points.shape[2]))
        return chosen, torch.cdist(rows, points).topk(k, largest=False).indices

    ways: Ways = {**ours, **twin, "plain torch, cdist + topk": common}
    tree = peer("pykdtree.kdtree")
    if tree is None:
        return ways
    for name, sample in quickfps_ways(points, count).items():

        def way(sample: Callable[[], Tensor] = sample) -> tuple[Tensor, Tensor]:
            chosen = sample()
            rows = points.gather(1, chosen[..., None].expand(-1, -1, points.shape[2])).numpy()
            found = [tree.KDTree(p).query(r, k)[1] for p, r in zip(points.numpy(), rows, strict=True)]
            return chosen, torch.stack([torch.from_numpy(f.astype("int64")) for f in found])

        chosen, found = way()
        expected = ops.reference.points.nearest(
            points.gather(1, chosen[..., None].expand(-1, -1, points.shape[2])), points, k
        )
        assert (found == expected).float().mean() > 0.99, f"{name} + pykdtree finds others"
        ways[f"{name} + pykdtree"] = way
    return ways


def interleave(ways: Ways, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 2):  # two rounds to warm up
        for name, way in ways.items():
            begin = time.process_time()
            way()
            if round_ >= 2:
                times[name].append(1000 * (time.process_time() - begin))
    return times


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def rows_of(case: str, times: dict[str, list[float]]) -> list[str]:
    """A line for ours, for the twin, and for the fastest setting of each peer."""
    best: dict[str, str] = {}
    for name in sorted(times, key=lambda name: statistics.median(times[name])):
        package = name.split(" ")[0] if name not in (OURS, TWIN) and not name.startswith(TWIN) else name
        best.setdefault(package, name)
    lines = []
    for name in best.values():
        ratios = [other / ours for other, ours in zip(times[name], times[OURS], strict=True)]
        lines.append(f"| {case} | {name} | {spread(times[name], 2)} | {spread(ratios, 1) if name != OURS else ''} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--variant", default=library.variant(), help="of our kernels")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by pykdtree when it is imported
    torch.set_num_threads(1)
    library.set_threads(1)
    lines = []
    with library.using(options.variant):
        for batch, n, width, count in SAMPLING:
            times = interleave(sampling_ways(splats(batch, n, width), count), options.rounds)
            lines += rows_of(f"FPS, B{batch} N{n} to {count}, {width}-d", times)
        for batch, n, width, count, k in GROUPING:
            times = interleave(grouping_ways(splats(batch, n, width), count, k), options.rounds)
            lines += rows_of(f"FPS + kNN, B{batch} N{n} G{count} k{k}, {width}-d", times)
    print(f"{options.rounds} rounds, 1 thread, kernels: {options.variant}\n")
    print("| case | way | CPU ms | times ours |\n| --- | --- | --- | --- |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

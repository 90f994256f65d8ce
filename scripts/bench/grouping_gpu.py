"""Times farthest points, nearest neighbours and groups on a GPU beside the plain torch twin and what one would write.

    python scripts/bench/grouping_gpu.py [--rounds 15] [--device cpu]

First every result is compared: ours and the twin's index for index. Each round then runs every way once; figures are
medians of milliseconds between CUDA events (lowest to highest), ratios are those of the rounds. `cdist + topk` is given
the centres in the column of neighbours, and takes the twin's farthest points in that of groups. In a graph, one CUDA
graph is replayed: what the GPU needs when the host is not in the way. With `--device cpu` ours runs on Warp's CPU
device, at one twentieth of the sizes, as a trial: its times say nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from grouping import splats, spread
from torch import Tensor

from gsmae.ops import reference, warp

CASES = [(128, 1024, 64, 32, 14), (128, 1024, 64, 32, 3), (128, 4096, 128, 32, 14), (1024, 1024, 64, 32, 14)]
OURS, GRAPH, TWIN, COMMON = "ours", "ours, in a graph", "plain torch twin", "cdist + topk"
Way = Callable[[], object]


def captured(way: Way) -> Way:
    """The same as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        way()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = way()
    return lambda: (graph.replay(), kept)


def same(ours: Tensor, expected: Tensor) -> None:
    assert torch.equal(ours, expected), "not the indices of the definition"


def ways_of(points: Tensor, count: int, k: int) -> dict[str, dict[str, Way]]:
    """Ways to sample, to find neighbours and to group, after a look at what they choose."""
    twin, ours = reference.points, warp.points
    centers = twin.farthest_points(points, count)
    query = points.gather(1, centers[..., None].expand(-1, -1, points.shape[2]))
    neighbours = twin.nearest(query, points, k)

    def common(rows: Tensor) -> Tensor:
        return torch.cdist(rows, points).topk(k, largest=False).indices

    def common_group() -> Tensor:
        chosen = twin.farthest_points(points, count)
        return common(points.gather(1, chosen[..., None].expand(-1, -1, points.shape[2])))

    same(ours.farthest_points(points, count), centers)
    same(ours.nearest(query, points, k), neighbours)
    for found, expected in zip(ours.group(points, count, k), (centers, neighbours), strict=True):
        same(found, expected)
    assert (common(query) == neighbours).float().mean() > 0.98, "cdist + topk finds others"
    ways: dict[str, dict[str, Way]] = {
        "FPS": {OURS: lambda: ours.farthest_points(points, count), TWIN: lambda: twin.farthest_points(points, count)},
        "kNN": {
            OURS: lambda: ours.nearest(query, points, k),
            TWIN: lambda: twin.nearest(query, points, k),
            COMMON: lambda: common(query),
        },
        "group": {
            OURS: lambda: ours.group(points, count, k),
            TWIN: lambda: twin.group(points, count, k),
            COMMON: common_group,
        },
    }
    if points.is_cuda:
        for some in ways.values():
            some[GRAPH] = captured(some[OURS])
        kept = captured(lambda: ours.group(points, count, k))()
        for found, expected in zip(kept[1], (centers, neighbours), strict=True):  # type: ignore[index]
            same(found, expected)
    return ways


def once(way: Way, device: str) -> float:
    """Milliseconds."""
    if device == "cpu":
        begin = time.perf_counter()
        way()
        return 1000 * (time.perf_counter() - begin)
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    before.record()
    way()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def interleave(ways: dict[str, Way], rounds: int, device: str) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 2):  # two rounds to warm up
        for name, way in ways.items():
            taken = once(way, device)
            if round_ >= 2:
                times[name].append(taken)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device).type
    smaller = 20 if device == "cpu" else 1
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name()
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{name}, torch {torch.__version__}, Warp {warp.runtime.warp().__version__}, {options.rounds} rounds\n")
    print("| B, N, G, k, C | what | way | ms | times ours | us a step |\n| --- | --- | --- | --- | --- | --- |")
    for batch, n, count, k, width in CASES:
        batch = max(1, batch // smaller)
        points = splats(batch, n, width).to(options.device)
        for what, ways in ways_of(points, count, k).items():
            times = interleave(ways, options.rounds, device)
            for way, values in times.items():
                ratios = [other / own for other, own in zip(values, times[OURS], strict=True)]
                ratio = spread(ratios, 1) if way != OURS else ""
                step = f"{1000 * statistics.median(values) / count:.2f}" if what == "FPS" else ""
                case = f"{batch}, {n}, {count}, {k}, {width}"
                print(f"| {case} | {what} | {way} | {spread(values, 3)} | {ratio} | {step} |", flush=True)


if __name__ == "__main__":
    main()

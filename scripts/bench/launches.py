"""Objects per hour when many are fitted in one launch, and where the time goes. Prints two Markdown tables.

    python scripts/bench/launches.py [--sizes 1 8 32 128] [--profile fast] [--iterations 5000] [--device auto]
                                     [--kernels auto] [--meshes examples/meshes] [--rounds 20] [--no-graphs]

Objects are those of a folder, again and again until there are enough, with seeds of their own. The first table is one
whole batch of every size: reading meshes, views, fit, quality on the test views; objects per hour count all of it, one
after the other, in one process. The second is one step of a batch in the middle of its fit, stage by stage, medians,
by CUDA events on a GPU; "the step" is what the fit runs, and "as a graph" the same captured as a CUDA graph. On a GPU
a third says how long each kernel of such a step takes, as the profiler saw it.

A trial without a GPU: --device cpu --kernels warp --sizes 1 2 --profile tiny --iterations 10 --resolution 48
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsmae.ops.batches import backend
from gsmae.ops.warp import runtime
from gsmae.ops.warp.splats import Capacity
from preprocessing.building.batches import bytes_per_object
from preprocessing.building.devices import chosen_device
from preprocessing.building.objects import rigs_of
from preprocessing.fitting.fit import Fit, initialise
from preprocessing.fitting.fit_many import fit_many
from preprocessing.fitting.iterations import Iterations
from preprocessing.fitting.padded import Padded
from preprocessing.meshes import load_mesh
from preprocessing.profiles import PROFILES, BuildConfig
from preprocessing.quality import evaluate
from preprocessing.rendering.views import draw_views
from preprocessing.sources import SOURCES, MeshItem, detect
from preprocessing.surface import SurfaceSamples, sample_surface


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Clock:
    """Seconds by name, of the device's work where that is a GPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: dict[str, list[float]] = {}

    def time(self, name: str, call: Callable[..., Any], *given: Any) -> Any:
        if self.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = call(*given)
            end.record()
            torch.cuda.synchronize()
            spent = start.elapsed_time(end) / 1000
        else:
            begun = time.perf_counter()
            result = call(*given)
            spent = time.perf_counter() - begun
        self.times.setdefault(name, []).append(spent)
        return result


def objects(root: Path, count: int) -> Iterator[MeshItem]:
    found = list(SOURCES[detect(root)](root))
    for i in range(count):
        yield found[i % len(found)]


def whole(count: int, config: BuildConfig, options: argparse.Namespace, device: str) -> tuple[list[str], Any]:
    """A row of the first table, and the batch for the second."""
    rigs = rigs_of(config)
    marks = [time.perf_counter()]
    loaded = [load_mesh(item) for item in objects(options.meshes, count)]
    samples = [sample_surface(mesh, config.fit.initial, seed) for seed, mesh in enumerate(loaded)]
    marks.append(time.perf_counter())
    shape = (config.resolution, config.resolution, 3)
    views = [torch.empty(count, len(c), *shape, dtype=torch.uint8, device=device) for c in rigs.values()]
    for b, mesh in enumerate(loaded):
        for into, pictures in zip(
            views, draw_views(mesh, list(rigs.values()), config.supersample, device), strict=True
        ):
            into[b] = pictures
    wait(device)
    marks.append(time.perf_counter())
    fits = fit_many(
        views[0], rigs["train"], views[1], rigs["val"], samples, config.fit, range(count), options.kernels,
        graphs=options.graphs,
    )  # fmt: skip
    wait(device)
    marks.append(time.perf_counter())
    good = [fit for fit in fits if isinstance(fit, Fit)]
    qualities = [evaluate(fit.gaussians, rigs["test"], views[2][b]).psnr for b, fit in enumerate(fits)
                 if isinstance(fit, Fit)]  # fmt: skip
    marks.append(time.perf_counter())
    seconds = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    total = marks[-1] - marks[0]
    peak = torch.cuda.max_memory_allocated() / count / 1e6 if device == "cuda" else float("nan")
    row = [
        f"{count}", f"{3600 * len(good) / total:.0f}", f"{3600 * len(good) / seconds[2]:.0f}",
        *(f"{s:.2f}" for s in seconds), f"{statistics.fmean(qualities):.2f}",
        f"{statistics.fmean(len(fit.gaussians) for fit in good):.0f}", f"{bytes_per_object(config) / 1e6:.0f}",
        f"{peak:.0f}",
    ]  # fmt: skip
    return row, (views[0], rigs["train"], samples, fits)


def stages(batch: Any, config: BuildConfig, options: argparse.Namespace, device: str) -> dict[str, float]:
    """Milliseconds of the stages of a step, by name: medians."""
    images, cameras, samples, fits = batch
    twin = backend(options.kernels, device)
    clock = Clock(device)
    run = fresh(twin, images, cameras, samples, fits, config, device, False)
    graph = fresh(twin, images, cameras, samples, fits, config, device, True) if options.graphs else None
    v, count = run.state.values, len(run.state)
    for round_ in range(options.rounds + 3):
        if round_ == 3:  # the first ones compile, make room and capture
            clock.times.clear()
        view = torch.full((count,), round_ % len(cameras), device=device)
        arguments: list[Any] = [v["means"], v["quats"], v["log_scales"].exp(), v["logit_opacities"].sigmoid(),
                                torch.cat([v["sh0"], v["shN"]], dim=2)]  # fmt: skip
        arguments = [t.detach().requires_grad_() for t in arguments]
        cams = run.viewmats[view][:, None], run.Ks[view][:, None]
        if twin.name == "warp":
            with runtime.on(torch.device(device)) as wp:
                clock.time("project, list pairs, sort (part of the forward)", pairs, wp, arguments, cams, cameras)
        offsets = torch.zeros(count, 1, run.state.rows, 2, device=device, requires_grad=True)
        size = cameras.width, cameras.height
        pictures, _ = clock.time(
            "rasterise forward", twin.rasterize_many, *arguments, *cams, *size, run.white, offsets, run.capacity
        )
        targets = images[torch.arange(count, device=device), view][:, None]
        loss = clock.time("L1 + SSIM forward", twin.l1_ssim_many, pictures, targets).sum()
        (pull,) = clock.time("L1 + SSIM backward", partial(torch.autograd.grad, retain_graph=True), loss, pictures)
        clock.time("rasterise backward", torch.autograd.grad, pictures, [*arguments, offsets], pull)
        turn = [[round_ % len(cameras)] * count]
        clock.time("the step", run.run, round_, turn)
        if graph is not None:
            clock.time("the step, as a graph", graph.run, round_, turn)
    return {name: 1000 * statistics.median(values) for name, values in clock.times.items()}


def kernels(batch: Any, config: BuildConfig, options: argparse.Namespace, most: int = 14) -> dict[str, float]:
    """Milliseconds of the kernels of a step, by name, the longest first."""
    images, cameras, samples, fits = batch
    run = fresh(backend(options.kernels, "cuda"), images, cameras, samples, fits, config, "cuda", options.graphs)
    turns = [[v % len(cameras)] * len(fits) for v in range(options.rounds)]
    run.run(0, turns)  # compiles, makes room and captures
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run.run(options.rounds, turns)
        torch.cuda.synchronize()
    spent: dict[str, float] = {}
    for event in profiler.key_averages():  # templates differ in what is cut off here
        name = event.key[:60]
        spent[name] = spent.get(name, 0.0) + event.self_device_time_total / 1e3 / len(turns)
    ordered = sorted(spent, key=lambda name: -spent[name])
    found = {name: spent[name] for name in ordered[:most]}
    return found | {f"{len(ordered) - most} others": sum((spent[name] for name in ordered[most:]), 0.0)}


def fresh(
    twin: Any, images: Tensor, cameras: Any, samples: list[SurfaceSamples], fits: list[Any], config: BuildConfig,
    device: str, graphs: bool,
) -> Iterations:  # fmt: skip
    """A batch in the state that its fits ended with."""
    splats = [
        fit.gaussians if isinstance(fit, Fit) else initialise(samples[b], config.fit) for b, fit in enumerate(fits)
    ]
    return Iterations(twin, Padded(splats, torch.device(device)), images, cameras, config.fit, graphs)


def pairs(wp: Any, arguments: list[Tensor], cams: tuple[Tensor, Tensor], cameras: Any) -> None:
    from gsmae.ops.warp import splats

    flat = splats._flat(*arguments)
    where = splats._cameras(arguments[0], *cams, arguments[0].new_zeros(0, 2), cameras.width, cameras.height)
    splats._bin(wp, flat, where, Capacity(len(flat[0]) * 12, arguments[0].device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--profile", choices=PROFILES, default="fast")
    parser.add_argument("--iterations", type=int, default=0, help="0 = the profile's")
    parser.add_argument("--resolution", type=int, default=0, help="0 = the profile's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--meshes", type=Path, default=Path(__file__).parents[2] / "examples/meshes")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-graphs", dest="graphs", action="store_false")
    options = parser.parse_args()
    device = chosen_device(options.device)
    config = PROFILES[options.profile]
    if options.resolution:
        config = config.model_copy(update={"resolution": options.resolution})
    if options.iterations:
        config = config.model_copy(update={"fit": config.fit.model_copy(update={"iterations": options.iterations})})
    options.graphs = options.graphs and device == "cuda"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, kernels {backend(options.kernels, device).name}, profile "
          f"{options.profile}, {config.fit.iterations} iterations, {config.resolution} px\n")  # fmt: skip
    whole(1, config.model_copy(update={"fit": config.fit.model_copy(update={"iterations": 3})}), options, device)
    heads = ["objects", "objects/h", "fits/h", "meshes s", "views s", "fit s", "quality s", "PSNR dB", "Gaussians",
             "MB an object, reckoned", "MB, peak"]  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    found: dict[int, dict[str, float]] = {}
    seen: dict[str, float] = {}
    for count in options.sizes:
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row, batch = whole(count, config, options, device)
        print(f"| {' | '.join(row)} |", flush=True)
        found[count] = stages(batch, config, options, device)
        seen = kernels(batch, config, options) if device == "cuda" else {}
    print(f"\n| ms a step | {' | '.join(f'{count} objects' for count in found)} |\n|{' --- |' * (len(found) + 1)}")
    for stage in next(iter(found.values())):
        print(f"| {stage} | {' | '.join(f'{times[stage]:.2f}' for times in found.values())} |")
    if seen:
        print(f"\n| kernel, {options.sizes[-1]} objects | ms a step |\n| --- | --- |")
        print("\n".join(f"| {name} | {spent:.3f} |" for name, spent in seen.items()))


if __name__ == "__main__":
    main()

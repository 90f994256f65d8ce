"""Times the splat rasteriser and the photometric loss, every variant side by side, and prints a Markdown table.

    python scripts/bench/splats.py [--rounds 15] [--threads 1] [--reference]

Each round runs every case once, one variant after the other, so that a busy machine disturbs all of them alike; the
figures are medians of CPU milliseconds (all threads) and of wall milliseconds.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gsmae import ops
from gsmae.ops.native import library

SCENES = ["5k init", "5k trained", "20k trained sh3"]


def scene(name: str, size: int, views: int = 1) -> tuple[Any, ...]:
    """Arguments of ops.rasterize: splats on a torus and a sphere, as they start a fit (init) or end it (trained)."""
    count = 20_000 if name.startswith("20k") else 5_000
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    angles = 2 * math.pi * uniform(count, 2)
    bump = 1 + 0.08 * torch.sin(7 * angles[:, 0]) * torch.cos(5 * angles[:, 1])
    around = 0.65 + 0.25 * bump * torch.cos(angles[:, 1])
    torus = torch.stack([around * torch.cos(angles[:, 0]), around * torch.sin(angles[:, 0])], 1)
    torus = torch.cat([torus, 0.25 * bump[:, None] * torch.sin(angles[:, 1:])], 1)
    sphere = 0.35 * torch.nn.functional.normalize(normal(count, 3), dim=1)
    means = torch.where(uniform(count, 1) < 0.75, torus, sphere)

    spacing = torch.cat([torch.cdist(part, means).topk(4, largest=False).values[:, 1:] for part in means.split(1000)])
    scales = spacing.square().mean(1).sqrt()[:, None].expand(-1, 3)
    opacities = torch.full((count,), 0.1)
    if "trained" in name:
        scales = scales * torch.exp(0.5 * normal(count, 3)) * torch.tensor([1.0, 1.0, 0.3])
        opacities = 0.1 + 0.9 * uniform(count)
    sh = 0.3 * normal(count, 16 if "sh3" in name else 1, 3)

    viewmats, focal = torch.eye(4).repeat(views, 1, 1), 0.5 * size / math.tan(0.5 * 0.6911)
    for view in range(views):
        turn, tilt = 0.4 + 2 * math.pi * view / views, 0.9
        c, s, ct, st = math.cos(turn), math.sin(turn), math.cos(tilt), math.sin(tilt)
        viewmats[view, :3, :3] = torch.tensor([[c, -s, 0], [s * ct, c * ct, -st], [s * st, c * st, ct]])
        viewmats[view, 2, 3] = 3.0
    Ks = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]).repeat(views, 1, 1)
    return means, normal(count, 4), scales.contiguous(), opacities, sh, viewmats, Ks, size, size, torch.ones(3)


class Clock:
    """Medians of CPU and wall time by name."""

    def __init__(self) -> None:
        self.times: dict[str, list[tuple[float, float]]] = {}

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = call()
        spent = time.process_time() - cpu, time.perf_counter() - wall
        self.times.setdefault(name, []).append(spent)
        return result

    def row(self, name: str) -> str:
        cpu, wall = (statistics.median(column) * 1000 for column in zip(*self.times[name], strict=True))
        return f"| {name} | {cpu:.2f} | {wall:.2f} |"


def time_splats(clock: Clock, label: str, arguments: tuple[Any, ...]) -> None:
    splats = [t.clone().requires_grad_() for t in arguments[:5]]
    offsets = torch.zeros(len(arguments[5]), len(splats[0]), 2, requires_grad=True)
    colors, _ = clock.time(f"{label}, forward", lambda: ops.rasterize(*[*splats, *arguments[5:], offsets]))
    gradient = torch.ones_like(colors)
    clock.time(f"{label}, backward", lambda: colors.backward(gradient))


def time_loss(clock: Clock, label: str, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    image, target = torch.rand(2, 1, size, size, 3, generator=generator)
    image.requires_grad_()
    clock.time(label, lambda: ops.l1_ssim(image, target).backward())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 400])
    parser.add_argument("--reference", action="store_true", help="also time plain torch (seconds a round)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    variants = library.variants() + ([library.REFERENCE] if options.reference or not library.available() else [])

    clock = Clock()
    scenes = {(name, size): scene(name, size) for name in SCENES for size in options.sizes}
    for round_ in range(options.rounds + 2):
        if round_ == 2:  # two rounds to warm up
            clock.times.clear()
        for (name, size), arguments in scenes.items():
            for variant in variants:
                with library.using(variant):
                    time_splats(clock, f"{name}, {size} px, {variant}", arguments)
        for size in options.sizes:
            for variant in variants:
                with library.using(variant):
                    time_loss(clock, f"L1 + SSIM with gradient, {size} px, {variant}", size)
    print(f"{options.rounds} rounds, {options.threads} thread(s)\n")
    print("| case | CPU ms | wall ms |\n|---|---|---|")
    for name in clock.times:
        print(clock.row(name))


if __name__ == "__main__":
    main()

"""Views -> splats, many objects at once: what `fit` does, in one launch for all. Needs a GPU to be worth it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gsmae.gaussians import Gaussians
from gsmae.ops.batches import Backend, backend

from ..profiles import FitConfig
from ..quality import psnr
from ..rendering.cameras import Cameras
from ..surface import SurfaceSamples
from .density import budget_at, densified, most_important, prunings_at
from .fit import Fit, NumericError, initialise
from .iterations import Iterations
from .padded import Padded, Rows

log = logging.getLogger(__name__)

WINDOW = 10  # steps on a GPU between two looks at what went wrong in them
WINDOW_ON_CPU = 1


@dataclass
class _Object:
    """What the host knows about one object of the batch."""

    number: int  # among those that were given
    generator: torch.Generator
    start: int
    order: list[int] = field(default_factory=list)
    best: Gaussians | None = None
    best_psnr: float = -math.inf
    stale: int = 0
    rescued: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    good: tuple[Rows, tuple[Rows, Rows], int] | None = None


def fit_many(
    images: Tensor,
    cameras: Cameras,
    val_images: Tensor,
    val_cameras: Cameras,
    samples: Sequence[SurfaceSamples],
    config: FitConfig,
    seeds: Sequence[int],
    kernels: str = "auto",
    on_step: Callable[[int, int], None] = lambda step, objects: None,
    graphs: bool = True,
) -> list[Fit | NumericError]:
    """Optimise one splat for each object, as `fit` does: the same schedule, draws and rules, object by object.

    images      [B, V, H, W, 3] uint8, the training views, on white; where they are, the work is done
    val_images  [B, V', H, W, 3] uint8
    samples, seeds  [B]
    kernels     a name in `gsmae.ops.batches.BACKENDS`, or "auto"
    on_step     is told how many steps are done, and how many objects are still being fitted
    graphs      on a GPU, capture the iteration as a CUDA graph where nothing in it waits
    returns     the results, on the CPU, in order; NumericError for an object whose numbers could not be kept finite

    An object's result does not depend on which others are in the batch, but for rounding on a GPU, where sums are taken
    in any order. Objects that stop early leave the batch. On a GPU a step that is not finite is noticed, and buffers
    are made larger, after up to WINDOW steps; steps that lacked room changed nothing and are repeated.
    """
    device = images.device
    twin = backend(kernels, device)
    batch = [
        _Object(b, torch.Generator().manual_seed(seed), min(config.initial, len(samples[b].points)))
        for b, seed in enumerate(seeds)
    ]
    state = Padded([initialise(s, config) for s in samples], device)
    run = Iterations(twin, state, images, cameras, config, graphs and device.type == "cuda")
    views = _Views(twin, val_images, val_cameras)
    results: list[Fit | NumericError | None] = [None] * len(batch)
    for b, one in enumerate(batch):
        one.good = state.row(b), state.moment(b), 0
    step = 0
    while batch and step < config.iterations:
        stop = _next_stop(step, config, WINDOW if device.type == "cuda" else WINDOW_ON_CPU)
        chosen = [[_next_view(one, len(cameras)) for one in batch] for _ in range(stop - step)]
        run.run(step, chosen)
        step = stop
        well, lost = run.verdict()
        gone = _rescue(batch, state, lost, step, results)
        changed = bool(lost)
        growing = [b for b in range(len(batch)) if well[b] and b not in lost]
        changed |= _grow(batch, state, growing, step, config, run)
        if step % config.val_every == 0 and growing:
            values = views.look(state, [batch[b].number for b in growing], growing)
            for b, value in zip(growing, values, strict=True):
                _note(batch[b], state.gaussians(b), value, step, config)
                batch[b].good = state.row(b), state.moment(b), int(state.steps[b])
            settled = step > config.iterations * max(config.grow_until, *config.prune_at, 0)
            gone |= {b for b in growing if settled and batch[b].stale >= config.patience}
        if gone and step < config.iterations:
            for b in gone:
                if results[batch[b].number] is None:
                    results[batch[b].number] = _result(batch[b], step)
            staying = [b for b in range(len(batch)) if b not in gone]
            batch = [batch[b] for b in staying]
            run.keep(staying)
        elif changed:
            run.changed()
        on_step(step, len(batch))
    left = [b for b, one in enumerate(batch) if results[one.number] is None]
    late = [b for b in left if not batch[b].history or batch[b].history[-1]["step"] != step]
    if late:
        values = views.look(state, [batch[b].number for b in late], late)
        for b, value in zip(late, values, strict=True):
            _note(batch[b], state.gaussians(b), value, step, config)
    for b in left:
        results[batch[b].number] = _result(batch[b], step)
    return [r for r in results if r is not None]


class _Views:
    """The validation views of all objects."""

    def __init__(self, twin: Backend, images: Tensor, cameras: Cameras):
        self.twin, self.images, self.cameras = twin, images, cameras
        self.viewmats = torch.from_numpy(cameras.viewmats).to(images.device)
        self.Ks = torch.from_numpy(cameras.Ks).to(images.device)

    @torch.no_grad()
    def look(self, state: Padded, numbers: list[int], chosen: list[int]) -> list[float]:
        """PSNR of some objects of the batch, by one view of all of them at a time."""
        c, v = self.cameras, state.values
        index = torch.tensor(chosen, device=state.device)
        splats = [
            t[index]
            for t in (v["means"], v["quats"], v["log_scales"].exp(), v["logit_opacities"].sigmoid(),
                      torch.cat([v["sh0"], v["shN"]], dim=2))
        ]  # fmt: skip
        white = torch.ones(3, device=state.device)
        found = []
        for i in range(len(c)):
            cameras = [t[i].expand(len(chosen), 1, *t.shape[1:]) for t in (self.viewmats, self.Ks)]
            pictures, _ = self.twin.rasterize_many(*splats, *cameras, c.width, c.height, white)
            found.append(psnr(pictures[:, 0].clamp(0, 1), self.images[numbers, i].float() / 255))
        return torch.stack(found).mean(dim=0).tolist()


def _next_stop(step: int, config: FitConfig, most: int) -> int:
    """The end of a run of steps after which something may happen."""
    c = config
    every = [c.grow_every, c.val_every] + ([c.opacity_reset_every] if c.opacity_reset_every else [])
    stops = [step + most, c.iterations, *(round(point * c.iterations) for point in c.prune_at)]
    stops += [(step // n + 1) * n for n in every]
    return min(stop for stop in stops if stop > step)


def _next_view(one: _Object, views: int) -> int:
    if not one.order:
        one.order = torch.randperm(views, generator=one.generator).tolist()
    return one.order.pop()


def _grow(
    batch: list[_Object], state: Padded, chosen: list[int], step: int, config: FitConfig, run: Iterations
) -> bool:
    """Clone, split and prune where the schedule asks for it at this step; whether anything was changed."""
    c, share, changed = config, step / config.iterations, False
    if step % c.grow_every == 0 and budget_at(share, 0, c) is not None:
        new = {}
        for b in chosen:
            count, before = state.counts[b], state.moment(b)
            budget = budget_at(share, batch[b].start, c)
            assert budget is not None
            rows, kept = densified(
                state.row(b), state.pull[b, :count], state.seen[b, :count], budget, c, batch[b].generator
            )
            first, second = ({n: _taken(t, kept) for n, t in m.items()} for m in before)
            new[b] = rows, (first, second)
        state.replace(new)
        changed = True
    for _ in range(prunings_at(step, c)):
        new = {}
        for b, score in zip(chosen, run.importances(chosen), strict=True):
            index = most_important(score, c)
            first, second = ({n: t[index] for n, t in m.items()} for m in state.moment(b))
            new[b] = {n: t[index] for n, t in state.row(b).items()}, (first, second)
            batch[b].best, batch[b].best_psnr, batch[b].stale = None, -math.inf, 0
        state.replace(new)
        changed = True
    if c.opacity_reset_every and step % c.opacity_reset_every == 0 and share < c.grow_until:
        state.reset_opacities(chosen)
    return changed


def _taken(average: Tensor, kept: Tensor) -> Tensor:
    """Averages of the rows that stay, zeros for those that are new."""
    out = average[kept.clamp_min(0)]
    out[kept < 0] = 0
    return out


def _rescue(
    batch: list[_Object], state: Padded, lost: list[int], step: int, results: list[Fit | NumericError | None]
) -> set[int]:
    """Give the last good state back, at half the rates, to objects that were not finite in three steps; those to which
    it happens again fail. Returns the latter."""
    gone: set[int] = set()
    back = {}
    for b in lost:
        one = batch[b]
        if one.rescued:
            message = f"gradients were not finite in three steps up to {step}, twice"
            results[one.number] = NumericError(message)
            gone.add(b)
            continue
        assert one.good is not None
        rows, moments, steps = one.good
        back[b] = rows, moments
        state.steps[b] = steps
        state.scale[b] *= 0.5
        one.rescued = True
    if back:
        state.replace(back)
    return gone


def _note(one: _Object, now: Gaussians, value: float, step: int, config: FitConfig) -> None:
    """What the validation views say about an object."""
    one.stale = 0 if value > one.best_psnr + config.min_gain else one.stale + 1
    if value > one.best_psnr:
        one.best, one.best_psnr = now, value
    one.history.append({"step": step, "psnr_val": value, "gaussians": len(now)})


def _result(one: _Object, step: int) -> Fit:
    assert one.best is not None
    return Fit(one.best.to("cpu"), step, one.best_psnr, tuple(one.history))

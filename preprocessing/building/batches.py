"""Many objects at once: meshes -> views on a device -> splats -> committed records. The route of a build on a GPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engines.resources import workers_of_this_gpu
from ..faults import is_out_of_memory
from ..fitting.fit import Fit, NumericError
from ..fitting.fit_many import fit_many
from ..fitting.padded import STEP
from ..meshes import Mesh, load_mesh
from ..profiles import BuildConfig
from ..rendering.views import draw_views
from ..sources import MeshItem
from ..surface import SurfaceSamples, sample_surface
from . import notes
from .limits import OutOfMemory, capped, within_memory
from .objects import finish, rigs_of
from .records import Order, commit, commit_failure, done, is_charged, settled
from .watches import Watch

log = logging.getLogger(__name__)

WAITING = "waiting"  # for the other objects of the batch
SHARE = 0.8  # of the free memory that a batch may take
PAIRS = 12  # of tile and splat for a Gaussian, with what the buffers have to spare


def bytes_per_object(config: BuildConfig) -> int:
    """Memory that one object of a batch takes on the device while it is fitted, about.

    Pictures: uint8, all views. Gaussians at the cap: 11 + 3 K numbers, each as value, gradient, two averages, the last
    good state with its two averages, and the best state; projected, 25 numbers and 9 sums. Pairs of tile and splat: 24
    bytes, sorting included. The picture of a step with its loss: 28 numbers a pixel. For `fast` it says 69 MB where 66
    were measured (docs/results.md).
    """
    c, f = config, config.fit
    cap = -(-max(f.cap, f.initial) // STEP) * STEP
    pixels = c.resolution**2
    pictures = 3 * pixels * (c.views + c.val_views + c.test_views)
    numbers = 11 + 3 * (f.sh_degree + 1) ** 2
    return pictures + cap * (4 * (8 * numbers + 34) + 24 * PAIRS) + 4 * 28 * pixels


def objects_at_once(config: BuildConfig, device: str, wanted: int) -> int:
    """How many objects fit into the free memory of a device, at most `wanted`, at least one.

    Of a GPU: what is free, or kept by torch in this process for its next use, but no more than this worker's part of
    all there is, since those that share the GPU may not have begun.
    """
    if device.startswith("cuda"):
        free, whole = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = min(free + kept, whole // workers_of_this_gpu())
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(wanted, int(SHARE * free) // bytes_per_object(config)))


@dataclass
class _Loaded:
    """An object on its way."""

    item: MeshItem
    watch: Watch
    mesh: Mesh
    samples: SurfaceSamples
    seed: int
    found: os.stat_result  # of the mesh file, when it was read


def build_batch(items: Sequence[MeshItem], order: Order) -> list[dict[str, Any]]:
    """Objects from meshes to committed records, many at a time; the records in the order of the items.

    A failure is a record of its object, and harms no other. When the device's memory runs out the batch is halved, and
    an object that is alone gets fewer Gaussians, as `limits.within_memory` says. What this build has settled before is
    not tried again. Raises OSError where the folder cannot be written, Superseded where it belongs to a later build,
    and what is a fault of the GPU.
    """
    records: dict[str, dict[str, Any]] = {}
    size = objects_at_once(order.config, order.device, order.launch)
    todo = list(items)
    while todo:
        notes.check(order.out, order.token)
        todo = _unsettled(todo, order, records)  # also of a batch that ran out of memory, whose records are committed
        some, rest = todo[:size], todo[size:]
        try:
            records |= _build(some, order) if some else {}
            todo = rest
        except Exception as error:
            if not is_out_of_memory(error) or len(some) == 1:
                raise
            size = len(some) // 2
            log.warning("out of memory with %d objects at once; going on with %d", len(some), size)
    return [records[item.uid] for item in items]


def _unsettled(items: Sequence[MeshItem], order: Order, records: dict[str, dict[str, Any]]) -> list[MeshItem]:
    """The objects that are left to do; the records of the others are added to `records`."""
    left = []
    for item in items:
        before = settled(order, item)
        if before is None:
            left.append(item)
        else:
            records[item.uid] = before
    return left


def _build(items: Sequence[MeshItem], order: Order) -> dict[str, dict[str, Any]]:
    """The records of one batch, by uid."""
    c, device = order.config, order.device
    rigs = rigs_of(c)
    shape = (c.resolution, c.resolution, 3)
    views = {
        name: torch.empty(len(items), len(cameras), *shape, dtype=torch.uint8, device=device)
        for name, cameras in rigs.items()
    }
    records: dict[str, dict[str, Any]] = {}
    ready: list[_Loaded] = []
    for item in items:
        made = _loaded(item, order, views, len(ready))
        if isinstance(made, _Loaded):
            ready.append(made)
        else:
            records[item.uid] = made

    def fitted(numbers: Sequence[int], cap: int) -> list[Fit | NumericError]:
        chosen = capped(c.fit, cap)
        part = slice(numbers[0], numbers[-1] + 1)
        for one in ready[part]:
            one.watch.enter("fit")
        results = fit_many(
            views["train"][part], rigs["train"], views["val"][part], rigs["val"],
            [one.samples for one in ready[part]], chosen, [one.seed for one in ready[part]], order.kernels,
        )  # fmt: skip
        for one in ready[part]:
            one.watch.enter(WAITING)
        return results

    for number, result, cap in within_memory(fitted, range(len(ready)), max(1, len(ready)), c.fit.cap):
        one = ready[number]
        records[one.item.uid] = _finished(one, order, result, cap, views["test"][number], len(ready))
    return records


def _loaded(item: MeshItem, order: Order, views: dict[str, Tensor], at: int) -> _Loaded | dict[str, Any]:
    """An object with its pictures drawn at place `at` of `views`, or the record of its failure."""
    c = order.config
    watch = Watch(order.out, item.uid, order.token, order.device)
    try:
        found = item.path.stat()
        seed = order.seed_of(item.uid)
        watch.enter("load")
        mesh = load_mesh(item, limits=order.limits.mesh)
        samples = sample_surface(mesh, max(c.fit.initial, c.surface_points), seed)
        watch.enter("render")
        rigs = rigs_of(c)
        for name, pictures in zip(
            rigs, draw_views(mesh, list(rigs.values()), c.supersample, order.device), strict=True
        ):
            views[name][at] = pictures
        watch.enter(WAITING)
        return _Loaded(item, watch, mesh, samples, seed, found)
    except Exception as error:
        if not is_charged(error, watch.stage):
            raise
        if is_out_of_memory(error) and len(next(iter(views.values()))) > 1:
            raise
        return commit_failure(order, item, watch.stage, error, watch.run())


def _finished(
    one: _Loaded, order: Order, result: Fit | NumericError | OutOfMemory, cap: int, tests: Tensor, together: int
) -> dict[str, Any]:
    """The committed record of a fitted object, or of its failure."""
    item, watch = one.item, one.watch
    try:
        if not isinstance(result, Fit):
            watch.enter("fit")
            raise result
        patterns = order.parts.get(item.category, {})
        made = finish(item, order.out, order.config, patterns, one.mesh, one.samples, tests, result, cap, watch.enter)
    except Exception as error:
        if not is_charged(error, watch.stage):
            raise
        return commit_failure(order, item, watch.stage, error, _share(watch, together))
    notes.check(order.out, order.token)
    run = _share(watch, together) | {"device": order.device, "together": together}
    return commit(order, item, done(order, item, made, one.found, run))


def _share(watch: Watch, together: int) -> dict[str, Any]:
    """What one object took: of the time that all were fitted, its part; not that in which it waited for others."""
    run = watch.run()
    run["stages"].pop(WAITING, None)
    stages = run["stages"] | {"fit": round(run["stages"].get("fit", 0.0) / together, 3)}
    return run | {"stages": stages, "seconds": round(sum(stages.values()), 2)}

"""Gaussian splats of many objects to pictures in one launch; the promises are those of gsmae.ops.reference.batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.batches import check_batch
from ..reference.splats import TILE, check_arguments
from . import runtime

SUMS = 9  # of a splat over its pixels, see kernels_blend.backward
VIEWS_AT_ONCE = 4  # of each object in `contributions_many`


class Capacity:
    """How many pairs of tile and splat a call has room for, so that it needs no answer from the GPU.

    A call that was given one never waits: pairs beyond `pairs` are left out, and `needed` remembers the largest number
    that was asked for. Whoever gave it looks from time to time (`missed`), and repeats what was done in between when
    that was more than `pairs`, after `grow`.

    pairs   room
    needed  [1] int64 on the device: the largest number of pairs since the last look
    """

    SLACK = 1.3  # room for so many times what was needed
    TIGHT = 1.05  # room that is less than so many times what was needed is enlarged before it overflows

    def __init__(self, pairs: int, device: torch.device | str):
        self.pairs = max(int(pairs), 1)
        self.needed = torch.zeros(1, dtype=torch.int64, device=device)

    def overflowed(self) -> Tensor:
        """Whether pairs were left out since the last look, [1] bool on the device."""
        return self.needed > self.pairs

    def grow(self) -> bool:
        """Look: make room, with some to spare, where it was too little or tight; says whether pairs were left out."""
        needed = int(self.needed)
        self.needed.zero_()
        missed = needed > self.pairs
        if needed * self.TIGHT > self.pairs:
            self.pairs = int(needed * self.SLACK)
        return missed


class Cameras(NamedTuple):
    """One launch: B objects of N splats in V views each."""

    viewmats: Tensor  # [B * V, 4, 4]
    Ks: Tensor  # [B * V, 3, 3]
    offsets: Tensor  # [B * V * N, 2], or no rows
    objects: int
    views: int
    splats: int
    width: int
    height: int

    @property
    def tiles_x(self) -> int:
        return -(-self.width // TILE)

    @property
    def tiles(self) -> int:
        return self.tiles_x * -(-self.height // TILE)


class Bins(NamedTuple):
    """What each tile blends: `values` [pairs] are rows of `records`, in runs `bounds` [B * V * tiles, 2]."""

    records: Tensor
    values: Tensor
    bounds: Tensor


def rasterize_many(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    background: Tensor,
    offsets: Tensor | None = None,
    capacity: Capacity | None = None,
) -> tuple[Tensor, Tensor]:
    """See gsmae.ops.reference.batches.rasterize_many.

    capacity  room for pairs of tile and splat; None: as many as there are, for which the host waits once
    """
    check_batch(means, quats, scales, opacities, sh, viewmats, Ks, width, height, background, offsets)
    offsets = means.new_zeros(0, 2) if offsets is None else offsets
    return _Rasterize.apply(
        means, quats, scales, opacities, sh, background, offsets, viewmats, Ks, width, height, capacity
    )  # type: ignore[return-value]


def contributions(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
) -> Tensor:
    """See gsmae.ops.reference.splats.contributions: a batch of one object."""
    return contributions_many(
        means[None], quats[None], scales[None], opacities[None], sh[None], viewmats[None], Ks[None], width, height
    )[0]


@torch.no_grad()
def contributions_many(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
) -> Tensor:
    """See gsmae.ops.reference.batches.contributions_many."""
    check_batch(means, quats, scales, opacities, sh, viewmats, Ks, width, height)
    splats = _flat(means, quats, scales, opacities, sh)
    total = torch.zeros(means.shape[:2], dtype=torch.float64, device=means.device)
    for first in range(0, viewmats.shape[1], VIEWS_AT_ONCE):
        some = slice(first, first + VIEWS_AT_ONCE)
        cameras = _cameras(means, viewmats[:, some], Ks[:, some], means.new_zeros(0, 2), width, height)
        with runtime.on(means.device) as wp:
            bins = _bin(wp, splats, cameras, None)
            rows = torch.zeros(len(bins.records), dtype=torch.float64, device=means.device)
            threads = cameras.objects * cameras.views * cameras.tiles * TILE * TILE
            runtime.launch(
                wp, runtime.kernels("blend").weigh, threads, means.device, *bins, cameras.tiles_x, cameras.tiles,
                width, height, rows,
            )  # fmt: skip
        total += rows.view(cameras.objects, cameras.views, cameras.splats).sum(1)
    return total.float()


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    background: Tensor,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See gsmae.ops.reference.splats.rasterize: a batch of one object."""
    check_arguments(means, quats, scales, opacities, sh, viewmats, Ks, width, height, background, offsets)
    shift = None if offsets is None else offsets[None]
    if torch.is_grad_enabled() or len(viewmats) <= VIEWS_AT_ONCE:
        colors, alphas = rasterize_many(
            means[None], quats[None], scales[None], opacities[None], sh[None], viewmats[None], Ks[None], width, height,
            background, shift,
        )  # fmt: skip
        return colors[0], alphas[0]
    parts = []
    for first in range(0, len(viewmats), VIEWS_AT_ONCE):  # so that many views need no memory for all of them
        some = slice(first, first + VIEWS_AT_ONCE)
        shift = None if offsets is None else offsets[some]
        parts.append(
            rasterize(means, quats, scales, opacities, sh, viewmats[some], Ks[some], width, height, background, shift)
        )
    colors, alphas = (torch.cat(values) for values in zip(*parts, strict=True))
    return colors, alphas


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        means, quats, scales, opacities, sh, background, offsets, viewmats, Ks, width, height, capacity = inputs
        cameras = _cameras(means, viewmats, Ks, offsets, width, height)
        splats = _flat(means, quats, scales, opacities, sh)
        pictures = cameras.objects * cameras.views
        colors = means.new_empty(pictures, height, width, 3)
        alphas = means.new_empty(pictures, height, width)
        with runtime.on(means.device) as wp:
            bins = _bin(wp, splats, cameras, capacity)
            runtime.launch(
                wp, runtime.kernels("blend").forward, pictures * cameras.tiles * TILE * TILE, means.device, *bins,
                background.detach().view(1, 3), cameras.tiles_x, cameras.tiles, width, height, colors, alphas,
            )  # fmt: skip
        ctx.save_for_backward(*splats, *cameras[:3], *bins, colors, alphas)
        ctx.shape = cameras[3:]
        ctx.coefficients = sh.shape[2]
        ctx.with_offsets = len(offsets) > 0
        ctx.set_materialize_grads(False)
        shape = cameras.objects, cameras.views, height, width
        return colors.view(*shape, 3), alphas.view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any):
        g_colors, g_alphas = gradients
        if g_colors is None and g_alphas is None:
            return (None,) * 12
        *splats, viewmats, Ks, offsets, records, values, bounds, colors, alphas = ctx.saved_tensors
        cameras = Cameras(viewmats, Ks, offsets, *ctx.shape)
        device, width, height = records.device, cameras.width, cameras.height
        g_colors = torch.zeros_like(colors) if g_colors is None else g_colors.contiguous().view(colors.shape)
        alphas_given = g_alphas is not None
        g_alphas = g_alphas.contiguous().view(alphas.shape) if alphas_given else alphas.new_zeros(0, 0, 0)
        sums = records.new_zeros(len(records), SUMS)
        rests = torch.empty_like(alphas) if ctx.needs_input_grad[5] else alphas.new_zeros(0, 0, 0)
        found = [torch.empty_like(t) for t in splats[:4]] + [torch.zeros_like(splats[4])]
        g_offsets = torch.empty_like(offsets)
        with runtime.on(device) as wp:
            runtime.launch(
                wp, runtime.kernels("blend").backward, len(colors) * cameras.tiles * TILE * TILE, device, records,
                values, bounds, cameras.tiles_x, cameras.tiles, width, height, colors, alphas, g_colors, g_alphas, sums,
                rests,
            )  # fmt: skip
            runtime.launch(
                wp, runtime.kernels("project").backward, cameras.objects * cameras.splats, device,
                _struct(wp, splats), ctx.coefficients, cameras.splats, cameras.views, viewmats, Ks, offsets, width,
                height, sums, _struct(wp, found), g_offsets,
            )  # fmt: skip
        g_background = None
        if ctx.needs_input_grad[5]:
            g_background = (g_colors * rests[..., None]).sum((0, 1, 2))
        b, n = cameras.objects, cameras.splats
        g_splats = [t.view(b, n, *t.shape[1:]) for t in found[:4]] + [found[4].view(b, n, ctx.coefficients, 3)]
        if ctx.with_offsets:
            g_offsets = g_offsets.view(b, cameras.views, n, 2)
        return (*g_splats, g_background, g_offsets if ctx.with_offsets else None, *(None,) * 5)


def _cameras(means: Tensor, viewmats: Tensor, Ks: Tensor, offsets: Tensor, width: int, height: int) -> Cameras:
    objects, splats = means.shape[:2]
    views = viewmats.shape[1]
    flat = viewmats.detach().reshape(-1, 4, 4).contiguous(), Ks.detach().reshape(-1, 3, 3).contiguous()
    return Cameras(*flat, offsets.detach().reshape(-1, 2).contiguous(), objects, views, splats, width, height)


def _flat(*tensors: Tensor) -> list[Tensor]:
    """Objects and splats in one axis."""
    return [t.detach().reshape(-1, *t.shape[2:]).contiguous() for t in tensors]


def _struct(wp: Any, splats: Sequence[Tensor]) -> Any:
    """The kernels' Splats."""
    value = runtime.kernels("project").Splats()
    for name, tensor, kind in zip(
        ("means", "quats", "scales", "opacities", "sh"), splats, (wp.vec3, wp.vec4, wp.vec3, wp.float32, wp.vec3),
        strict=True,
    ):  # fmt: skip
        setattr(value, name, wp.from_torch(tensor, dtype=kind, requires_grad=False))
    return value


def _bin(wp: Any, splats: list[Tensor], cameras: Cameras, capacity: Capacity | None) -> Bins:
    """Project, list the pairs of tile and splat, sort them, and find each tile's run."""
    project, bins = runtime.kernels("project"), runtime.kernels("bins")
    device, width, height = splats[0].device, cameras.width, cameras.height
    rows, tiles = cameras.objects * cameras.views * cameras.splats, cameras.objects * cameras.views * cameras.tiles
    records = torch.empty(rows, 3, 4, device=device)
    counts = torch.empty(rows, dtype=torch.int32, device=device)
    runtime.launch(
        wp, project.forward, rows, device, _struct(wp, splats), splats[4].shape[1], cameras.splats, cameras.views,
        *cameras[:3], width, height, TILE, records, counts,
    )  # fmt: skip
    bounds = torch.zeros(tiles, 2, dtype=torch.int32, device=device)
    if rows == 0:
        return Bins(records, counts, bounds)
    ends = counts.cumsum(0, dtype=torch.int64)
    room = int(ends[-1]) if capacity is None else capacity.pairs
    if room >= 2**30:
        raise ValueError(f"{room} pairs of tile and splat: draw fewer objects, views or pixels at once")
    keys = torch.empty(2 * room, dtype=torch.int64, device=device)  # as much again is scratch of the sort
    values = torch.empty(2 * room, dtype=torch.int32, device=device)
    needed = torch.zeros(1, dtype=torch.int64, device=device) if capacity is None else capacity.needed
    runtime.launch(
        wp, bins.emit, rows, device, records, counts, ends, cameras.splats, cameras.tiles_x,
        cameras.tiles // cameras.tiles_x, TILE, width, height, room, keys, values,
    )  # fmt: skip
    runtime.launch(wp, bins.fill, room, device, ends, room, tiles, keys, needed)
    if room:
        wp.utils.radix_sort_pairs(
            wp.from_torch(keys), wp.from_torch(values), room, end_bit=bins.DEPTH_BITS + tiles.bit_length()
        )
    runtime.launch(wp, bins.ranges, room, device, keys, room, tiles, bounds)
    return Bins(records, values, bounds)

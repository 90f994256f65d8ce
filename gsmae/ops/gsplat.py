"""Batched drawing by gsplat (Ye et al. 2024), behind the interface of gsmae.ops.reference.batches; needs a GPU.

gsplat (Apache-2.0, pip install 'gsplat>=1.5.3,<1.6' beside a CUDA toolkit) compiles its CUDA at first use, which takes
minutes on many cores and up to an hour on two: `prepare` does it once, before processes are spread. It waits for the
GPU in every call, so an iteration of it cannot be captured as a graph. It differs from the definition where gsplat cuts
splats off by a radius.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..errors import GsmaeError
from .reference.batches import check_batch
from .reference.splats import BLUR, NEAR, TILE, sh_basis

_log = logging.getLogger(__name__)
_VIEWS_AT_ONCE = 4
# what gsplat's own build reads: three channels are all that is drawn here, and neither 2DGS nor 3DGUT is
_ONLY = {"NUM_CHANNELS": "3", "BUILD_2DGS": "0", "BUILD_3DGUT": "0", "BUILD_RELOC": "0", "BUILD_ADAM": "0"}


@cache
def prepare() -> None:
    """Load gsplat, after compiling its kernels if nobody did on this machine; says so before and after.

    Raises GsmaeError where gsplat, a CUDA device or a compiler is missing.
    """
    if not torch.cuda.is_available():
        raise GsmaeError("gsplat needs an NVIDIA GPU that torch can see")
    start = time.monotonic()
    _log.info("loading gsplat; the first time on a machine its kernels are compiled, which can take many minutes")
    with _environment():
        try:
            module: Any = importlib.import_module("gsplat.cuda._backend")
        except ImportError as error:
            raise GsmaeError(f"gsplat cannot be loaded ({error}): pip install 'gsplat>=1.5.3,<1.6'") from None
    if getattr(module, "_C", None) is None:
        raise GsmaeError(
            "gsplat found no CUDA toolkit to compile its kernels with: install nvcc, or use the warp kernels"
        )
    if time.monotonic() - start > 60:
        _log.info("gsplat is ready after %.0f s", time.monotonic() - start)


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
    capacity: Any = None,
) -> tuple[Tensor, Tensor]:
    """See gsmae.ops.reference.batches.rasterize_many; `capacity` is not used."""
    check_batch(means, quats, scales, opacities, sh, viewmats, Ks, width, height, background, offsets)
    towards = means[:, None] - _centres(viewmats)[:, :, None]
    basis = sh_basis(torch.nn.functional.normalize(towards, dim=-1), sh.shape[2])  # [B, V, N, K]
    colors = ((basis[..., None] * sh[:, None]).sum(-2) + 0.5).clamp_min(0)
    return _draw(means, quats, scales, opacities, colors, viewmats, Ks, width, height, background, offsets)


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
    """See gsmae.ops.reference.batches.contributions_many: the gradient of a picture's sum by a splat's colour."""
    check_batch(means, quats, scales, opacities, sh, viewmats, Ks, width, height)
    total = torch.zeros_like(opacities)
    for first in range(0, viewmats.shape[1], _VIEWS_AT_ONCE):
        some = slice(first, first + _VIEWS_AT_ONCE)
        views = viewmats[:, some]
        with torch.enable_grad():
            colors = means.new_zeros(*views.shape[:2], means.shape[1], 3, requires_grad=True)
            picture, _ = _draw(
                means, quats, scales, opacities, colors, views, Ks[:, some], width, height, means.new_zeros(3), None
            )
            (weights,) = torch.autograd.grad(picture[..., 0].sum(), colors)
        total += weights[..., 0].sum(1)
    return total


def _draw(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor,
          Ks: Tensor, width: int, height: int, background: Tensor, offsets: Tensor | None):  # fmt: skip
    """Project, add the offsets, find the tiles, blend. colors [B, V, N, 3]."""
    prepare()
    gsplat: Any = importlib.import_module("gsplat")
    views = viewmats.shape[:2]
    radii, centres, depths, conics, _ = gsplat.fully_fused_projection(
        means, None, quats, scales, viewmats, Ks, width, height, eps2d=BLUR, near_plane=NEAR, packed=False,
        opacities=opacities,
    )  # fmt: skip
    if offsets is not None:
        centres = centres + offsets
    columns, rows = -(-width // TILE), -(-height // TILE)
    _, pairs, order = gsplat.isect_tiles(centres, radii, depths, TILE, columns, rows, packed=False)
    starts = gsplat.isect_offset_encode(pairs, views.numel(), columns, rows).reshape(*views, rows, columns)
    pictures, alphas = gsplat.rasterize_to_pixels(
        centres, conics, colors.contiguous(), opacities[:, None].expand(*views, -1).contiguous(), width, height, TILE,
        starts, order, backgrounds=background.expand(*views, 3).contiguous(), packed=False,
    )  # fmt: skip
    return pictures, alphas[..., 0]


def _centres(viewmats: Tensor) -> Tensor:
    """Of the cameras in the world, [B, V, 3]."""
    return -(viewmats[..., :3, :3].mT @ viewmats[..., :3, 3:])[..., 0]


@contextmanager
def _environment():
    """The variables of gsplat's build, where the user has not set them."""
    added = {name: value for name, value in _ONLY.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]

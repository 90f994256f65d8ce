"""Views -> splat: 3D Gaussian splatting of one object from surface samples (Kerbl et al. 2023; paper, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from gsmae import ops
from gsmae.errors import GsmaeError
from gsmae.gaussians import SH_DC, Gaussians

from ..profiles import FitConfig
from ..quality import evaluate
from ..rendering.cameras import Cameras
from ..surface import SurfaceSamples
from .density import Growth, prunings_at, weighted


class NumericError(GsmaeError):
    """A fit whose numbers could not be kept finite."""


@dataclass(frozen=True)
class Fit:
    """A fitted splat: the state that was best on the validation views, and how it came about."""

    gaussians: Gaussians
    iterations: int
    psnr_val: float
    history: tuple[dict[str, float], ...]


def fit(
    images: np.ndarray,
    cameras: Cameras,
    val_images: np.ndarray,
    val_cameras: Cameras,
    samples: SurfaceSamples,
    config: FitConfig,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> Fit:
    """Optimise a splat until it shows what the views show, or the validation views stop improving.

    The state that is kept is the best on the validation views of those after the last pruning.

    images       [V, H, W, 3] uint8, the training views, on white
    val_images   a few others: they decide when to stop and which state is kept, nothing else
    samples      surface points, the first `config.initial` of which become Gaussians
    Same seed, same bytes on the CPU, whatever the number of threads. A step whose gradients are not finite is skipped;
    after three in a row the last good state comes back at half the rates; three more raise NumericError.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = torch.from_numpy(images)
    viewmats, intrinsics = torch.from_numpy(cameras.viewmats), torch.from_numpy(cameras.Ks)
    white = torch.ones(3)
    state = Growth(initialise(samples, config), config, cameras.width, generator)
    best, best_psnr, history, stale, bad = None, -math.inf, [], 0, 0
    good, rescued = state.snapshot(), False
    order: list[int] = []

    def look(step: int) -> None:
        nonlocal best, best_psnr, stale
        now = state.gaussians()
        psnr = evaluate(now, val_cameras, val_images).psnr
        stale = 0 if psnr > best_psnr + config.min_gain else stale + 1
        if psnr > best_psnr:
            best, best_psnr = now, psnr
        history.append({"step": step, "psnr_val": psnr, "gaussians": len(now)})

    step = 0
    for step in range(1, config.iterations + 1):
        if not order:
            order = torch.randperm(len(targets), generator=generator).tolist()
        view = order.pop()
        p = state.parameters
        offsets = torch.zeros(1, len(p["means"]), 2, requires_grad=True)
        bands = (min(config.sh_degree, step // config.sh_every) + 1) ** 2
        sh = torch.cat([p["sh0"], p["shN"][:, : bands - 1]], dim=1)
        picture, _ = ops.rasterize(
            p["means"], p["quats"], p["log_scales"].exp(), p["logit_opacities"].sigmoid(), sh,
            viewmats[view : view + 1], intrinsics[view : view + 1], cameras.width, cameras.height, white, offsets,
        )  # fmt: skip
        loss = ops.l1_ssim(picture, targets[view : view + 1].float() / 255, config.ssim_weight)
        loss.backward()
        if not state.finite(loss):
            state.forget_gradients()
            bad += 1
            if bad == 3 and rescued:
                raise NumericError(f"gradients were not finite in three steps up to {step}, twice")
            if bad == 3:
                state.restore(good, rates=0.5)
                bad, rescued = 0, True
            continue
        bad = 0
        state.update(offsets.grad, step / config.iterations)
        state.grow(step, lambda g: importance(g, cameras))
        if prunings_at(step, config):
            best, best_psnr, stale = None, -math.inf, 0  # what was before has more Gaussians than are wanted
        if step % config.val_every == 0:
            look(step)
            good = state.snapshot()
            settled = step > config.iterations * max(config.grow_until, *config.prune_at, 0)
            if settled and stale >= config.patience:
                break
        on_step(step)
    if not history or history[-1]["step"] != step:
        look(step)
    assert best is not None
    return Fit(best, step, best_psnr, tuple(history))


def initialise(samples: SurfaceSamples, config: FitConfig) -> Gaussians:
    """One Gaussian per surface sample: flat along the normal, as wide as the distance to its neighbours."""
    n = min(config.initial, len(samples.points))
    points = np.asarray(samples.points[:n], dtype=np.float64)
    near = KDTree(points).query(points, k=min(4, n))[0][:, 1:] if n > 1 else np.full((n, 1), 0.02)
    width = np.sqrt((near**2).mean(axis=1)).clip(1e-4, 0.2)
    scales = torch.from_numpy(width).float()[:, None].repeat(1, 3)
    scales[:, 2] *= 0.3
    sh = torch.zeros(n, (config.sh_degree + 1) ** 2, 3)
    sh[:, 0] = (torch.from_numpy(samples.colors[:n]).float() / 255 - 0.5) / SH_DC
    return Gaussians.from_used(
        torch.from_numpy(points).float(), _facing(torch.from_numpy(samples.normals[:n]).float()), scales,
        torch.full((n,), 0.5), sh,
    )  # fmt: skip


def importance(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """Contribution summed over all views and pixels, times relative volume^0.1, [N] (LightGaussian, eq. 5).

    The reference volume is the one at rank 90 % of the descending order, as in its released code.
    """
    g = gaussians
    seen = ops.contributions(
        g.means, g.quats, g.scales, g.opacities, g.sh,
        torch.from_numpy(cameras.viewmats), torch.from_numpy(cameras.Ks), cameras.width, cameras.height,
    )  # fmt: skip
    return weighted(seen, g.scales)


def _facing(normals: Tensor) -> Tensor:
    """Quaternions wxyz [N, 4] that turn the z axis onto each unit normal [N, 3]."""
    x, y, z = normals.unbind(1)
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=1)
    flipped = torch.tensor([0.0, 1.0, 0.0, 0.0]).expand_as(quats)
    return torch.nn.functional.normalize(torch.where(z[:, None] > -0.9999, quats, flipped), dim=1)

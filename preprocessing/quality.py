"""How well a splat shows its object, on views that it was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsmae import ops
from gsmae.errors import GsmaeError
from gsmae.gaussians import Gaussians
from gsmae.render import render

from .meshes import Mesh
from .rendering.cameras import Cameras


@dataclass(frozen=True)
class Quality:
    """Means over the views of PSNR (dB) and SSIM, and the pictures that they were computed from.

    pictures  [V, H, W, 3] in 0..1, what the splat shows
    """

    psnr: float
    ssim: float
    pictures: Tensor


def evaluate(gaussians: Gaussians, cameras: Cameras, images: np.ndarray | Tensor) -> Quality:
    """Compare a splat with views of the mesh; PSNR is the mean over views, each against white.

    images  [V, H, W, 3] uint8; where they are, the work is done
    """
    targets = (torch.from_numpy(images) if isinstance(images, np.ndarray) else images).float() / 255
    place = targets.device
    viewmats, intrinsics = (torch.from_numpy(m).to(place) for m in (cameras.viewmats, cameras.Ks))
    pictures = render(gaussians.to(place), viewmats, intrinsics, cameras.width, cameras.height)
    return Quality(float(psnr(pictures, targets).mean()), float(ops.ssim(pictures, targets).mean()), pictures)


def surface_distance(gaussians: Gaussians, mesh: Mesh) -> dict[str, float]:
    """How far the centres lie from the mesh surface, in radii of the object: mean, median and 95th percentile.

    Unsigned distances to the triangles, by Open3D's RaycastingScene. Raises GsmaeError where Open3D is missing.
    """
    try:
        open3d: Any = import_module("open3d")
    except ImportError:
        raise GsmaeError("surface distances need Open3D: pip install 'gsmae[full]'") from None
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(open3d.core.Tensor(mesh.vertices), open3d.core.Tensor(mesh.faces.astype(np.uint32)))
    distances = scene.compute_distance(open3d.core.Tensor(gaussians.means.numpy())).numpy()
    middle, far = np.percentile(distances, (50, 95))
    values = {"mean": distances.mean(), "median": middle, "p95": far}
    return {name: round(float(value), 6) for name, value in values.items()}


def psnr(pictures: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per view in dB; equal pictures give 100.

    pictures, targets  [V, H, W, 3] in 0..1
    returns            [V]
    """
    error = (pictures - targets).square().flatten(1).mean(dim=1)
    return -10 * error.clamp_min(1e-10).log10()

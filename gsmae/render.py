"""Pictures of splats: the rasteriser applied to stored Gaussians, and cameras on an orbit to look at them with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import ops
from .gaussians import Gaussians

FOV = 0.6911  # radians, the horizontal field of view of the released cameras
DISTANCE = 1.02 / math.sin(FOV / 2)  # at which the unit sphere fills the picture but for a margin of 2 %


def render(
    gaussians: Gaussians, viewmats: Tensor, Ks: Tensor, width: int, height: int, background: float = 1.0
) -> Tensor:
    """Pictures of a splat on a plain background, without gradients.

    viewmats  [V, 4, 4] world to camera, OpenCV axes
    Ks        [V, 3, 3] in pixels
    returns   [V, H, W, 3] in 0..1
    """
    g = gaussians
    ground = torch.full((3,), background, device=g.means.device)
    with torch.no_grad():
        colors, _ = ops.rasterize(g.means, g.quats, g.scales, g.opacities, g.sh, viewmats, Ks, width, height, ground)
    return colors.clamp(0, 1)


def orbit(count: int, size: int, elevation: float = 25.0, start: float = 30.0) -> tuple[Tensor, Tensor]:
    """Evenly spaced cameras around the unit sphere, looking at its centre; (viewmats [V, 4, 4], Ks [V, 3, 3]).

    elevation, start  degrees above the horizon; azimuth of the first camera from the x axis
    """
    angles = math.radians(start) + torch.arange(count) * (2 * math.pi / count)
    up = math.radians(elevation)
    directions = torch.stack(
        [torch.cos(angles) * math.cos(up), torch.sin(angles) * math.cos(up), torch.full((count,), math.sin(up))], dim=1
    )
    return look_at(directions * DISTANCE), intrinsics(count, size, size)


def look_at(positions: Tensor) -> Tensor:
    """World-to-camera matrices of cameras at `positions` [V, 3] that look at the origin, z up in the picture."""
    forward = -positions / positions.norm(dim=1, keepdim=True)
    up = torch.tensor([0.0, 0.0, 1.0]).to(forward).expand_as(forward)
    beside = torch.tensor([0.0, 1.0, 0.0]).to(forward).expand_as(forward)
    up = torch.where(forward[:, 2:].abs() > 0.999, beside, up)  # straight down: any other direction will do
    right = torch.linalg.cross(forward, up)
    right = right / right.norm(dim=1, keepdim=True)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=1)
    out = torch.eye(4).to(positions).repeat(len(positions), 1, 1)
    out[:, :3, :3] = rotation
    out[:, :3, 3] = -(rotation @ positions[:, :, None])[:, :, 0]
    return out


def intrinsics(count: int, width: int, height: int, fov: float = FOV) -> Tensor:
    """Pinhole matrices [V, 3, 3] with the horizontal field of view `fov` in radians and the centre in the middle."""
    focal = width / 2 / math.tan(fov / 2)
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]).repeat(count, 1, 1)

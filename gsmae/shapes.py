"""Ellipsoids as the logarithm of their covariance: six numbers, one description (Arsigny et al. 2006).

An ellipsoid has 24 descriptions by scales and a quaternion, twice as many with the quaternion's sign, and more where
axes are equal; log(R diag(s^2) R^T) is one symmetric matrix whatever the description.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gaussians import quaternions, rotation_matrices, unit_quats

FLOOR = 1e-7  # thinnest ellipsoid, in radii of the splat: thinner ones (a surfel's axis is zero) are taken as this
# The mean of the log squared axes of fitted objects, and one over nearly all of their distances from it. Constants
# of the splat are not used, so that equal ellipsoids have equal numbers in all objects.
CENTER, GAIN = -10.0, 0.1
ROOT2 = 2**0.5
UPPER = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def log_covariance(scales: Tensor, quats: Tensor) -> Tensor:
    """The upper triangle of (log(R diag(s^2) R^T) - CENTER I) GAIN, the same for every description of one ellipsoid.

    scales     [..., 3] standard deviations in radii of the splat, at least `FLOOR` is taken
    quats      [..., 4] unit, wxyz
    returns    [..., 6] xx, yy, zz, and sqrt(2) times xy, xz, yz: distances of rows are those of the matrices
               (Frobenius), which a rotation of the splat does not change. Nearly all rows of a fitted object lie in the
               unit ball
    """
    r = rotation_matrices(quats)
    logs = (2 * scales.clamp_min(FLOOR).log() - CENTER) * GAIN
    entries = [(r[..., i, :] * r[..., j, :] * logs).sum(-1) for i, j in UPPER]
    return torch.stack([*entries[:3], *(ROOT2 * e for e in entries[3:])], dim=-1)


def symmetric(rows: Tensor) -> Tensor:
    """The matrices whose upper triangles `log_covariance` returns: [..., 6] -> [..., 3, 3]."""
    xx, yy, zz, xy, xz, yz = (rows * rows.new_tensor([1, 1, 1, *[1 / ROOT2] * 3])).unbind(-1)
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=-1).unflatten(-1, (3, 3))


def ellipsoids(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [..., 3], shortest first, and unit quaternions [..., 4] of one description: the inverse of the above.

    Exact up to float rounding, the order of the axes and the quaternion's sign.
    """
    logs, axes = torch.linalg.eigh(symmetric(rows))
    mirrored = torch.linalg.det(axes) < 0
    axes = torch.where(mirrored[..., None, None], -axes, axes)
    return (0.5 * (logs / GAIN + CENTER)).exp(), unit_quats(quaternions(axes))

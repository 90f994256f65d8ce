"""Rotations and ellipsoids, for batches of any shape: quaternion products, factors of a linear map."""

from __future__ import annotations

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor) -> Tensor:
    """Quaternion product wxyz: the turn `right`, then the turn `left`. [..., 4], broadcast."""
    a, b, c, d = left.unbind(-1)
    w, x, y, z = right.unbind(-1)
    return torch.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        dim=-1,
    )


def axes(factors: Tensor, sweeps: int = 8) -> tuple[Tensor, Tensor]:
    """Axes and half lengths of the ellipsoids that linear maps make of the unit ball: M = U diag(s) V^T.

    factors  [..., 3, 3] M with positive determinant, for instance A R diag(scales)
    returns  U [..., 3, 3] rotations and s [..., 3], so that M M^T = U diag(s^2) U^T

    One-sided Jacobi (Hestenes 1958): columns are turned into each other by the smallest angle until they are
    orthogonal. Unlike an eigendecomposition it keeps every axis near the column it came from (columns already
    orthogonal stay as they are, in order and sign), does not square small scales away, and is a few vectorised
    operations on any device. Columns orthogonal to within rounding are left alone: between axes of equal length any
    angle would do, and noise would choose one.
    """
    columns = list(factors.unbind(-1))
    noise = 8 * torch.finfo(factors.dtype).eps
    for _ in range(sweeps):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            a, b = columns[i], columns[j]
            aa, bb, ab = (a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)
            cross = torch.where(ab.abs() > noise * (aa * bb).sqrt(), 2 * ab, 0)
            differ = aa - bb
            swap = differ < 0  # angle within 45 degrees: the longer column stays with its place
            angle = 0.5 * torch.atan2(torch.where(swap, -cross, cross), differ.abs())
            cos, sin = angle.cos()[..., None], angle.sin()[..., None]
            columns[i], columns[j] = cos * a + sin * b, cos * b - sin * a
    stacked = torch.stack(columns, dim=-1)
    lengths = stacked.norm(dim=-2)
    unit = stacked / lengths.clamp_min(torch.finfo(stacked.dtype).tiny).unsqueeze(-2)
    return unit, lengths


def about_z(angles: Tensor) -> Tensor:
    """Quaternions of turns about the vertical axis, [...] radians -> [..., 4]."""
    zero = torch.zeros_like(angles)
    return torch.stack([(angles / 2).cos(), zero, zero, (angles / 2).sin()], dim=-1)


def uniform_turns(u: Tensor) -> Tensor:
    """Quaternions uniform over all rotations from three uniform numbers, [..., 3] -> [..., 4] (Shoemake 1992)."""
    a, b, c = u.unbind(-1)
    pi2 = 2 * torch.pi
    x, y = (1 - a).sqrt(), a.sqrt()
    return torch.stack([y * (pi2 * c).cos(), x * (pi2 * b).sin(), x * (pi2 * b).cos(), y * (pi2 * c).sin()], dim=-1)

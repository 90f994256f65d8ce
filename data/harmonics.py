"""How spherical harmonics turn: exact matrices for any rotation or mirror, found by fitting the basis to itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gsmae.ops.reference.splats import sh_basis


def turning(matrix: Tensor, degree: int) -> Tensor:
    """The matrix D with which coefficients turn along: colour'(d) = colour(M^T d) has coefficients D c.

    matrix   [3, 3] orthogonal; a mirror (determinant -1) is as good as a rotation
    degree   0 to 3
    returns  [K, K] float64, K = (degree + 1)^2, orthogonal and block-diagonal by degree

    The span of each degree is closed under turns, so the least-squares fit on more directions than coefficients is
    exact up to rounding; no closed formula, convention or sign to get wrong.
    """
    count = (degree + 1) ** 2
    matrix = matrix.to(torch.float64)
    directions = fibonacci(64).to(matrix.device)
    here = sh_basis(directions, count)
    there = sh_basis(directions @ matrix, count)  # rows (M^T d)^T
    out = torch.zeros(count, count, dtype=torch.float64, device=matrix.device)
    for order in range(degree + 1):
        block = slice(order**2, (order + 1) ** 2)
        out[block, block] = torch.linalg.lstsq(here[:, block], there[:, block]).solution
    return out


def fibonacci(count: int) -> Tensor:
    """Directions spread evenly over the sphere (Fibonacci lattice), [count, 3] float64."""
    i = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * i / count
    angle = math.pi * (1 + 5**0.5) * i
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)

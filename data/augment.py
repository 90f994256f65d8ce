"""Augmentation that keeps a splat a splat: what moves a Gaussian's centre also moves its covariance and its colours.

Two levels. `rotate`, `mirror`, `scale`, `stretch`, `translate` act on raw `Gaussians`, SH of any degree included.
`Augmentation`, `draw` and `move_points` act on whole batches of normalised feature rows, on their device, in training.

The released code multiplies per-axis factors onto the scales as if a Gaussian's axes were the world's, and its own
test keeps it from ever running; here a stretched Gaussian is the stretched ellipsoid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import field_validator
from torch import Tensor

from gsmae.config import Config
from gsmae.features import Normalization
from gsmae.gaussians import FIELDS, Gaussians, quaternions, rotation_matrices, unit_quats

from .harmonics import turning
from .turns import about_z, axes, product, uniform_turns

DRAWS = 11  # uniform numbers an object's augmentation is made of: mirror 1, turn 3, scale 1, stretch 3, shift 3


class Augmentation(Config):
    """Random moves of normalised splats, in this order: mirror, turn, scale and stretch, shift.

    They act after normalisation, about the splat's own centre, with the constants of the unmoved splat: a scaled splat
    is larger in feature space, its scale columns too, and normalising does not undo it.
    """

    turn: Literal["none", "z", "any"] = "z"
    """turns: about the vertical axis, or any"""
    scale: tuple[float, float] = (0.8, 1.25)
    """range of one factor for all axes"""
    stretch: tuple[float, float] = (1.0, 1.0)
    """range of a factor for each axis, through the covariance; (2/3, 3/2) is Point-MAE's"""
    shift: float = 0.1
    """largest shift along each axis, in radii of the splat"""
    mirror: float = 0.0
    """probability of a mirror image (x to -x)"""

    @property
    def idle(self) -> bool:
        """True where nothing can move."""
        still = self.scale == self.stretch == (1, 1)
        return still and self.turn == "none" and self.shift == self.mirror == 0

    @field_validator("scale", "stretch")
    @classmethod
    def _range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] < math.inf:
            raise ValueError("expected 0 < low <= high")
        return value

    @field_validator("shift")
    @classmethod
    def _shift(cls, value: float) -> float:
        if not 0 <= value < math.inf:
            raise ValueError("expected a finite number, not below 0")
        return value

    @field_validator("mirror")
    @classmethod
    def _probability(cls, value: float) -> float:
        if not 0 <= value <= 1:
            raise ValueError("expected a probability")
        return value


AUGMENTATIONS = {
    "none": Augmentation(turn="none", scale=(1, 1), shift=0),
    "default": Augmentation(),
    "paper": Augmentation(turn="none", scale=(1, 1), stretch=(2 / 3, 3 / 2), shift=0.2),
    "rotations": Augmentation(turn="any", scale=(1, 1), shift=0),
}


@dataclass(frozen=True)
class Moves:
    """What was drawn for each of B objects: x -> stretch * scale * turn(mirror(x)) + shift.

    mirrored  [B]     bool
    turns     [B, 4]  unit quaternions wxyz
    factors   [B, 3]  scale times stretch
    shifts    [B, 3]
    even      True where no object is stretched, which spares the ellipsoids
    """

    mirrored: Tensor
    turns: Tensor
    factors: Tensor
    shifts: Tensor
    even: bool

    def to(self, device: torch.device | str) -> Moves:
        """The same moves on another device."""
        tensors = (t.to(device) for t in (self.mirrored, self.turns, self.factors, self.shifts))
        return Moves(*tensors, even=self.even)


def draw(augmentation: Augmentation, batch: int, generator: torch.Generator) -> Moves:
    """Moves for a batch of objects from a generator; they lie on its device."""
    u = torch.rand(batch, DRAWS, generator=generator, device=generator.device, dtype=torch.float64)
    return moves_of(augmentation, u)


def moves_of(augmentation: Augmentation, u: Tensor) -> Moves:
    """Moves from uniform numbers [B, DRAWS]: the same numbers give the same moves."""
    a, batch = augmentation, len(u)
    if a.turn == "z":
        turns = about_z(2 * torch.pi * u[:, 1])
    elif a.turn == "any":
        turns = uniform_turns(u[:, 1:4])
    else:
        turns = torch.tensor([[1.0, 0, 0, 0]], device=u.device).expand(batch, 4)
    factors = _between(u[:, 4:5], a.scale) * _between(u[:, 5:8], a.stretch)
    shifts = (2 * u[:, 8:11] - 1) * a.shift
    values = (t.to(torch.float32) for t in (turns, factors, shifts))
    return Moves(u[:, 0] < a.mirror, *values, even=a.stretch[0] == a.stretch[1] == 1)


def move_positions(positions: Tensor, moves: Moves) -> Tensor:
    """Move positions in the normalised frame, such as `Batch.queries`: [B, M, 3] -> [B, M, 3]."""
    flip = torch.ones_like(moves.shifts)
    flip[:, 0] = torch.where(moves.mirrored, -1.0, 1.0)
    matrices = rotation_matrices(moves.turns) * flip[:, None, :] * moves.factors[:, :, None]
    return torch.baddbmm(moves.shifts[:, None, :], positions, matrices.transpose(1, 2))


def move_points(points: Tensor, moves: Moves, normalization: Normalization) -> Tensor:
    """Move normalised feature rows [B, N, 14]; `denormalize` with the same constants then gives the moved splats.

    normalization  of the B splats, each field with a leading B; its scale constants are needed because a linear scale
                   is a linear function of its column only together with them
    Opacities and the DC colour do not depend on direction and stay. Scale columns may leave the unit ball by as much
    as the means do.
    """
    n = normalization
    means, opacities, columns, quats, sh = points.split(list(FIELDS.values()), dim=2)
    # a mirror in x leaves an ellipsoid as half a turn about x does, which from the right is (w, x, y, z) (0, 1, 0, 0)
    w, x, y, z = moves.turns.unbind(-1)
    turns = torch.where(moves.mirrored[:, None], torch.stack([-x, w, z, -y], dim=-1), moves.turns)
    quats = product(turns[:, None, :], quats)
    center, radius = n.scale_center[:, None, :], n.scale_radius[:, None, None]
    scales = columns * radius + center
    if moves.even:
        scales = scales * moves.factors[:, None, :1]
    else:
        scales = scales.clamp_min(1e-10)
        m = rotation_matrices(quats) * scales[..., None, :] * moves.factors[:, None, :, None]
        directions, scales = axes(m)
        quats = quaternions(directions)
    out = [move_positions(means, moves), opacities, (scales - center) / radius, unit_quats(quats), sh]
    return torch.cat(out, dim=2)


def augment_points(
    points: Tensor, normalization: Normalization, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """Draw and apply moves to normalised feature rows [B, N, 14]; see `move_points`."""
    moves = draw(augmentation, len(points), generator)
    return move_points(points, moves.to(points.device), normalization)


def rotate(gaussians: Gaussians, matrix: Tensor) -> Gaussians:
    """Turn a splat about the origin: means, quaternions and every degree of its SH.

    matrix  [3, 3] a rotation; ValueError otherwise (for a mirror see `mirror`)
    """
    m = matrix.to(gaussians.means.device, torch.float64)
    identity = torch.eye(3, dtype=torch.float64, device=m.device)
    if not torch.allclose(m @ m.T, identity, atol=1e-5) or torch.det(m) < 0:
        raise ValueError("matrix is not a rotation")
    return _orthogonal(gaussians, m, quaternions(m))


def mirror(gaussians: Gaussians, axis: Literal[0, 1, 2] = 0) -> Gaussians:
    """The mirror image of a splat, `axis` to minus `axis`.

    A mirror M is no rotation, but -M is one (half a turn about the axis), and ellipsoids cannot tell them apart.
    """
    m = torch.eye(3, dtype=torch.float64, device=gaussians.means.device)
    m[axis, axis] = -1
    return _orthogonal(gaussians, m, quaternions(-m))


def scale(gaussians: Gaussians, factor: float) -> Gaussians:
    """Scale a splat about the origin by one positive factor."""
    if not factor > 0:
        raise ValueError(f"factor is {factor}, expected a positive number")
    return gaussians.replace(means=gaussians.means * factor, log_scales=gaussians.log_scales + math.log(factor))


def translate(gaussians: Gaussians, shift: Tensor) -> Gaussians:
    """Shift a splat by [3]."""
    return gaussians.replace(means=gaussians.means + shift.to(gaussians.means))


def stretch(gaussians: Gaussians, factors: Tensor) -> Gaussians:
    """Scale a splat about the origin by a positive factor for each world axis [3]: covariances become A S A^T.

    Every ellipsoid keeps its axes in the order they had. Colours are kept for each direction in space.
    """
    f = factors.to(gaussians.means.device, torch.float64)
    if f.shape != (3,) or not (f > 0).all():
        raise ValueError(f"factors are {factors.tolist()}, expected three positive numbers")
    m = rotation_matrices(unit_quats(gaussians.quats.double())) * gaussians.scales.double()[:, None, :]
    directions, scales = axes(f[:, None] * m)
    return gaussians.replace(
        means=gaussians.means * f.to(gaussians.means),
        quats=quaternions(directions).to(gaussians.quats),
        log_scales=scales.log().to(gaussians.log_scales),
    )


def _orthogonal(gaussians: Gaussians, matrix: Tensor, turn: Tensor) -> Gaussians:
    """Means and colours follow the orthogonal matrix, ellipsoids the rotation that does the same to them."""
    g = gaussians
    sh = torch.einsum("kl,nlc->nkc", turning(matrix, g.degree), g.sh.double())
    means = g.means.double() @ matrix.T
    quats = product(turn, unit_quats(g.quats.double()))  # a zero quaternion is no rotation, and turns from there
    return g.replace(means=means.to(g.means), quats=quats.to(g.quats), sh=sh.to(g.sh))


def _between(u: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + u * (ends[1] - ends[0])

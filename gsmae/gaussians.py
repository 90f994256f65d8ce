"""What a splat is: the container, its stored and used forms, and the table of its feature fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .errors import GsmaeError, nearest_name

# The only table of feature columns: name -> width, in the order of the columns. `sh` is the DC colour.
FIELDS = {"means": 3, "opacities": 1, "scales": 3, "quats": 4, "sh": 3}
WIDTH = sum(FIELDS.values())  # 14
# Fields that are computed from others (`gsmae.features.expand`), appended where a FeatureSpec uses them.
DERIVED = {"shapes": 6}
WIDTHS = FIELDS | DERIVED

SH_DC = 0.28209479177387814  # the constant of the degree-0 spherical harmonic


@dataclass(frozen=True)
class Gaussians:
    """N anisotropic 3D Gaussians, stored raw as in a 3DGS file; the properties give the used form.

    means            [N, 3]    centres, z-up world
    quats            [N, 4]    wxyz, of any length (`rotations` are unit)
    log_scales       [N, 3]    natural logarithm of the standard deviations (`scales`)
    logit_opacities  [N]       inverse sigmoid (`opacities`)
    sh               [N, K, 3] spherical harmonics, K = (degree + 1)^2; row 0 is the base colour

    All float32. Raises GsmaeError where the shapes disagree.
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    logit_opacities: Tensor
    sh: Tensor

    def __post_init__(self) -> None:
        n = len(self.means)
        shapes = {
            "means": (n, 3),
            "quats": (n, 4),
            "log_scales": (n, 3),
            "logit_opacities": (n,),
            "sh": (n, self.sh.shape[1] if self.sh.ndim == 3 else -1, 3),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise GsmaeError(f"Gaussians.{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")
        if self.sh.shape[1] not in (1, 4, 9, 16):
            raise GsmaeError(f"Gaussians.sh has {self.sh.shape[1]} coefficients; 1, 4, 9 or 16 are SH degrees 0 to 3")

    @classmethod
    def from_used(cls, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor) -> Gaussians:
        """From linear scales and opacities in (0, 1); the ends of the ranges are kept finite."""
        eps = 1e-7
        return cls(means, quats, scales.clamp_min(1e-10).log(), opacities.clamp(eps, 1 - eps).logit(), sh)

    @property
    def scales(self) -> Tensor:
        """Standard deviations along the Gaussian's own axes, [N, 3]."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """Peak opacities in [0, 1], [N]."""
        return self.logit_opacities.sigmoid()

    @property
    def rotations(self) -> Tensor:
        """Unit quaternions wxyz, [N, 4]; see `unit_quats`."""
        return unit_quats(self.quats)

    @property
    def colors(self) -> Tensor:
        """Base colours 0..1 (not clamped), [N, 3]."""
        return self.sh[:, 0] * SH_DC + 0.5

    @property
    def covariances(self) -> Tensor:
        """World covariances R S S R^T, [N, 3, 3]."""
        m = rotation_matrices(self.rotations) * self.scales[:, None, :]
        return m @ m.transpose(1, 2)

    @property
    def degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return {1: 0, 4: 1, 9: 2, 16: 3}[self.sh.shape[1]]

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index) -> Gaussians:
        """A subset or a reordering, by slice, mask or indices."""
        return Gaussians(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, *args, **kwargs) -> Gaussians:
        """All tensors moved or cast as by `Tensor.to`."""
        return Gaussians(*(getattr(self, f.name).to(*args, **kwargs) for f in fields(self)))

    def replace(self, **changes: Tensor) -> Gaussians:
        """A copy with some tensors replaced."""
        return replace(self, **changes)


def columns(names: Iterable[str]) -> list[int]:
    """Feature columns of the named fields, in the order of WIDTHS whatever the order given."""
    names = list(names)
    for name in names:
        if name not in WIDTHS:
            raise GsmaeError(f"unknown field '{name}': {nearest_name(name, WIDTHS)}")
    out, start = [], 0
    for field, width in WIDTHS.items():
        if field in names:
            out += range(start, start + width)
        start += width
    return out


def unit_quats(quats: Tensor) -> Tensor:
    """Unit quaternions with one sign per rotation: the first component that is not zero is positive.

    quats    [..., 4] wxyz of any length
    returns  [..., 4]; a zero or non-finite quaternion becomes the identity (the released loader made w = 0 the
             zero quaternion)
    """
    norm = quats.norm(dim=-1, keepdim=True)
    identity = torch.zeros_like(quats)
    identity[..., 0] = 1
    good = torch.isfinite(norm) & (norm > 1e-20)
    unit = torch.where(good, quats / torch.where(good, norm, torch.ones_like(norm)), identity)
    first = (unit != 0).to(torch.int8).argmax(dim=-1, keepdim=True)
    return torch.where(unit.gather(-1, first) < 0, -unit, unit)


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices of unit quaternions wxyz, [..., 4] -> [..., 3, 3]."""
    w, x, y, z = quats.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quaternions(matrices: Tensor) -> Tensor:
    """Unit quaternions wxyz of rotation matrices, [..., 3, 3] -> [..., 4]; stable for every angle (Shepperd 1978)."""
    m = matrices
    t = torch.stack([m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]], dim=-1)
    trace = t.sum(-1, keepdim=True)
    squares = torch.cat([1 + trace, 1 - trace + 2 * t], dim=-1)  # 4 w^2, 4 x^2, 4 y^2, 4 z^2
    p, q = m, m.transpose(-1, -2)
    s, d = p + q, p - q
    wx, wy, wz = d[..., 2, 1], d[..., 0, 2], d[..., 1, 0]  # 4 w x and so on
    xy, xz, yz = s[..., 0, 1], s[..., 0, 2], s[..., 1, 2]
    w2, x2, y2, z2 = squares.unbind(-1)
    rows = [torch.stack(row, -1) for row in ((w2, wx, wy, wz), (wx, x2, xy, xz), (wy, xy, y2, yz), (wz, xz, yz, z2))]
    largest = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    chosen = torch.stack(rows, dim=-2).gather(-2, largest)[..., 0, :]
    return chosen / chosen.norm(dim=-1, keepdim=True)

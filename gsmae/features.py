"""From splats to network input and back: which fields, and the normalised feature space (paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from .config import Config
from .errors import GsmaeError
from .gaussians import DERIVED, FIELDS, SH_DC, WIDTH, WIDTHS, Gaussians, columns, unit_quats
from .shapes import log_covariance

ALL = tuple(FIELDS)


class FeatureSpec(Config):
    """Which fields the network embeds, E(.), which it groups by, G(.), and which are normalised.

    It travels with every checkpoint, so that fine-tuning cannot normalise otherwise than pretraining did. Besides the
    fields of the columns there is "shapes": the log-covariance, six numbers in the place of scales and quats.
    """

    embed: tuple[str, ...] = ALL
    """fields that enter the tokenizer, E(.); means always do; quats and scales only together, or shapes instead"""
    group: tuple[str, ...] = ("means",)
    """fields that farthest point sampling and the neighbourhoods use, G(.)"""
    normalize: tuple[str, ...] = Field(default=ALL, validate_default=True)
    """fields mapped to the unit ball; means always are, and shapes where they are used: scales then are not, even if
    named, for shapes are made of scales as they are"""
    draw: Literal["uniform", "importance"] = "uniform"
    """how the Gaussians of an object are drawn: all alike, or with probability by opacity times volume^0.1"""

    @field_validator("embed", "group", "normalize")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            columns(names)
        except GsmaeError as error:
            raise ValueError(str(error)) from None  # pydantic collects only these
        return tuple(name for name in WIDTHS if name in names)

    @field_validator("embed", "normalize")
    @classmethod
    def _means(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if "means" not in names:
            raise ValueError("'means' must be among the fields")
        return names

    @field_validator("group")
    @classmethod
    def _some(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("at least one field is needed to group by")
        return names

    @field_validator("embed")
    @classmethod
    def _shape(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if ("scales" in names) != ("quats" in names):
            raise ValueError("'scales' and 'quats' describe one ellipsoid: embed both or neither")
        if "scales" in names and "shapes" in names:
            raise ValueError("'shapes' are 'scales' and 'quats' in other numbers: embed one or the other")
        return names

    @field_validator("normalize")
    @classmethod
    def _one_ellipsoid(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Shapes are made of columns of scales that are not normalised."""
        if "shapes" in {*info.data.get("embed", ()), *info.data.get("group", ())}:
            return tuple(name for name in names if name not in ("scales", "shapes")) + ("shapes",)
        if "shapes" in names:
            raise ValueError("'shapes' are neither embedded nor grouped by")
        return names

    @property
    def derived(self) -> tuple[str, ...]:
        """Fields in use that are computed from the columns, see `expand`."""
        return tuple(name for name in DERIVED if name in {*self.embed, *self.group})

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that what is embedded and grouped by is made of."""
        used = {*self.embed, *self.group} | ({"scales", "quats"} if self.derived else set())
        return tuple(name for name in FIELDS if name in used)


@dataclass(frozen=True)
class Normalization:
    """What `normalize` did to one splat, so that `denormalize` can undo it.

    center        [3]  mean of the means
    radius        []   largest distance from it (1 for a one-point splat)
    scale_center  [3]  mean of the scales / radius, zero where scales are not normalised
    scale_radius  []   largest distance from it, one where scales are not normalised
    normalize          the fields that were normalised
    """

    center: Tensor
    radius: Tensor
    scale_center: Tensor
    scale_radius: Tensor
    normalize: tuple[str, ...]

    def to(self, device, non_blocking: bool = False) -> Normalization:
        """The same constants on another device."""
        tensors = (f.name for f in fields(self) if f.name != "normalize")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in tensors})

    def pin_memory(self) -> Normalization:
        """The same constants in memory that a GPU copies from without being waited for."""
        tensors = (f.name for f in fields(self) if f.name != "normalize")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in tensors})

    def linear_scales(self, points: Tensor) -> Tensor:
        """Standard deviations in radii of the splats, [B, ..., 3], of rows [B, ..., >= 14] of B splats (or of one)."""
        ones = [1] * (points.ndim - 2)
        center, radius = self.scale_center.reshape(-1, *ones, 3), self.scale_radius.reshape(-1, *ones, 1)
        return points[..., 4:7] * radius + center


SH_GAIN = SH_DC * 2 / 3**0.5  # DC colour, clipped to +-0.5 about grey, to the unit ball


def normalize(gaussians: Gaussians, spec: FeatureSpec) -> tuple[Tensor, Normalization]:
    """The 14 feature columns of a whole splat in its normalised space, and how to undo it (paper, section 3).

    Means: centred, largest norm 1. Opacities: 2o - 1. Scales: divided by the same radius, then centred and their
    largest norm 1. Quaternions: unit, one sign. SH: the DC colour, clipped to the displayable range, to the unit ball.
    Fields that `spec.normalize` leaves out keep opacity in 0..1, scales / radius and the raw DC coefficient.

    returns  [N, 14] float32, Normalization. One-point and flat splats stay finite.
    """
    center = gaussians.means.mean(dim=0)
    means = gaussians.means - center
    radius = _radius(means)
    scales = gaussians.scales / radius
    scale_center, scale_radius = torch.zeros_like(center), torch.ones_like(radius)
    if "scales" in spec.normalize:
        scale_center = scales.mean(dim=0)
        scale_radius = _radius(scales - scale_center)
    opacities = gaussians.opacities[:, None]
    if "opacities" in spec.normalize:
        opacities = 2 * opacities - 1
    sh = gaussians.sh[:, 0]
    if "sh" in spec.normalize:
        sh = sh.clamp(-0.5 / SH_DC, 0.5 / SH_DC) * SH_GAIN
    points = [means / radius, opacities, (scales - scale_center) / scale_radius, unit_quats(gaussians.quats), sh]
    return torch.cat(points, dim=1), Normalization(center, radius, scale_center, scale_radius, spec.normalize)


def expand(points: Tensor, spec: FeatureSpec) -> Tensor:
    """Feature rows with the derived fields that the spec uses: [..., 14] -> [..., 14] or [..., 20].

    Shapes come from the columns of scales and quats, after augmentation, so that what moves an ellipsoid moves them.
    Rows that are expanded already, and rows of a spec that uses no derived field, are returned as they are.
    """
    if not spec.derived or points.shape[-1] > WIDTH:
        return points
    scales, quats = points[..., 4:7], points[..., 7:11]
    return torch.cat([points, log_covariance(scales, quats)], dim=-1)


def denormalize(points: Tensor, normalization: Normalization) -> Gaussians:
    """The splat (SH degree 0) that feature rows stand for: the inverse of `normalize`.

    points  [N, 14]; rows predicted by a network may leave the valid range and are brought back into it
    Exact up to float rounding, except for colours that `normalize` clipped and for the sign of quaternions.
    """
    if points.shape[-1] != WIDTH:
        raise ValueError(f"expected {WIDTH} feature columns, got {points.shape[-1]}")
    means, opacities, scales, quats, sh = points.split(list(FIELDS.values()), dim=1)
    n = normalization
    opacities = (opacities[:, 0] + 1) / 2 if "opacities" in n.normalize else opacities[:, 0]
    sh = sh / SH_GAIN if "sh" in n.normalize else sh
    scales = (scales * n.scale_radius + n.scale_center) * n.radius
    return Gaussians.from_used(means * n.radius + n.center, quats, scales, opacities, sh[:, None])


def _radius(centred: Tensor) -> Tensor:
    """Largest norm of the rows, or 1 where it is zero or too small to divide by."""
    radius = centred.norm(dim=1).max()
    return torch.where(radius > 1e-12, radius, torch.ones_like(radius))

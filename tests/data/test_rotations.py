"""Turning a splat is turning the camera: the pictures are the same, colours that depend on the view included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data.augment import mirror, rotate
from data.turns import uniform_turns
from gsmae import ops
from gsmae.gaussians import Gaussians, rotation_matrices
from gsmae.render import DISTANCE, intrinsics, look_at

SIZE = 48
BOUND = 1e-4  # mean absolute difference of two pictures with values in 0..1


@pytest.fixture(scope="module")
def splat():
    """splat(degree): 300 ellipsoids of all shapes, opacities and colours in the unit ball, some of them not turned."""

    def make(degree: int) -> Gaussians:
        g = torch.Generator().manual_seed(degree)
        directions = torch.nn.functional.normalize(torch.randn(300, 3, generator=g), dim=1)
        quats = torch.randn(300, 4, generator=g) * torch.rand(300, 1, generator=g) * 3
        quats[:30] = 0  # read as no rotation
        return Gaussians(
            directions * torch.rand(300, 1, generator=g).sqrt() * 0.9,
            quats,
            torch.randn(300, 3, generator=g) * 0.8 - 3,
            torch.randn(300, generator=g) * 2,
            torch.randn(300, (degree + 1) ** 2, 3, generator=g) * 0.4,
        )

    return make


def random_rotations(count: int, seed: int) -> Tensor:
    u = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rotation_matrices(uniform_turns(u))


def cameras(count: int, seed: int) -> Tensor:
    """World-to-camera matrices around the unit sphere: [count, 4, 4] float64."""
    g = torch.Generator().manual_seed(seed)
    positions = torch.nn.functional.normalize(torch.randn(count, 3, generator=g, dtype=torch.float64), dim=1)
    return look_at(positions * DISTANCE)


def turned(viewmat: Tensor, matrix: Tensor) -> Tensor:
    """The camera that sees the unmoved splat as `viewmat` sees it after the orthogonal map."""
    moved = torch.eye(4, dtype=torch.float64)
    moved[:3, :3] = matrix
    return viewmat @ moved


def picture(g: Gaussians, viewmat: Tensor) -> Tensor:
    view, place = viewmat.float()[None], intrinsics(1, SIZE, SIZE)
    background = torch.tensor([0.2, 0.5, 0.9])
    return ops.rasterize(g.means, g.quats, g.scales, g.opacities, g.sh, view, place, SIZE, SIZE, background)[0][0]


def difference(g: Gaussians, moved: Gaussians, matrix: Tensor, viewmat: Tensor) -> float:
    return (picture(moved, viewmat) - picture(g, turned(viewmat, matrix))).abs().mean().item()


def special() -> list[Tensor]:
    """Half and quarter turns about the axes, and turns too small to be seen."""
    x, y, z = torch.eye(3, dtype=torch.float64)
    half = [torch.diag(torch.tensor(signs, dtype=torch.float64)) for signs in ((1, -1, -1), (-1, 1, -1), (-1, -1, 1))]
    small = rotation_matrices(torch.tensor([1.0, 1e-6, 0, 0], dtype=torch.float64))
    return [*half, torch.stack([y, z, x]), torch.stack([-y, x, z]), small, torch.eye(3, dtype=torch.float64)]


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_turning_the_splat_is_turning_the_camera(splat, degree):
    g = splat(degree)
    rotations = [*special(), *random_rotations(8, seed=degree)]
    for matrix, viewmat in zip(rotations, cameras(len(rotations), seed=degree), strict=True):
        assert difference(g, rotate(g, matrix), matrix, viewmat) < BOUND


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_splat_is_the_mirror_image(splat, axis):
    """No camera is a mirror image of another, so the picture is mirrored: along the camera's own x axis."""
    g, flip = splat(3), torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[axis, axis] = -1
    for viewmat in cameras(4, seed=axis):
        other = turned(viewmat, matrix)  # of determinant -1
        other[:3] = flip @ other[:3]
        seen = picture(mirror(g, axis), viewmat)  # type: ignore[arg-type]
        assert (seen - picture(g, other).flip(1)).abs().mean() < BOUND


@pytest.mark.parametrize(("field", "degree"), [("means", 0), ("quats", 0), ("sh", 1), ("sh", 2), ("sh", 3)])
def test_the_comparison_sees_what_was_left_behind(splat, field, degree):
    g = splat(degree)
    if degree > 1:  # only the highest degree
        g = g.replace(sh=torch.cat([g.sh[:, :1], 0 * g.sh[:, 1 : degree**2], g.sh[:, degree**2 :]], dim=1))
    for matrix, viewmat in zip(random_rotations(3, seed=5), cameras(3, seed=5), strict=True):
        left_behind = rotate(g, matrix).replace(**{field: getattr(g, field)})
        assert difference(g, left_behind, matrix, viewmat) > 20 * BOUND


@pytest.mark.slow
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_thousand_random_rotations(splat, degree):
    g = splat(degree)
    rotations, views = random_rotations(1000, seed=100 + degree), cameras(1000, seed=100 + degree)
    found = [difference(g, rotate(g, m), m, v) for m, v in zip(rotations, views, strict=True)]
    print(f"SH degree {degree}: mean {sum(found) / len(found):.1e}, largest {max(found):.1e}")
    assert max(found) < BOUND

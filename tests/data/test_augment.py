"""Augmentation is geometry-true: covariances, colours by direction, and feature rows move as the splat does."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from data import augment
from data.augment import AUGMENTATIONS, Augmentation, Moves, draw, move_points, move_positions
from data.harmonics import fibonacci, turning
from data.stores import stacked, unstacked
from data.turns import about_z, axes, product, uniform_turns
from gsmae.features import FeatureSpec, denormalize, normalize
from gsmae.gaussians import Gaussians, quaternions, rotation_matrices, unit_quats
from gsmae.ops.reference.splats import sh_basis


def random_rotations(count: int, seed: int = 0) -> torch.Tensor:
    u = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rotation_matrices(uniform_turns(u))


def color(gaussians: Gaussians, directions: torch.Tensor) -> torch.Tensor:
    """SH colour of every Gaussian seen along each direction: [N, D, 3]."""
    return torch.einsum("dk,nkc->ndc", sh_basis(directions, gaussians.sh.shape[1]), gaussians.sh.double())


def moved(covariances: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return a @ covariances.double() @ a.T


def assert_same(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-5):
    assert (left.double() - right.double()).abs().max() <= tolerance * right.abs().max()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_rotated_splat_has_rotated_covariances_and_shows_its_colours_in_rotated_directions(make_splat, degree):
    g, directions = make_splat(1, 50, degree), fibonacci(40)
    for matrix in random_rotations(20):
        r = augment.rotate(g, matrix)
        assert_same(r.means, g.means.double() @ matrix.T)
        assert_same(r.covariances, moved(g.covariances, matrix))
        assert_same(color(r, directions @ matrix.T), color(g, directions))
        assert torch.equal(r.log_scales, g.log_scales) and torch.equal(r.logit_opacities, g.logit_opacities)


def test_turning_matrices_are_a_representation_and_orthogonal():
    a, b = random_rotations(2)
    for degree in (1, 2, 3):
        together = turning(a @ b, degree)
        assert_same(together, turning(a, degree) @ turning(b, degree), 1e-12)
        assert_same(together @ together.T, torch.eye(len(together)), 1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_splat_is_the_reflection_of_its_ellipsoids_and_colours(make_splat, axis):
    g, directions = make_splat(2, 50, 3), fibonacci(40)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[axis, axis] = -1
    m = augment.mirror(g, axis)
    assert_same(m.means, g.means.double() @ matrix)
    assert_same(m.covariances, moved(g.covariances, matrix))
    assert_same(color(m, directions @ matrix), color(g, directions))
    twice = augment.mirror(m, axis)
    assert_same(twice.sh, g.sh)
    assert_same(twice.covariances, g.covariances)


def test_a_mirror_is_refused_as_a_rotation(make_splat):
    with pytest.raises(ValueError, match="not a rotation"):
        augment.rotate(make_splat(1), torch.diag(torch.tensor([1.0, 1, -1])))
    with pytest.raises(ValueError, match="not a rotation"):
        augment.rotate(make_splat(1), 2 * torch.eye(3))


def test_scaling_and_stretching_go_through_the_covariance(make_splat):
    g = make_splat(3, 200)
    s = augment.scale(g, 1.7)
    assert_same(s.covariances, g.covariances * 1.7**2)
    assert_same(s.means, g.means * 1.7)
    factors = torch.tensor([0.5, 1.3, 2.0], dtype=torch.float64)
    t = augment.stretch(g, factors)
    assert_same(t.means, g.means * factors)
    for k in range(len(g)):  # one by one: a small ellipsoid must be as right as a large one
        assert_same(t.covariances[k], moved(g.covariances[k], torch.diag(factors)))
    assert_same(augment.translate(g, torch.tensor([1.0, 2, 3])).means, g.means + torch.tensor([1.0, 2, 3]))


def test_stretching_by_one_keeps_every_axis_in_its_place(make_splat):
    g = make_splat(4, 200)
    same = augment.stretch(g, torch.ones(3))
    assert_same(unit_quats(same.quats), g.rotations, 1e-6)
    assert_same(same.log_scales, g.log_scales, 1e-6)
    ball = g.replace(log_scales=torch.full_like(g.log_scales, -3.0))  # no axis is preferred, yet none moves
    assert_same(unit_quats(augment.stretch(ball, torch.ones(3)).quats), g.rotations, 1e-6)
    nearly = augment.stretch(g, torch.tensor([1.0, 1.001, 1.0]))
    turned = (unit_quats(nearly.quats) * g.rotations).sum(1).abs()
    assert turned.median() > 0.9999  # a small stretch turns and reorders next to nothing


def test_jacobi_axes_agree_with_a_singular_value_decomposition_even_for_needles_and_discs():
    g = torch.Generator().manual_seed(0)
    scales = 10 ** (torch.rand(500, 3, generator=g, dtype=torch.float64) * 8 - 8)
    m = torch.diag(torch.tensor([0.6, 1.0, 1.5], dtype=torch.float64)) @ random_rotations(500) * scales[:, None]
    directions, lengths = axes(m)
    values = torch.linalg.svdvals(m)
    assert (
        (lengths.sort(1, descending=True).values - values).abs() / values
    ).max() < 1e-7  # the decomposition is the less exact
    assert_same(directions.mT @ directions, torch.eye(3).expand(500, 3, 3), 1e-9)
    assert (torch.linalg.det(directions) > 0.999).all()
    single = axes(m.float())
    assert_same((single[0] * single[1][:, None]) @ (single[0] * single[1][:, None]).mT, m @ m.mT, 1e-5)


def test_quaternions_and_matrices_are_inverse_for_every_angle():
    q = uniform_turns(torch.rand(2000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    half_turns = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=torch.float64)
    q = unit_quats(torch.cat([q, half_turns]))
    assert_same(unit_quats(quaternions(rotation_matrices(q))), q, 1e-12)
    a, b = q[:1000], q[1000:2000]
    assert_same(rotation_matrices(product(a, b)), rotation_matrices(a) @ rotation_matrices(b), 1e-12)
    z = rotation_matrices(about_z(torch.tensor([math.pi / 2], dtype=torch.float64)))[0]
    assert_same(z @ torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.tensor([0.0, 1, 0]), 1e-12)


def test_random_turns_are_uniform_over_the_sphere():
    directions = random_rotations(20000, seed=3)[:, :, 0]
    assert directions.mean(0).abs().max() < 0.02
    assert (directions.T @ directions / 20000 - torch.eye(3) / 3).abs().max() < 0.01


WIDE = Augmentation(turn="any", scale=(0.5, 2), stretch=(0.6, 1.6), shift=0.3, mirror=0.5)


@pytest.mark.parametrize("fields", [("means", "opacities", "scales", "quats", "sh"), ("means",)])
@pytest.mark.parametrize("augmentation", [WIDE, Augmentation(turn="any", scale=(0.5, 2), mirror=0.5)])
def test_moving_feature_rows_is_moving_the_splat_about_its_centre(make_splat, fields, augmentation):
    spec = FeatureSpec(normalize=fields)
    splats = [make_splat(seed, 60) for seed in range(6)]
    points, constants = zip(*(normalize(g, spec) for g in splats), strict=True)
    batch = unstacked(stacked(list(constants)), spec.normalize)
    moves = draw(augmentation, 6, torch.Generator().manual_seed(0))
    assert moves.mirrored.any() and not moves.mirrored.all()
    out = move_points(torch.stack(points), moves, batch)
    for i, (g, n) in enumerate(zip(splats, constants, strict=True)):
        expected = augment.translate(g, -n.center)
        expected = augment.mirror(expected) if moves.mirrored[i] else expected
        expected = augment.rotate(expected, rotation_matrices(moves.turns[i].double()))
        expected = augment.stretch(expected, moves.factors[i])
        expected = augment.translate(expected, moves.shifts[i] * n.radius + n.center)
        got = denormalize(out[i], n)
        assert_same(got.means, expected.means)
        assert_same(got.covariances, expected.covariances, 2e-5)
        assert_same(got.opacities, g.opacities)
        queries = move_positions(points[i][None, :, :3], one(moves, i))[0]
        assert_same(queries, out[i, :, :3])


def one(moves: Moves, i: int) -> Moves:
    parts = (moves.mirrored[i : i + 1], moves.turns[i : i + 1], moves.factors[i : i + 1], moves.shifts[i : i + 1])
    return Moves(*parts, even=moves.even)


def test_scaling_has_an_effect_that_normalising_does_not_undo(make_splat):
    spec = FeatureSpec()
    points, n = normalize(make_splat(1), spec)
    batch = unstacked(stacked([n]), spec.normalize)
    only = Augmentation(turn="none", scale=(1.5, 1.5), shift=0)
    out = augment.augment_points(points[None], batch, only, torch.Generator().manual_seed(0))[0]
    assert_same(out[:, :3].norm(dim=1).max(), torch.tensor(1.5))
    assert_same(denormalize(out, n).scales, denormalize(points, n).scales * 1.5)
    assert torch.equal(out[:, [3, 11, 12, 13]], points[:, [3, 11, 12, 13]])
    assert_same(out[:, 7:11], points[:, 7:11], 1e-6)


def test_no_augmentation_changes_nothing_and_equal_generators_give_equal_moves(make_splat):
    spec = FeatureSpec()
    points, n = normalize(make_splat(1), spec)
    batch = unstacked(stacked([n]), spec.normalize)
    none, wide = AUGMENTATIONS["none"], AUGMENTATIONS["paper"]
    g = torch.Generator()
    assert_same(augment.augment_points(points[None], batch, none, g.manual_seed(0)), points[None], 1e-6)
    first = augment.augment_points(points[None], batch, wide, g.manual_seed(0))
    assert torch.equal(first, augment.augment_points(points[None], batch, wide, g.manual_seed(0)))
    assert not torch.equal(first, augment.augment_points(points[None], batch, wide, g.manual_seed(1)))


def test_turns_about_the_vertical_keep_heights(make_splat):
    points = normalize(make_splat(1), FeatureSpec())[0][None].expand(8, -1, -1)
    moves = draw(Augmentation(scale=(1, 1), shift=0), 8, torch.Generator().manual_seed(0))
    out = move_positions(points[..., :3], moves)
    assert_same(out[..., 2], points[..., 2], 1e-6)
    assert_same(out.norm(dim=2), points[..., :3].norm(dim=2), 1e-6)
    assert (out[..., 0] - points[..., 0]).abs().max() > 0.1


@pytest.mark.parametrize(
    "wrong", [{"scale": (0, 1)}, {"stretch": (2, 1)}, {"shift": -1}, {"mirror": 2}, {"turn": "x"}, {"shfit": 0.1}]
)
def test_impossible_augmentations_are_refused(wrong):
    with pytest.raises(ValidationError):
        Augmentation(**wrong)

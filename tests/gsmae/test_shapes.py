"""Log-covariance: one description of each ellipsoid, in the network as a field beside the columns."""

from itertools import permutations, product

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize as unit

from data import augment
from gsmae.features import FeatureSpec, denormalize, expand, normalize
from gsmae.gaussians import Gaussians, columns, quaternions, rotation_matrices, unit_quats
from gsmae.models import EncoderConfig, GaussianMAE, MAEConfig, reconstruct
from gsmae.shapes import CENTER, FLOOR, GAIN, ellipsoids, log_covariance, symmetric

SPEC = FeatureSpec(embed=("means", "opacities", "shapes", "sh"))
BOTH = FeatureSpec(embed=("means", "shapes"), group=("means", "shapes"))


def some(n=50, seed=0):
    g = torch.Generator().manual_seed(seed)
    scales = torch.exp(torch.randn(n, 3, generator=g, dtype=torch.float64) - 4)
    return scales, unit_quats(torch.randn(n, 4, generator=g, dtype=torch.float64))


def descriptions(scales, quats):
    """All 24 ways to name the axes of the same ellipsoids: permutations and signs with determinant one."""
    eye = torch.eye(3, dtype=scales.dtype)
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            turn = eye[:, list(order)] * torch.tensor(signs, dtype=scales.dtype)
            if torch.linalg.det(turn) > 0:
                yield scales[:, list(order)], quaternions(rotation_matrices(quats) @ turn)


def network(spec, **changes):
    encoder = EncoderConfig(width=12, depth=2, heads=2, groups=6, group_size=8, points=60)
    config = MAEConfig(encoder=encoder, decoder_depth=1, decoder_heads=2, **changes)
    return GaussianMAE(config, spec, generator=torch.Generator().manual_seed(0))


def batch_of(splats, spec):
    return torch.stack([normalize(g, spec)[0] for g in splats])


def test_it_is_the_logarithm_of_the_covariance():
    scales, quats = some()
    r = rotation_matrices(quats)
    values, axes = torch.linalg.eigh(r @ torch.diag_embed(scales**2) @ r.mT)
    expected = axes @ torch.diag_embed(values.log()) @ axes.mT
    got = symmetric(log_covariance(scales, quats)) / GAIN + CENTER * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(got, expected)


def test_all_descriptions_of_an_ellipsoid_give_the_same_six_numbers():
    scales, quats = some()
    expected = log_covariance(scales, quats)
    found = 0
    for other_scales, other_quats in descriptions(scales, quats):
        for sign in (1, -1):
            torch.testing.assert_close(log_covariance(other_scales, sign * other_quats), expected)
        found += 1
    assert found == 24
    ball = log_covariance(torch.full((50, 3), 0.1, dtype=torch.float64), quats)  # any turn of a ball is the same ball
    torch.testing.assert_close(ball, ball[:1].expand(50, 6))


def test_turning_a_splat_turns_it_as_a_matrix(make_splat):
    g = make_splat(40)
    turn = rotation_matrices(unit(torch.tensor([0.3, -0.5, 0.7, 0.2]), dim=0))
    before, after = (symmetric(log_covariance(s.scales, s.rotations)) for s in (g, augment.rotate(g, turn)))
    torch.testing.assert_close(after, turn @ before @ turn.T, atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 0.05


def test_distances_of_rows_are_those_of_the_matrices():
    rows = log_covariance(*some())
    matrices = symmetric(rows)
    expected = (matrices[:, None] - matrices[None]).norm(dim=(-1, -2))
    torch.testing.assert_close((rows[:, None] - rows[None]).norm(dim=-1), expected)


def test_the_inverse_gives_the_same_ellipsoids_and_proper_quaternions():
    scales, quats = some(200)
    back_scales, back_quats = ellipsoids(log_covariance(scales.float(), quats.float()))
    a, b = (
        (rotation_matrices(q) * s[:, None, :]) for s, q in ((scales.float(), quats.float()), (back_scales, back_quats))
    )
    torch.testing.assert_close(a @ a.mT, b @ b.mT, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(back_scales, scales.float().sort(dim=1).values, rtol=1e-4, atol=0)
    torch.testing.assert_close(back_quats.norm(dim=1), torch.ones(200))


def test_a_surfel_is_a_very_thin_ellipsoid():
    rows = log_covariance(torch.tensor([[0.1, 0.1, 0.0]]), torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(ellipsoids(rows)[0][0, 0], torch.tensor(FLOOR), rtol=1e-3, atol=0)


def test_rows_of_real_size_lie_in_the_unit_ball(examples):
    g = torch.Generator().manual_seed(0)
    scales = torch.exp(torch.randn(1000, 3, generator=g) + torch.tensor([-5.95, -4.46, -3.55]))  # of fitted objects
    rows = log_covariance(scales, unit_quats(torch.randn(1000, 4, generator=g)))
    assert (rows.norm(dim=1) < 1).float().mean() > 0.98 and rows.norm(dim=1).mean() > 0.2


def test_the_spec_keeps_scales_linear_and_refuses_two_descriptions():
    assert SPEC.normalize == ("means", "opacities", "quats", "sh", "shapes") and SPEC.derived == ("shapes",)
    assert FeatureSpec.model_validate(SPEC.model_dump(mode="json")) == SPEC
    assert FeatureSpec().derived == () and FeatureSpec().normalize == ("means", "opacities", "scales", "quats", "sh")
    assert FeatureSpec(group=("means", "shapes")).embed == FeatureSpec().embed  # to group by both is no contradiction
    with pytest.raises(ValidationError, match="one or the other"):
        FeatureSpec(embed=("means", "scales", "quats", "shapes"))
    with pytest.raises(ValidationError, match="neither embedded nor grouped"):
        FeatureSpec(normalize=("means", "shapes"))


def test_rows_are_expanded_once_from_their_columns(make_splat):
    g = make_splat(30)
    points, how = normalize(g, SPEC)
    assert points.shape == (30, 14) and how.scale_radius == 1
    rows = expand(points, SPEC)
    torch.testing.assert_close(rows[:, 14:], log_covariance(g.scales / how.radius, g.rotations))
    assert expand(rows, SPEC) is rows and expand(points, FeatureSpec()) is points
    assert columns(["shapes"]) == [14, 15, 16, 17, 18, 19]


def test_moves_of_a_batch_move_the_shapes(make_splat):
    """Augmentation acts on the columns; what is made of them afterwards has moved with the ellipsoids."""
    points, how = normalize(make_splat(30), SPEC)
    batched = type(how)(
        how.center[None], how.radius[None], how.scale_center[None], how.scale_radius[None], how.normalize
    )
    turn = unit(torch.tensor([[0.9, 0.1, -0.4, 0.2]]), dim=1)
    for factors in (torch.tensor([[1.0, 1, 1]]), torch.tensor([[1.3, 0.8, 1.1]])):
        moves = augment.Moves(torch.tensor([False]), turn, factors, torch.zeros(1, 3), even=bool(factors.std() == 0))
        before = expand(points, SPEC)[:, 14:]
        after = expand(augment.move_points(points[None], moves, batched), SPEC)[0, :, 14:]
        map_ = torch.diag(factors[0]) @ rotation_matrices(turn[0])

        def covariance(rows):
            values, axes = torch.linalg.eigh(symmetric(rows).double())
            return axes @ torch.diag_embed((values / GAIN + CENTER).exp()) @ axes.mT

        expected = map_.double() @ covariance(before) @ map_.double().T
        torch.testing.assert_close(covariance(after), expected, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("spec", [SPEC, BOTH], ids=["embedded", "grouped by"])
def test_the_network_trains_on_shapes_with_finite_gradients(make_splat, spec):
    model = network(spec, match="nearest")
    points = batch_of([make_splat(60, seed=s) for s in range(2)], spec)
    out = model(points, model.draw_mask(model.encoder.group(points), torch.Generator().manual_seed(0)))
    assert set(out.losses) == set(spec.embed) and out.predicted["shapes"].shape == (2, 3, 8, 6)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    tokens, centers = model.encoder(make_splat(60))
    assert tokens.shape == (6, 12) and centers.shape == (6, 14)


def test_another_description_of_the_same_splat_changes_nothing(make_splat):
    """With scales and quats it does: 24 targets for one ellipsoid."""
    g = make_splat(60)
    scales, quats = list(descriptions(g.scales, g.rotations))[7]
    other = Gaussians(g.means, quats, scales.log(), g.logit_opacities, g.sh)
    mask = torch.tensor([[True, False, True, False, True, False]])
    for spec, same in ((SPEC, True), (FeatureSpec(), False)):
        model = network(spec).eval()
        a, b = (model(batch_of([s], spec), mask).loss for s in (g, other))
        assert torch.allclose(a, b, atol=1e-5) == same


def test_a_predicted_shape_comes_back_as_an_ellipsoid(make_splat):
    g = make_splat(60)
    points, how = normalize(g, SPEC)
    model = network(SPEC).eval()
    mask = torch.tensor([[True, False, True, False, True, False]])
    out = model(points[None], mask)
    for name in out.predicted:  # as if the network had been right
        out.predicted[name].copy_(out.groups.points[mask][None][:, :, :8, columns([name])])
    rows = reconstruct(out)
    assert rows.shape == (1, 48, 14)
    order = mask.to(torch.uint8).argsort(dim=1, stable=True, descending=True)
    expected = g[out.groups.indices[0][order[0]][:, :8].flatten()]
    made = denormalize(rows[0], how)
    torch.testing.assert_close(made.means, expected.means, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.covariances, expected.covariances, atol=1e-7, rtol=1e-3)

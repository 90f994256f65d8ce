import pytest
import torch

from gsmae.errors import GsmaeError
from gsmae.gaussians import FIELDS, WIDTH, Gaussians, columns, rotation_matrices, unit_quats


def test_the_table_of_fields_gives_the_columns_whatever_the_order_asked_for():
    assert columns(FIELDS) == list(range(WIDTH)) == list(range(14))
    assert columns(["sh", "means"]) == [0, 1, 2, 11, 12, 13]
    assert columns(["quats"]) == [7, 8, 9, 10]


def test_a_misspelt_field_is_refused_with_the_nearest_name():
    with pytest.raises(GsmaeError, match="did you mean 'scales'"):
        columns(["scale"])


def test_stored_is_raw_and_used_is_activated(make_splat):
    g = make_splat(20)
    assert torch.allclose(g.scales.log(), g.log_scales, atol=1e-6)
    assert torch.allclose(g.opacities.logit(), g.logit_opacities, atol=1e-4)
    back = Gaussians.from_used(g.means, g.quats, g.scales, g.opacities, g.sh)
    assert torch.allclose(back.log_scales, g.log_scales, atol=1e-6)


def test_a_quaternion_with_w_zero_stays_a_rotation():
    """The released loader multiplied by sign(w) and made it the zero quaternion."""
    quats = torch.tensor([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0], [float("nan"), 0, 0, 1]])
    unit = unit_quats(quats)
    assert unit.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_quaternions_of_both_signs_become_the_same_and_turn_the_same(make_splat):
    quats = make_splat(100).quats
    assert torch.equal(unit_quats(quats), unit_quats(-quats))
    a, b = rotation_matrices(torch.nn.functional.normalize(quats, dim=1)), rotation_matrices(unit_quats(quats))
    assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(b @ b.transpose(1, 2), torch.eye(3).expand(100, 3, 3), atol=1e-5)


def test_a_quarter_turn_about_z_by_hand():
    half = 0.5**0.5
    turned = rotation_matrices(torch.tensor([half, 0, 0, half])) @ torch.tensor([1.0, 0, 0])
    assert torch.allclose(turned, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


def test_a_covariance_has_the_squared_scales_as_eigenvalues(make_splat):
    g = make_splat(30)
    eigenvalues = torch.linalg.eigvalsh(g.covariances.double())
    assert torch.allclose(eigenvalues, g.scales.double().square().sort(dim=1).values, rtol=1e-3, atol=1e-9)


def test_shapes_that_disagree_are_named(make_splat):
    g = make_splat(5)
    with pytest.raises(GsmaeError, match="log_scales has shape"):
        g.replace(log_scales=torch.zeros(4, 3))
    with pytest.raises(GsmaeError, match="SH degrees 0 to 3"):
        g.replace(sh=torch.zeros(5, 5, 3))


def test_a_subset_keeps_rows_together(make_splat):
    g = make_splat(10)
    h = g[torch.tensor([7, 2])]
    assert len(h) == 2 and torch.equal(h.means[0], g.means[7]) and torch.equal(h.sh[1], g.sh[2])

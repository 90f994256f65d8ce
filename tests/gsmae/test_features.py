import pytest
import torch
from pydantic import ValidationError

from gsmae.features import FeatureSpec, denormalize, normalize
from gsmae.gaussians import SH_DC, Gaussians, unit_quats

ALL = FeatureSpec()
MEANS = FeatureSpec(normalize=("means",))


@pytest.mark.parametrize("spec", [ALL, MEANS], ids=["all", "means"])
def test_normalising_has_an_exact_inverse(make_splat, spec):
    g = make_splat(200)
    g = g.replace(sh=g.sh.clamp(-1.7, 1.7))  # within the colours that a screen can show
    back = denormalize(*normalize(g, spec))
    assert torch.allclose(back.means, g.means, atol=1e-5)
    assert torch.allclose(back.scales, g.scales, rtol=1e-4, atol=1e-7)
    assert torch.allclose(back.opacities, g.opacities, atol=1e-5)
    assert torch.allclose(back.sh, g.sh, atol=1e-5)
    assert torch.allclose(back.quats, unit_quats(g.quats), atol=1e-6)


def test_every_normalised_field_lies_in_the_unit_ball(make_splat):
    points, _ = normalize(make_splat(500), ALL)
    for columns in ([0, 1, 2], [3], [4, 5, 6], [7, 8, 9, 10], [11, 12, 13]):
        assert points[:, columns].norm(dim=1).max() <= 1 + 1e-5
    assert torch.allclose(points[:, :3].norm(dim=1).max(), torch.tensor(1.0))
    assert torch.allclose(points[:, :3].mean(0), torch.zeros(3), atol=1e-6)


def test_the_normalisation_by_hand():
    g = Gaussians.from_used(
        torch.tensor([[0.0, 0, 0], [4.0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0]] * 2),
        torch.tensor([[0.2, 0.2, 0.2], [0.4, 0.2, 0.2]]), torch.tensor([0.5, 0.75]),
        torch.tensor([[[0.0, 0, 0]], [[0.5 / SH_DC] * 3]]),
    )  # fmt: skip
    points, how = normalize(g, ALL)
    assert how.center.tolist() == [2, 0, 0] and how.radius == 2
    expected = torch.tensor(
        [[-1, 0, 0, 0, -1, 0, 0, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0.5, 1, 0, 0, 1, 0, 0, 0, *[3**-0.5] * 3]]
    )
    assert torch.allclose(points, expected, atol=1e-5)


def test_fields_left_out_keep_their_meaning(make_splat):
    g = make_splat(50)
    points, how = normalize(g, MEANS)
    assert torch.allclose(points[:, 3], g.opacities, atol=1e-6)
    assert torch.allclose(points[:, 4:7], g.scales / how.radius, atol=1e-6)
    assert torch.equal(points[:, 11:], g.sh[:, 0])


@pytest.mark.parametrize("kind", ["one point", "all in one place", "flat", "equal scales"])
def test_degenerate_splats_stay_finite(make_splat, kind):
    """The released code divides by a zero radius."""
    g = make_splat(1 if kind == "one point" else 10)
    if kind == "all in one place":
        g = g.replace(means=torch.ones_like(g.means))
    if kind == "flat":
        g = g.replace(means=g.means * torch.tensor([1.0, 1.0, 0.0]))
    if kind == "equal scales":
        g = g.replace(log_scales=torch.full_like(g.log_scales, -3))
    points, how = normalize(g, ALL)
    assert torch.isfinite(points).all()
    assert torch.allclose(denormalize(points, how).scales, g.scales, rtol=1e-4)


def test_a_spec_refuses_what_makes_no_sense():
    for bad in (
        {"embed": ("opacities",)},
        {"embed": ("means", "scales")},
        {"group": ()},
        {"group": ("mean",)},
        {"x": 1},
    ):
        with pytest.raises(ValidationError):
            FeatureSpec(**bad)
    assert FeatureSpec(embed=("sh", "means")).embed == ("means", "sh")

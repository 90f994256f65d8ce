"""Splats to pictures: the definition against mathematics, the kernels against the definition."""

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from splat_scenes import CASES, NAMES, Scene, assert_agree, draw_and_differentiate, scene
from torch import Tensor

from gsmae import ops
from gsmae.ops import native, reference
from gsmae.ops.native import library

VARIANTS = library.variants() or [pytest.param("none", marks=pytest.mark.skip(reason="no compiled kernels here"))]

# ------------------------------------------------------------------------------------------------- the definition


def test_one_splat_is_a_gaussian_over_the_background():
    s = scene(1, 33, 33, views=1)
    s["means"], s["scales"] = torch.zeros(1, 3), torch.full((1, 3), 0.2)
    s["opacities"], s["sh"] = torch.tensor([0.8]), torch.tensor([[[1.0, 0.0, -0.5]]])
    colors, alphas = reference.splats.rasterize(**s)
    variance = (0.2 * 1.1 * 33 / 2.2) ** 2 + 0.3
    across = torch.arange(33) - 16.0
    expected = 0.8 * torch.exp(-(across**2 + across[:, None] ** 2) / (2 * variance))
    expected = torch.where(expected >= 1 / 255, expected, 0)
    torch.testing.assert_close(alphas[0], expected, atol=1e-5, rtol=0)
    color = torch.tensor([1.0, 0.0, -0.5]) * 0.28209479177387814 + 0.5
    torch.testing.assert_close(
        colors[0], expected[..., None] * color + (1 - expected[..., None]) * s["background"], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("coefficients", [1, 4, 9, 16])
def test_the_definition_has_the_right_gradient(coefficients):
    s = scene(7, 14, 11, coefficients=coefficients, seed=3).like(torch.float64)

    def draw(*values: Tensor) -> tuple[Tensor, Tensor]:
        return reference.splats.rasterize(**{**s, **dict(zip(NAMES, values, strict=True))})

    assert torch.autograd.gradcheck(draw, tuple(s[name] for name in NAMES), atol=1e-5, rtol=1e-4, fast_mode=True)


def test_the_basis_is_orthonormal_on_the_sphere():
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(400_000, 3, generator=generator, dtype=torch.float64), dim=1)
    basis = reference.splats.sh_basis(directions, 16)
    gram = 4 * math.pi * basis.T @ basis / len(basis)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=0.02, rtol=0)


def test_recomputing_tiles_in_the_backward_pass_changes_nothing(monkeypatch):
    s = scene()
    expected = draw_and_differentiate(reference.splats, s)
    monkeypatch.setattr(reference.splats, "KEEP", 0)
    assert_agree(draw_and_differentiate(reference.splats, s), expected, 1e-6)


def test_tiles_are_no_approximation(monkeypatch):
    s = scene(coefficients=4)
    expected = draw_and_differentiate(reference.splats, s, torch.float64)
    monkeypatch.setattr(reference.splats, "TILE", 1000)
    assert_agree(draw_and_differentiate(reference.splats, s, torch.float64), expected, 1e-10)


@pytest.mark.parametrize("twin", [reference, ops])
def test_of_two_splats_at_one_depth_the_first_is_in_front(twin):
    s = scene(2, 9, 9, views=1)
    s["means"], s["scales"], s["opacities"] = torch.zeros(2, 3), torch.full((2, 3), 0.3), torch.full((2,), 0.9)
    s["sh"] = torch.tensor([[[1.5, -2.0, -2.0]], [[-2.0, 1.5, -2.0]]])
    rasterize = twin.rasterize if twin is ops else twin.splats.rasterize
    colors, _ = rasterize(**s)
    assert colors[0, 4, 4, 0] > 0.8
    assert colors[0, 4, 4, 1] < 0.2


@pytest.mark.parametrize("twin", [reference, ops])
def test_weights_of_all_splats_make_the_opacity_of_the_picture(twin):
    s = scene(200)
    rasterize = twin.rasterize if twin is ops else twin.splats.rasterize
    contributions = twin.contributions if twin is ops else twin.splats.contributions
    _, alphas = rasterize(**s)
    plain = s.without("background", "offsets")
    torch.testing.assert_close(contributions(**plain).sum(), alphas.sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("twin", [reference, native])
@pytest.mark.parametrize("name", ["quats", "scales", "opacities", "viewmats", "Ks", "background", "offsets"])
def test_an_argument_of_another_shape_is_named(twin, name):
    s = scene()
    with pytest.raises(ValueError, match=name):
        twin.splats.rasterize(**{**s, name: s[name][..., None]})


def test_coefficients_of_no_degree_are_refused():
    s = scene()
    with pytest.raises(ValueError, match="5 coefficients"):
        ops.rasterize(**{**s, "sh": torch.zeros(60, 5, 3)})


# ---------------------------------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("coefficients", [1, 4, 9, 16])
def test_kernels_agree_with_the_definition(variant, coefficients):
    s = scene(coefficients=coefficients)
    expected = draw_and_differentiate(reference.splats, s, torch.float64)
    with library.using(variant):
        assert_agree(draw_and_differentiate(ops, s), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_kernels_agree_with_the_definition_for_splats_that_are(variant, case):
    s = scene(coefficients=4)
    case(s)
    expected = draw_and_differentiate(reference.splats, s, torch.float64)
    with library.using(variant):
        assert_agree(draw_and_differentiate(ops, s), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_splat_that_only_finishes_pixels_still_hides_those_behind_it(variant):
    s = scene(5, 9, 9, views=1)
    s["means"] = torch.linspace(0, 0.4, 5)[:, None] * torch.tensor([0.0, 0.0, 1.0])
    s["scales"] = torch.full((5, 3), 50.0)
    # Transmittance 9e-4 after two; the third would bring 5e-5 and is not drawn; the others would not stop the pixel.
    s["opacities"] = torch.tensor([0.97, 0.97, 0.95, 0.5, 0.1])
    expected = draw_and_differentiate(reference.splats, s, torch.float64)
    with library.using(variant):
        made = draw_and_differentiate(ops, s)
    assert_agree(made, expected)
    assert (made["sh"][:2] != 0).all()
    assert (made["sh"][2:] == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_agree_with_the_definition_behind_a_surface(variant):
    s = scene(900, 64, 66, views=1, seed=1)
    s["opacities"][:] = 0.3 + 0.7 * (s["opacities"] - 0.1) / 0.8
    s["opacities"][::3] = 0.02
    expected = draw_and_differentiate(reference.splats, s, torch.float64)
    with library.using(variant):
        assert_agree(draw_and_differentiate(ops, s), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 70), (65, 2), (8, 64), (9, 65), (130, 131)])
def test_kernels_agree_with_the_definition_at_any_size(variant, width, height):
    s = scene(80, width, height, views=1)
    expected = draw_and_differentiate(reference.splats, s, torch.float64)
    with library.using(variant):
        assert_agree(draw_and_differentiate(ops, s), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_thousands_of_splats_on_one_pixel(variant):
    s = scene(3000, 5, 5, views=1)
    s["means"][:, :2] *= 0.01
    s["scales"] *= 0.02
    s["opacities"][:] = 0.01 + 0.002 * s["opacities"]  # above the cut in the middle, below it beside
    expected = draw_and_differentiate(reference.splats, s, torch.float64)
    assert expected["alphas"].max() > 0.9998
    with library.using(variant):
        assert_agree(draw_and_differentiate(ops, s), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_crowded_picture_differs_only_where_rounding_decides_at_the_cut(variant):
    s = scene(2500, 150, 130, views=1)
    with torch.no_grad():
        expected, _ = reference.splats.rasterize(**s.doubled())
        with library.using(variant):
            ours, _ = ops.rasterize(**s)
    wrong = (ours - expected).abs().amax(-1) > 1e-4
    assert wrong.float().mean() < 1e-3
    assert (ours - expected).abs().max() < 0.02


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_drawn_of_nothing(variant):
    with library.using(variant):
        for s in (scene(0), scene(views=0)):
            made = draw_and_differentiate(ops, s)
            assert (made["colors"] == s["background"]).all()
            assert (made["alphas"] == 0).all()
            assert made["means"].shape == s["means"].shape


@pytest.mark.parametrize("variant", [*VARIANTS, library.REFERENCE])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh", "offsets"])
def test_a_splat_that_is_not_finite_harms_no_other(variant, name, value):
    s = scene(30, coefficients=4)
    where = (slice(None), 3) if name == "offsets" else (3,)
    s[name][where] = value
    with library.using(variant):
        made = draw_and_differentiate(ops, s)
    assert torch.isfinite(made["colors"]).all()
    assert torch.isfinite(made["alphas"]).all()
    for field in NAMES[:5]:
        others = torch.arange(30) != 3
        assert torch.isfinite(made[field][others]).all(), field
    if not math.isfinite(value) and name != "opacities":
        assert all((made[field][3] == 0).all() for field in NAMES[:5])


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_passes_the_clamp_of_alpha(variant):
    s = scene(1, 9, 9, views=1)
    s["means"], s["scales"], s["opacities"] = torch.zeros(1, 3), torch.full((1, 3), 100.0), torch.ones(1)
    with library.using(variant):
        made = draw_and_differentiate(ops, s)
    torch.testing.assert_close(made["alphas"], torch.full((1, 9, 9), 0.999))
    assert made["opacities"] == 0
    assert (made["sh"] != 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_threads_does_not_change_a_byte(variant):
    s = scene(700, 150, 140, coefficients=4)
    plain = s.without("background", "offsets")
    results = []
    with library.using(variant):
        for threads in (1, 2, 3):
            library.set_threads(threads)
            try:
                results.append({**draw_and_differentiate(ops, s), "weights": ops.contributions(**plain)})
            finally:
                library.set_threads(None)
    for result in results[1:]:
        for name, value in result.items():
            assert torch.equal(value, results[0][name]), name


@pytest.mark.skipif(len(VARIANTS) < 2, reason="only one variant of the kernels can run here")
def test_variants_agree():
    s = scene(coefficients=16)
    results = []
    for variant in library.variants():
        with library.using(variant):
            results.append(draw_and_differentiate(ops, s))
    for other in results[1:]:
        assert_agree(results[0], other, 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_contributions_agree_with_the_definition(variant):
    plain = scene(300).without("background", "offsets")
    expected = reference.splats.contributions(**plain.doubled())
    with library.using(variant):
        ours = ops.contributions(**plain)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_wanted_or_not_the_picture_is_the_same(variant):
    s = scene(views=20)  # more than are drawn at once without gradients
    with library.using(variant):
        with torch.no_grad():
            plain, plain_alphas = ops.rasterize(**s)
        made = draw_and_differentiate(ops, s)
    assert torch.equal(plain, made["colors"])
    assert torch.equal(plain_alphas, made["alphas"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_part_of_the_gradients_and_one_of_the_pictures_will_do(variant):
    s = scene()
    with library.using(variant):
        whole = s.like(torch.float32)
        ops.rasterize(**whole)[0].sum().backward()
        part = Scene({**s, "means": s["means"].clone().requires_grad_(), "offsets": None})
        ops.rasterize(**part)[0].sum().backward()
        assert torch.equal(part["means"].grad, whole["means"].grad)
        alphas = s.like(torch.float32)
        ops.rasterize(**alphas)[1].sum().backward()
        assert torch.isfinite(alphas["means"].grad).all()
        assert (alphas["sh"].grad == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_backward_twice_gives_the_same_and_the_scene_is_freed(variant):
    s = scene().like(torch.float32)
    with library.using(variant):
        colors = ops.rasterize(**s)[0]
        node: Any = colors.grad_fn
        kept = weakref.ref(node.scene)
        (first,) = torch.autograd.grad(colors.sum(), s["means"], retain_graph=True)
        (second,) = torch.autograd.grad(colors.sum(), s["means"])
    assert torch.equal(first, second)
    del colors, node
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_layout_in_memory_will_do(variant):
    s = scene(coefficients=4)
    strided = Scene({k: v.mT.contiguous().mT if isinstance(v, Tensor) and v.ndim > 1 else v for k, v in s.items()})
    with library.using(variant):
        expected, ours = draw_and_differentiate(ops, s), draw_and_differentiate(ops, strided)
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def test_float64_is_drawn_by_the_definition():
    s = scene().like(torch.float64)
    colors, alphas = ops.rasterize(**s)
    assert colors.dtype == alphas.dtype == torch.float64

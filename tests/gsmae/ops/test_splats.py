"""Splats to pictures: the definition against mathematics, the kernels against the definition."""

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gsmae import ops
from gsmae.ops import native, reference
from gsmae.ops.native import library

VARIANTS = library.variants() or [pytest.param("none", marks=pytest.mark.skip(reason="no compiled kernels here"))]
NAMES = ["means", "quats", "scales", "opacities", "sh", "background", "offsets"]


class Scene(dict[str, Any]):
    """Arguments of rasterize by name."""

    def doubled(self) -> "Scene":
        return Scene({k: v.double() if isinstance(v, Tensor) else v for k, v in self.items()})

    def without(self, *names: str) -> "Scene":
        return Scene({k: v for k, v in self.items() if k not in names})

    def like(self, dtype: torch.dtype) -> "Scene":
        """A copy whose float tensors have another type, ready for gradients."""
        made = {k: v.to(dtype, copy=True) if isinstance(v, Tensor) else v for k, v in self.items()}
        for name in NAMES:
            made[name].requires_grad_()
        return Scene(made)


def scene(count: int = 60, width: int = 45, height: int = 37, views: int = 2, coefficients: int = 1, seed: int = 0):
    """Splats on a bumpy sphere in front of some cameras; float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    directions = torch.nn.functional.normalize(normal(count, 3), dim=1)
    size = 0.6 * math.sqrt(4 * math.pi * 0.36 / max(count, 1))
    viewmats = torch.eye(4).repeat(views, 1, 1)
    viewmats[:, 2, 3] = 2.2
    for view in range(views):
        c, s = math.cos(0.7 * view), math.sin(0.7 * view)
        viewmats[view, :3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    focal = 1.1 * max(width, height)
    return Scene(
        means=directions * (0.6 + 0.1 * torch.sin(5 * directions[:, :1])),
        quats=normal(count, 4),
        scales=size * torch.exp(0.4 * normal(count, 3)),
        opacities=0.1 + 0.8 * torch.rand(count, generator=generator),
        sh=0.3 * normal(count, coefficients, 3),
        viewmats=viewmats,
        Ks=torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]).repeat(views, 1, 1),
        width=width,
        height=height,
        background=torch.tensor([0.9, 0.5, 0.2]),
        offsets=torch.zeros(views, count, 2),
    )


def draw_and_differentiate(twin, s: Scene, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Pictures and the gradients of a random linear function of them."""
    s = s.like(dtype)
    colors, alphas = twin.rasterize(**s)
    generator = torch.Generator().manual_seed(7)
    loss = (colors * torch.randn(colors.shape, generator=generator).to(dtype)).sum()
    loss = loss + (alphas * torch.randn(alphas.shape, generator=generator).to(dtype)).sum()
    loss.backward()
    gradients = {name: torch.zeros_like(s[name]) if s[name].grad is None else s[name].grad for name in NAMES}
    return {"colors": colors.detach(), "alphas": alphas.detach(), **gradients}


def assert_agree(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    for name in ("colors", "alphas"):
        difference = (ours[name].double() - expected[name].double()).abs()
        assert difference.max() <= tolerance, f"{name}: {difference.max():.1e}"
    for name in NAMES:
        assert torch.isfinite(ours[name]).all(), f"gradient of {name} is not finite"
        error, size = (ours[name].double() - expected[name].double()).norm(), expected[name].double().norm()
        assert error <= tolerance * size + 1e-9, f"gradient of {name}: {error:.1e} of {size:.1e}"


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


def behind_the_camera(s: Scene) -> None:
    s["means"][::2, 2] -= 4.0


def on_the_near_plane(s: Scene) -> None:
    s["means"][:20] = torch.tensor([0.0, 0.0, -2.2]) + 0.03 * s["means"][:20]


def without_size(s: Scene) -> None:
    s["scales"][::3] = 0.0


def huge(s: Scene) -> None:
    s["scales"][::7] = 20.0
    s["opacities"][::7] = 0.05


def needles(s: Scene) -> None:
    s["scales"][:, 0] *= 10.0
    s["scales"][:, 1:] *= 0.01


def flat(s: Scene) -> None:
    s["scales"][:, 2] = 0.0


def without_rotation(s: Scene) -> None:
    s["quats"][::4] = 0.0
    s["quats"][1::4] *= 1e-5


def opaque(s: Scene) -> None:
    s["opacities"][:] = 1.0


def transparent(s: Scene) -> None:
    s["opacities"][::2] = 0.0
    s["opacities"][1::4] = 0.5 / 255


def dark(s: Scene) -> None:
    s["sh"][:, 0] -= 2.0 * (torch.arange(len(s["sh"])) % 2)[:, None]


def in_one_corner(s: Scene) -> None:
    s["Ks"][:, :2, 2] = torch.tensor([0.0, 0.0])
    s["scales"][:] *= 0.3


def beside_the_frustum(s: Scene) -> None:
    s["means"][:, 0] += 0.9
    s["scales"][:] *= 3.0
    s["Ks"][:, 0, 2] += 9.3
    s["Ks"][:, 1, 2] -= 5.1


def all_out_of_sight(s: Scene) -> None:
    s["means"][:, 2] -= 10.0


def with_offsets(s: Scene) -> None:
    s["offsets"][:] = torch.randn(s["offsets"].shape, generator=torch.Generator().manual_seed(5))


CASES: list[Callable[[Scene], None]] = [
    behind_the_camera, on_the_near_plane, without_size, huge, needles, flat, without_rotation, opaque, transparent,
    dark, in_one_corner, beside_the_frustum, all_out_of_sight, with_offsets,
]  # fmt: skip


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

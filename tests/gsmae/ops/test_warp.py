"""Many objects in one launch by NVIDIA Warp, on its CPU device: the kernels against the definition.

Where a GPU is, `-m gpu` runs the same there; the two differ in how a warp adds up its gradients.
"""

import importlib.util
import sys

import pytest
import torch
from splat_scenes import CASES, NAMES, Scene, assert_agree, draw_and_differentiate, scene
from torch import Tensor

from gsmae import ops
from gsmae.errors import GsmaeError
from gsmae.ops import batches, reference, warp
from gsmae.ops.reference.batches import contributions_many, l1_ssim_many, rasterize_many

needs_warp = pytest.mark.skipif(importlib.util.find_spec("warp") is None, reason="Warp is not installed: gsmae[gpu]")
SPLATS = ["means", "quats", "scales", "opacities", "sh"]


def moved(s: Scene, device: str) -> Scene:
    return Scene({k: v.to(device) if isinstance(v, Tensor) else v for k, v in s.items()})


def agree(s: Scene, device: str = "cpu") -> None:
    expected = draw_and_differentiate(reference.splats, s, torch.float64)
    made = draw_and_differentiate(warp.splats, moved(s, device))
    assert_agree({k: v.cpu() for k, v in made.items()}, expected)


def batch(*scenes: Scene) -> Scene:
    """One batch of scenes with the same cameras; those with fewer splats are padded with splats of opacity 0."""
    most = max(len(s["means"]) for s in scenes)

    def padded(name: str, s: Scene, axis: int) -> Tensor:
        room = list(s[name].shape)
        room[axis] = most - room[axis]
        return torch.cat([s[name], torch.zeros(room)], axis)

    made = Scene({k: v for k, v in scenes[0].items() if not isinstance(v, Tensor) or k == "background"})
    for name in [*SPLATS, "offsets"]:
        made[name] = torch.stack([padded(name, s, 1 if name == "offsets" else 0) for s in scenes])
    for name in ("viewmats", "Ks"):
        made[name] = torch.stack([s[name] for s in scenes])
    return made


@needs_warp
@pytest.mark.parametrize("coefficients", [1, 4, 9, 16])
def test_warp_agrees_with_the_definition(coefficients):
    agree(scene(coefficients=coefficients))


@needs_warp
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_warp_agrees_with_the_definition_for_splats_that_are(case):
    s = scene(coefficients=4)
    case(s)
    agree(s)


@needs_warp
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 70), (65, 2), (16, 16), (17, 31), (130, 131)])
def test_warp_agrees_with_the_definition_at_any_size(width, height):
    agree(scene(80, width, height, views=1))


@needs_warp
def test_warp_agrees_with_the_definition_behind_a_surface_and_where_thousands_lie_on_one_pixel():
    s = scene(900, 64, 66, views=1, seed=1)
    s["opacities"][:] = 0.3 + 0.7 * (s["opacities"] - 0.1) / 0.8
    s["opacities"][::3] = 0.02
    agree(s)
    s = scene(3000, 5, 5, views=1)
    s["means"][:, :2] *= 0.01
    s["scales"] *= 0.02
    s["opacities"][:] = 0.01 + 0.002 * s["opacities"]
    agree(s)


@needs_warp
def test_a_crowded_picture_by_warp_differs_only_where_rounding_decides_at_the_cut():
    s = scene(2500, 150, 130, views=1)
    with torch.no_grad():
        expected, _ = reference.splats.rasterize(**s.doubled())
        made, _ = warp.splats.rasterize(**s)
    wrong = (made - expected).abs().amax(-1) > 1e-4
    assert wrong.float().mean() < 1e-3 and (made - expected).abs().max() < 0.02


@needs_warp
def test_of_two_splats_at_one_depth_warp_draws_the_first_in_front():
    s = scene(2, 9, 9, views=1)
    s["means"], s["scales"], s["opacities"] = torch.zeros(2, 3), torch.full((2, 3), 0.3), torch.full((2,), 0.9)
    s["sh"] = torch.tensor([[[1.5, -2.0, -2.0]], [[-2.0, 1.5, -2.0]]])
    colors, _ = warp.splats.rasterize(**s)
    assert colors[0, 4, 4, 0] > 0.8 and colors[0, 4, 4, 1] < 0.2


@needs_warp
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh", "offsets"])
def test_a_splat_that_is_not_finite_harms_no_other_in_warp(name, value):
    s = scene(30, coefficients=4)
    s[name][(slice(None), 3) if name == "offsets" else (3,)] = value
    made = draw_and_differentiate(warp.splats, s)
    others = torch.arange(30) != 3
    assert torch.isfinite(made["colors"]).all()
    assert all(torch.isfinite(made[field][others]).all() for field in NAMES[:5])


@needs_warp
def test_nothing_is_drawn_of_nothing_by_warp():
    for s in (scene(0), scene(views=0)):
        made = draw_and_differentiate(warp.splats, s)
        assert (made["colors"] == s["background"]).all() and made["means"].shape == s["means"].shape


@needs_warp
def test_a_batch_is_its_objects_one_by_one_to_the_byte_and_padding_changes_nothing():
    parts = [scene(50, seed=0), scene(20, seed=1), scene(37, seed=2)]
    parts[1]["viewmats"] = parts[1]["viewmats"].flip(0)
    whole = batch(*parts).like(torch.float32)
    colors, alphas = warp.splats.rasterize_many(**whole)
    generator = torch.Generator().manual_seed(0)
    pull = torch.randn(colors.shape, generator=generator)
    (colors * pull).sum().backward()
    for b, part in enumerate(parts):
        alone = part.like(torch.float32)
        color, alpha = warp.splats.rasterize(**alone)
        (color * pull[b]).sum().backward()
        assert torch.equal(color, colors[b]) and torch.equal(alpha, alphas[b])
        for name in SPLATS:
            count = len(part["means"])
            assert torch.equal(whole[name].grad[b, :count], alone[name].grad), name
            assert not whole[name].grad[b, count:].any(), name
        assert torch.equal(whole["offsets"].grad[b, :, : len(part["means"])], alone["offsets"].grad)


@needs_warp
def test_batches_agree_with_the_definition_of_batches():
    s = batch(scene(50, coefficients=4), scene(30, coefficients=4, seed=1))
    twins = {name: batches.backend(name, "cpu") for name in ("each", "warp")}
    for name, twin in twins.items():
        given, expected = s.like(torch.float32), s.like(torch.float64)
        target = torch.rand(2, 2, s["height"], s["width"], 3, generator=torch.Generator().manual_seed(0))
        loss = twin.l1_ssim_many(twin.rasterize_many(**given)[0], target)
        wanted = l1_ssim_many(rasterize_many(**expected)[0], target.double())
        torch.testing.assert_close(loss.double(), wanted, atol=1e-6, rtol=0)
        (loss * torch.tensor([1.0, 3.0])).sum().backward()
        (wanted * torch.tensor([1.0, 3.0])).sum().backward()
        for field in [*SPLATS, "offsets"]:
            error = (given[field].grad - expected[field].grad).norm()
            assert error <= 1e-4 * expected[field].grad.norm(), (name, field)
        plain = s.without("background", "offsets")
        weights = contributions_many(**plain.doubled())
        torch.testing.assert_close(twin.contributions_many(**plain).double(), weights, rtol=1e-4, atol=1e-2)


@needs_warp
@pytest.mark.parametrize("shape", [(2, 2, 20, 31), (1, 1, 1, 1), (3, 1, 7, 40)])
def test_the_loss_by_warp_is_that_of_the_definition(shape):
    generator = torch.Generator().manual_seed(0)
    image, target = torch.rand(2, *shape, 3, generator=generator)
    ours, expected = image.clone().requires_grad_(), image.double().requires_grad_()
    pull = torch.linspace(1, 2, shape[0])
    (warp.images.l1_ssim_many(ours, target, 0.3) * pull).sum().backward()
    (l1_ssim_many(expected, target.double(), 0.3) * pull).sum().backward()
    assert (ours.grad - expected.grad).norm() < 1e-5 * expected.grad.norm()
    torch.testing.assert_close(
        warp.images.ssim(image[0], target[0]).double(), reference.images.ssim(image[0].double(), target[0].double()),
        atol=1e-6, rtol=0,
    )  # fmt: skip


@needs_warp
def test_pairs_beyond_the_capacity_are_noticed_and_room_is_made():
    s = scene(200)
    one = {k: v[None] if k in (*SPLATS, "viewmats", "Ks", "offsets") else v for k, v in s.items()}
    expected, _ = warp.splats.rasterize_many(**one)
    capacity = warp.splats.Capacity(64, "cpu")
    short, _ = warp.splats.rasterize_many(**one, capacity=capacity)
    assert capacity.overflowed() and not torch.equal(short, expected)
    assert capacity.grow() and capacity.pairs > 64
    whole, _ = warp.splats.rasterize_many(**one, capacity=capacity)
    assert torch.equal(whole, expected) and not capacity.overflowed()
    assert not capacity.grow()


@pytest.mark.parametrize("kernels", ["each", pytest.param("warp", marks=needs_warp)])
def test_adam_for_many_is_adam_for_each_and_leaves_alone_whoever_sits_out(kernels):
    step = batches.backend(kernels, "cpu").adam_many
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(2, 3, 4, generator=generator), torch.randn(5, 2, 3, 4, generator=generator)
    expected = [start[b].clone().requires_grad_() for b in range(2)]
    optimizers = [torch.optim.Adam([expected[b]], lr=0.1 * (b + 1), eps=1e-15) for b in range(2)]
    value, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    counts = torch.zeros(2, dtype=torch.int64)
    for number, gradient in enumerate(gradients):
        live = torch.tensor([True, number != 2])
        counts += live
        step(value, torch.where(live[:, None, None], gradient, float("nan")), mean, square, torch.tensor([0.1, 0.2]),
             counts, live)  # fmt: skip
        for b in range(2):
            if live[b]:
                expected[b].grad = gradient[b].clone()
                optimizers[b].step()
    torch.testing.assert_close(value, torch.stack([e.detach() for e in expected]), atol=1e-6, rtol=1e-5)


@needs_warp
def test_arguments_that_do_not_fit_are_named():
    s = batch(scene(10), scene(10))
    with pytest.raises(ValueError, match="Ks"):
        warp.splats.rasterize_many(**{**s, "Ks": s["Ks"][:1]})
    with pytest.raises(ValueError, match="scales"):
        warp.splats.rasterize_many(**{**s, "scales": s["scales"][..., :2]})
    with pytest.raises(ValueError, match="image and target"):
        warp.images.l1_ssim_many(torch.zeros(1, 1, 2, 2, 3), torch.zeros(1, 1, 2, 3, 3))


def test_a_set_of_kernels_that_cannot_work_says_what_is_missing(monkeypatch):
    with pytest.raises(GsmaeError, match="each"):
        batches.backend("eech", "cpu")
    assert batches.backend("auto", "cpu").name == "each"
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(GsmaeError, match=r"gsmae\[gpu\]"):
        batches.backend("warp", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(GsmaeError, match="NVIDIA GPU"):
            batches.backend("gsplat", "cpu")


@needs_warp
@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_there(tmp_path):
    wp = pytest.importorskip("warp")
    for name in ("project", "bins", "blend", "pictures", "steps"):
        wp.compile_aot_module(warp.runtime.kernels(name), arch=[75, 90], module_dir=tmp_path, use_ptx=True)
    blend = next(tmp_path.glob("*blend*.sm90.ptx")).read_text()
    assert "shfl.sync" in blend and "vote.sync.any" in blend


# ------------------------------------------------------------------------------------------------------- on a GPU


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


@needs_warp
@pytest.mark.gpu
@pytest.mark.parametrize("case", [lambda s: None, *CASES])
def test_a_gpu_agrees_with_the_definition(cuda, case):
    s = scene(coefficients=16)
    case(s)
    agree(s, cuda)


@needs_warp
@pytest.mark.gpu
def test_a_gpu_agrees_where_many_blocks_add_to_one_splat(cuda):
    s = scene(900, 200, 150, views=3)
    s["scales"][:] *= 3
    agree(s, cuda)
    assert ops.rasterize(**moved(s, cuda))[0].device.type == "cuda"


@pytest.mark.gpu
def test_gsplat_draws_the_same(cuda):
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    twin = batches.backend("gsplat", cuda)
    s = batch(scene(300, 150, 130, coefficients=4), scene(200, 150, 130, coefficients=4, seed=1))
    expected, given = s.like(torch.float64), moved(s, cuda).like(torch.float32)
    wanted, _ = rasterize_many(**expected)
    made, _ = twin.rasterize_many(**given)
    assert (made.cpu() - wanted).abs().max() < 0.02
    wanted.square().sum().backward()
    made.square().sum().backward()
    for name in [*SPLATS, "offsets"]:
        error = (given[name].grad.cpu() - expected[name].grad).norm()
        assert error < 0.02 * expected[name].grad.norm(), name
    plain = s.without("background", "offsets")
    weights = twin.contributions_many(**moved(plain, cuda)).cpu()
    torch.testing.assert_close(weights.double(), contributions_many(**plain.doubled()), rtol=0.02, atol=1)

"""SSIM and the photometric loss: the definition against a stranger's, the kernels against the definition."""

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from gsmae import ops
from gsmae.ops import native, reference
from gsmae.ops.native import library

VARIANTS = library.variants() or [pytest.param("none", marks=pytest.mark.skip(reason="no compiled kernels here"))]
SIZES = [(1, 1, 1), (2, 37, 29), (3, 5, 7), (1, 64, 3), (1, 120, 90)]


def pictures(views: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(views, height, width, 3, generator=generator)
    target = 0.5 * target + 0.5 * torch.linspace(0, 1, width)[:, None]
    return target + 0.1 * torch.randn(target.shape, generator=generator), target


def test_the_map_equals_torchmetrics_where_the_window_meets_no_edge():
    image, target = pictures(2, 40, 50)
    planes = image.movedim(-1, 1), target.movedim(-1, 1)
    _, theirs = structural_similarity_index_measure(*planes, data_range=1.0, return_full_image=True)
    ours = reference.images.ssim_map(image, target)
    inside = slice(None), slice(5, -5), slice(5, -5)
    torch.testing.assert_close(ours[inside], theirs.movedim(1, -1)[inside], atol=1e-4, rtol=0)


def test_equal_pictures_have_similarity_one_and_no_loss():
    image, _ = pictures(3, 20, 31)
    torch.testing.assert_close(ops.ssim(image, image), torch.ones(3))
    assert abs(float(ops.l1_ssim(image, image))) < 1e-6


def test_the_definition_has_the_right_gradient():
    image, target = (t.double() for t in pictures(1, 7, 13))
    assert torch.autograd.gradcheck(lambda x: ops.l1_ssim(x, target, 0.3), image.requires_grad_(), fast_mode=True)
    assert torch.autograd.gradcheck(lambda t: ops.ssim(image.detach(), t), target.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_kernels_agree_with_the_definition(variant, size, weight):
    image, target = pictures(*size)
    exact = image.double().requires_grad_()
    expected = reference.images.l1_ssim(exact, target.double(), weight)
    (g_expected,) = torch.autograd.grad(2 * expected, exact)
    ours = image.clone().requires_grad_()
    with library.using(variant):
        loss = ops.l1_ssim(ours, target, weight)
        (g_ours,) = torch.autograd.grad(2 * loss, ours)
        similarity = ops.ssim(image, target)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        similarity.double(), reference.images.ssim(image.double(), target.double()), atol=1e-6, rtol=0
    )
    assert (g_ours - g_expected).norm() <= 1e-5 * g_expected.norm()


def test_equal_pixels_have_no_l1_gradient():
    image, target = pictures(1, 12, 12)
    image[0, :6] = target[0, :6]
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(ops.l1_ssim(image, target, 0.0), image)
    assert (gradient[0, :6] == 0).all()
    assert (gradient[0, 6:] != 0).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_threads_does_not_change_a_byte(variant):
    image, target = pictures(2, 61, 43)
    results = []
    with library.using(variant):
        for threads in (1, 2, 3):
            library.set_threads(threads)
            try:
                ours = image.clone().requires_grad_()
                loss = ops.l1_ssim(ours, target)
                loss.backward()
                results.append((loss.item(), ours.grad, ops.ssim(image, target)))
            finally:
                library.set_threads(None)
    for loss, gradient, similarity in results[1:]:
        assert loss == results[0][0]
        assert torch.equal(gradient, results[0][1])
        assert torch.equal(similarity, results[0][2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_layout_in_memory_will_do(variant):
    image, target = pictures(2, 16, 24)
    planes = image.movedim(-1, 1).contiguous().movedim(1, -1)
    with library.using(variant):
        assert ops.l1_ssim(planes, target) == ops.l1_ssim(image, target)


def test_a_gradient_for_the_target_comes_from_the_definition():
    image, target = pictures(1, 16, 16)
    target.requires_grad_()
    (ours,) = torch.autograd.grad(ops.l1_ssim(image, target), target)
    (expected,) = torch.autograd.grad(reference.images.l1_ssim(image, target), target)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("twin", [reference, native])
def test_pictures_of_other_shapes_are_refused(twin):
    image, target = pictures(1, 8, 8)
    with pytest.raises(ValueError, match="must both be"):
        twin.images.ssim(image, target[:, :7])
    with pytest.raises(ValueError, match="must both be"):
        twin.images.l1_ssim(image[0], target[0])

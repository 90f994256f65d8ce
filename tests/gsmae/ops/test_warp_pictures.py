"""The photometric loss by NVIDIA Warp, on its CPU device: pictures of several tiles, and targets that are bytes."""

import importlib.util

import pytest
import torch
from torch import Tensor

from gsmae.ops import batches, warp
from gsmae.ops.reference.batches import l1_ssim_many

needs_warp = pytest.mark.skipif(importlib.util.find_spec("warp") is None, reason="Warp is not installed: gsmae[gpu]")


def pictures(*shape: int) -> tuple[Tensor, Tensor]:
    """Numbers, and bytes for a target; some pixels of the two are the same."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(*shape, 3, generator=generator)
    target = torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)
    image.view(-1, 3)[::7] = target.view(-1, 3)[::7].float() / 255
    return image, target


def loss_and_gradient(function, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    image = image.clone().requires_grad_()
    loss = function(image, target, 0.3)
    (gradient,) = torch.autograd.grad(
        (loss * torch.linspace(1, 2, len(image), dtype=loss.dtype, device=loss.device)).sum(), image
    )
    return loss.detach(), gradient


@needs_warp
@pytest.mark.parametrize("shape", [(1, 2, 61, 100), (2, 1, 16, 32), (1, 1, 17, 33), (1, 1, 50, 1), (1, 1, 1, 70)])
def test_the_loss_by_warp_is_that_of_the_definition_wherever_tiles_end(shape):
    image, target = pictures(*shape)
    target = target.float() / 255
    loss, gradient = loss_and_gradient(warp.images.l1_ssim_many, image, target)
    wanted, wanted_gradient = loss_and_gradient(l1_ssim_many, image.double(), target.double())
    torch.testing.assert_close(loss.double(), wanted, atol=1e-6, rtol=0)
    assert (gradient - wanted_gradient).norm() < 1e-5 * wanted_gradient.norm()


@pytest.mark.parametrize("kernels", ["each", pytest.param("warp", marks=needs_warp)])
def test_a_target_of_bytes_is_that_of_their_255ths_to_the_byte(kernels):
    twin = batches.backend(kernels, "cpu")
    image, target = pictures(2, 2, 20, 40)
    of_bytes = loss_and_gradient(twin.l1_ssim_many, image, target)
    of_numbers = loss_and_gradient(twin.l1_ssim_many, image, target.float() / 255)
    assert torch.equal(of_bytes[0], of_numbers[0]) and torch.equal(of_bytes[1], of_numbers[1])


@needs_warp
def test_every_byte_becomes_the_number_that_torch_makes_of_it():
    target = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 3).reshape(1, 1, 16, 16, 3)
    image = (target.float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(warp.images.l1_ssim_many(image, target, 0.0).sum(), image)
    assert not gradient.any()  # nowhere is one above the other


@needs_warp
@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 2, 61, 100), (1, 1, 16, 32), (3, 1, 17, 33), (1, 1, 50, 1), (2, 1, 400, 400)])
def test_a_gpu_finds_the_loss_of_the_definition_and_the_same_every_time(shape):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image, target = pictures(*shape)
    numbers = target.float() / 255
    wanted, wanted_gradient = loss_and_gradient(l1_ssim_many, image.double(), numbers.double())
    made = [loss_and_gradient(warp.images.l1_ssim_many, image.cuda(), t.cuda()) for t in (numbers, target, target)]
    for loss, gradient in made:
        torch.testing.assert_close(loss.cpu().double(), wanted, atol=1e-6, rtol=0)
        assert (gradient.cpu() - wanted_gradient).norm() < 1e-5 * wanted_gradient.norm()
    assert torch.equal(made[1][0], made[2][0]) and torch.equal(made[1][1], made[2][1])

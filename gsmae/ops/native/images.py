"""Comparing pictures on the CPU by csrc/images.cpp; the promises are those of gsmae.ops.reference.images."""

from typing import Any

import torch
from torch import Tensor

from ..reference.images import check_pictures
from .library import library, threads


@torch.no_grad()
def ssim(image: Tensor, target: Tensor) -> Tensor:
    """See gsmae.ops.reference.images.ssim; without gradients."""
    return _compare(image, target, 0.0, None)[0].float()


def l1_ssim(image: Tensor, target: Tensor, weight: float = 0.2) -> Tensor:
    """See gsmae.ops.reference.images.l1_ssim; differentiable in the image only."""
    return _L1Ssim.apply(image, target, weight)  # type: ignore[return-value]


def _compare(image: Tensor, target: Tensor, weight: float, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean SSIM and mean absolute difference of each view, float64; fills the gradient of the loss."""
    check_pictures(image, target)
    image, target = image.detach().contiguous(), target.detach().contiguous()
    views, height, width, _ = image.shape
    similarity, difference = torch.empty(2, views, dtype=torch.float64)
    call = library().kernel("gsmae_images_l1_ssim", "iiippfpppi", "i")
    status = call(
        views,
        height,
        width,
        image.data_ptr(),
        target.data_ptr(),
        weight,
        similarity.data_ptr(),
        difference.data_ptr(),
        None if gradient is None else gradient.data_ptr(),
        threads(),
    )
    if status != 0:
        raise MemoryError("gsmae.ops: out of memory while comparing pictures")
    return similarity, difference


class _L1Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, weight: float) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty(image.shape) if wanted else None
        similarity, difference = _compare(image, target, weight, gradient)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return ((1 - weight) * difference.mean() + weight * (1 - similarity.mean())).float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor):
        (gradient,) = ctx.saved_tensors
        factor = float(gradients[0])
        return (gradient if factor == 1.0 else gradient * factor), None, None

"""The photometric loss of many objects in four launches; the promises are those of gsmae.ops.reference.batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.batches import check_pictures_of_many
from ..reference.images import check_pictures
from . import runtime


def l1_ssim_many(image: Tensor, target: Tensor, weight: float = 0.2) -> Tensor:
    """See gsmae.ops.reference.batches.l1_ssim_many; differentiable in the image only."""
    check_pictures_of_many(image, target)
    return _L1Ssim.apply(image, target, weight)  # type: ignore[return-value]


@torch.no_grad()
def ssim(image: Tensor, target: Tensor) -> Tensor:
    """See gsmae.ops.reference.images.ssim; without gradients."""
    check_pictures(image, target)
    values = _compare(image.contiguous(), target.contiguous(), keep=False)[0]
    return values[:, 0].float() / image[0].numel()


def _compare(image: Tensor, target: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Sums over each of S pictures of SSIM and of |x - y|, [S, 2] float64, and the slopes for the gradient."""
    kernels, device = runtime.kernels("pictures"), image.device
    count, height, width, _ = image.shape
    pixels = count * height * width
    maps = image.new_empty(12, pixels)
    slopes = image.new_empty(9, pixels if keep else 0)
    values = image.new_empty(pixels, 2)
    with runtime.on(device) as wp:
        runtime.launch(wp, kernels.means_along_rows, pixels, device, image, target, width, height, maps)
        runtime.launch(wp, kernels.compare, pixels, device, image, target, width, height, maps, slopes, values)
    return values.view(count, -1, 2).sum(1, dtype=torch.float64), slopes


class _L1Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, weight: float) -> Tensor:
        objects, views = image.shape[:2]
        x, y = (t.detach().flatten(0, 1).contiguous() for t in (image, target))
        sums, slopes = _compare(x, y, ctx.needs_input_grad[0])
        ctx.save_for_backward(x, y, slopes)
        ctx.shape, ctx.weight = image.shape, weight
        similar, different = (sums.view(objects, views, 2).sum(1) / image[0].numel()).unbind(1)
        return ((1 - weight) * different + weight * (1 - similar)).float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor):
        image, target, slopes = ctx.saved_tensors
        kernels, device = runtime.kernels("pictures"), image.device
        height, width = image.shape[1:3]
        pixels, size = slopes.shape[1], image.numel() // ctx.shape[0]
        maps, out = torch.empty_like(slopes), torch.empty_like(image)
        with runtime.on(device) as wp:
            runtime.launch(wp, kernels.slopes_along_rows, pixels, device, slopes, width, height, maps)
            runtime.launch(
                wp, kernels.gradient, pixels, device, image, target, width, height, ctx.shape[1], maps,
                gradients[0].contiguous(), (1 - ctx.weight) / size, -ctx.weight / size, out,
            )  # fmt: skip
        return out.view(ctx.shape), None, None

"""The photometric loss of many objects in two launches; the promises are those of gsmae.ops.reference.batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.batches import check_pictures_of_many
from ..reference.images import check_pictures
from . import runtime
from .tiles import TALL, WIDE


def l1_ssim_many(image: Tensor, target: Tensor, weight: float = 0.2) -> Tensor:
    """See gsmae.ops.reference.batches.l1_ssim_many; differentiable in the image only, bytes are read as they are."""
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
    tiles = _tiles(image)
    if image.numel() >= 2**31:  # the kernels count numbers in 32 bits
        raise ValueError(f"{image.numel()} numbers in one launch: compare fewer objects, views or pixels at once")
    slopes = image.new_empty(3, image.numel() if keep else 0)
    values = image.new_empty(count * tiles, 2)
    with runtime.on(device) as wp:
        runtime.launch(
            wp, kernels.compare, count * tiles * runtime.BLOCK, device, image.view(-1), *_numbers_or_bytes(target),
            width, height, slopes, values,
        )  # fmt: skip
    return values.view(count, tiles, 2).sum(1, dtype=torch.float64), slopes


def _tiles(image: Tensor) -> int:
    """Tiles of a picture, each the work of a block."""
    return -(-image.shape[1] // TALL) * -(-image.shape[2] // WIDE)


def _numbers_or_bytes(target: Tensor) -> tuple[Tensor, Tensor]:
    """What the kernels read the target from, and nothing of the other type."""
    if target.dtype == torch.uint8:
        return target.new_empty(0, dtype=torch.float32), target.view(-1)
    return target.view(-1), target.new_empty(0, dtype=torch.uint8)


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
        count, height, width, _ = image.shape
        size = image.numel() // ctx.shape[0]
        out = torch.empty_like(image)
        with runtime.on(device) as wp:
            runtime.launch(
                wp, kernels.gradient, count * _tiles(image) * runtime.BLOCK, device, image.view(-1),
                *_numbers_or_bytes(target), width, height, ctx.shape[1], slopes, gradients[0].contiguous(),
                (1 - ctx.weight) / size, -ctx.weight / size, out.view(-1),
            )  # fmt: skip
        return out.view(ctx.shape), None, None

"""Many objects at once in plain torch: what a batch must give is what its objects give one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import images, splats


def rasterize_many(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    background: Tensor,
    offsets: Tensor | None = None,
    capacity: Any = None,
    one: Callable[..., tuple[Tensor, Tensor]] = splats.rasterize,
) -> tuple[Tensor, Tensor]:
    """Pictures of B objects, each in its own V cameras; see `gsmae.ops.reference.splats.rasterize`.

    Objects with fewer splats than others are padded with splats of opacity 0, which are not drawn.

    means [B, N, 3], quats [B, N, 4], scales [B, N, 3], opacities [B, N], sh [B, N, K, 3]
    viewmats [B, V, 4, 4], Ks [B, V, 3, 3], background [3]
    offsets    [B, V, N, 2] added to the projected centres, in pixels
    capacity   for kernels that have buffers of a fixed size; not used here
    one        what draws one object
    returns    colors [B, V, height, width, 3] and alphas [B, V, height, width]
    """
    check_batch(means, quats, scales, opacities, sh, viewmats, Ks, width, height, background, offsets)
    colors, alphas = [], []
    for b in range(len(means)):
        offset = None if offsets is None else offsets[b]
        color, alpha = one(
            means[b], quats[b], scales[b], opacities[b], sh[b], viewmats[b], Ks[b], width, height, background, offset
        )
        colors.append(color)
        alphas.append(alpha)
    if not colors:
        views = viewmats.shape[1]
        return means.new_zeros(0, views, height, width, 3), means.new_zeros(0, views, height, width)
    return torch.stack(colors), torch.stack(alphas)


def contributions_many(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    one: Callable[..., Tensor] = splats.contributions,
) -> Tensor:
    """Sum over views and pixels of each splat's blending weight, [B, N]; arguments as for `rasterize_many`."""
    check_batch(means, quats, scales, opacities, sh, viewmats, Ks, width, height)
    found = [
        one(means[b], quats[b], scales[b], opacities[b], sh[b], viewmats[b], Ks[b], width, height)
        for b in range(len(means))
    ]
    return torch.stack(found) if found else means.new_zeros(means.shape[:2])


def l1_ssim_many(
    image: Tensor, target: Tensor, weight: float = 0.2, one: Callable[..., Tensor] = images.l1_ssim
) -> Tensor:
    """The photometric loss of each of B objects, [B]; see `gsmae.ops.reference.images.l1_ssim`.

    image, target [B, V, H, W, 3] with values in [0, 1]; a target may also be bytes (uint8), 255 of which are 1
    """
    check_pictures_of_many(image, target)
    if target.dtype == torch.uint8:
        target = target.to(image.dtype) / 255
    return torch.stack([one(image[b], target[b], weight) for b in range(len(image))])


def check_batch(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, viewmats: Tensor,
                Ks: Tensor, width: int, height: int, background: Tensor | None = None,
                offsets: Tensor | None = None) -> None:  # fmt: skip
    """ValueError naming the argument whose shape does not fit."""
    objects = means.shape[0]
    for name, value in {"quats": quats, "scales": scales, "opacities": opacities, "sh": sh, "viewmats": viewmats,
                        "Ks": Ks, "offsets": offsets}.items():  # fmt: skip
        if value is not None and (value.ndim == 0 or len(value) != objects):
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not that of {objects} objects")
    if objects:
        splats.check_arguments(
            means[0], quats[0], scales[0], opacities[0], sh[0], viewmats[0], Ks[0], width, height, background,
            None if offsets is None else offsets[0],
        )  # fmt: skip


def check_pictures_of_many(image: Tensor, target: Tensor) -> None:
    """ValueError unless both are [B, V, H, W, 3] with the same sizes, none of them zero."""
    if image.shape != target.shape or image.ndim != 5 or image.shape[-1] != 3 or image.numel() == 0:
        raise ValueError(f"image and target must both be [B, V, H, W, 3], not {[*image.shape]} and {[*target.shape]}")

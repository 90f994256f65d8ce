"""Operations with a plain torch definition and faster twins; each call takes the fastest that fits its inputs.

`gsmae.ops.reference` defines every operation. `gsmae.ops.native` has compiled twins for float32 tensors on the CPU;
where its library was not built, or for other tensors, calls fall back to the definition. `gsmae.ops.warp` draws float32
splats on a GPU, many objects at once (`gsmae.ops.batches`), and groups float32 points there, where the extra `gpu` is
installed.
"""

from torch import Tensor, is_grad_enabled

from . import native, reference, warp
from .reference.points import chamfer
from .reference.segments import segment_reduce

__all__ = [
    "chamfer",
    "contributions",
    "farthest_points",
    "group",
    "interpolate",
    "l1_ssim",
    "nearest",
    "rasterize",
    "segment_reduce",
    "ssim",
    "three_nearest",
]


def rasterize(
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
) -> tuple[Tensor, Tensor]:
    """Pictures of splats in V cameras, differentiable; see `gsmae.ops.reference.splats.rasterize`."""
    tensors = means, quats, scales, opacities, sh, viewmats, Ks, background, offsets
    twin = _twin(*tensors)
    return twin.splats.rasterize(means, quats, scales, opacities, sh, viewmats, Ks, width, height, background, offsets)


def contributions(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
) -> Tensor:
    """Sum over views and pixels of each splat's blending weight; see `gsmae.ops.reference.splats.contributions`."""
    twin = _twin(means, quats, scales, opacities, sh, viewmats, Ks)
    return twin.splats.contributions(means, quats, scales, opacities, sh, viewmats, Ks, width, height)


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each picture; see `gsmae.ops.reference.images.ssim`."""
    twin = reference if _differentiated(image, target) else _twin(image, target)
    return twin.images.ssim(image, target)


def l1_ssim(image: Tensor, target: Tensor, weight: float = 0.2) -> Tensor:
    """The photometric loss of 3D Gaussian Splatting; see `gsmae.ops.reference.images.l1_ssim`."""
    twin = native if native.usable(image, target) and not _differentiated(target) else reference
    return twin.images.l1_ssim(image, target, weight)


def farthest_points(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Indices of points that cover the set; see `gsmae.ops.reference.points.farthest_points`."""
    return _twin(points).points.farthest_points(points, count, start)


def nearest(query: Tensor, points: Tensor, k: int) -> Tensor:
    """Indices of the k points nearest to each query; see `gsmae.ops.reference.points.nearest`."""
    return _twin(query, points).points.nearest(query, points, k)


def group(points: Tensor, count: int, k: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Farthest points and the k nearest of each; see `gsmae.ops.reference.points.group`."""
    return _twin(points).points.group(points, count, k, start)


def three_nearest(query: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The three nearest centres of each query and their weights; see `gsmae.ops.reference.points.three_nearest`."""
    return _twin(query, centers).points.three_nearest(query, centers)


def interpolate(query: Tensor, centers: Tensor, features: Tensor) -> Tensor:
    """Features carried from the three nearest centres; see `gsmae.ops.reference.points.interpolate`."""
    twin = _twin(query, centers)  # features of any type: a product mixes them
    return twin.points.interpolate(query, centers, features)


def _twin(*tensors: Tensor | None):
    return native if native.usable(*tensors) else warp if warp.runtime.usable(*tensors) else reference


def _differentiated(*tensors: Tensor) -> bool:
    return is_grad_enabled() and any(t.requires_grad for t in tensors)

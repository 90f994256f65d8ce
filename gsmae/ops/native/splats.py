"""Gaussian splats to pictures on the CPU by csrc/splats.cpp; the promises are those of gsmae.ops.reference.splats."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.splats import check_arguments
from .library import Library, library, threads

_INPUTS = "li" + "p" * 5 + "i" + "p" * 3 + "ii" + "p"
_VIEWS_AT_ONCE = 16  # without gradients, so that many views need no memory for all of them


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
    """See gsmae.ops.reference.splats.rasterize; the result is the same, to the byte, for any number of threads."""
    check_arguments(means, quats, scales, opacities, sh, viewmats, Ks, width, height, background, offsets)
    splats = (means, quats, scales, opacities, sh, background, offsets)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in splats):
        return _Rasterize.apply(means, quats, scales, opacities, sh, background, offsets, viewmats, Ks, width, height)
    inputs = _Inputs((means, quats, scales, opacities, sh), viewmats, Ks, width, height, background, offsets)
    colors = torch.empty(len(viewmats), height, width, 3)
    alphas = torch.empty(len(viewmats), height, width)
    for first in range(0, len(viewmats), _VIEWS_AT_ONCE):
        views = slice(first, first + _VIEWS_AT_ONCE)
        _forward(library(), inputs.views(views), colors[views], alphas[views], keep=False)
    return colors, alphas


@torch.no_grad()
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
    """See gsmae.ops.reference.splats.contributions."""
    check_arguments(means, quats, scales, opacities, sh, viewmats, Ks, width, height)
    inputs = _Inputs((means, quats, scales, opacities, sh), viewmats, Ks, width, height, torch.zeros(3), None)
    total = torch.zeros(len(means), dtype=torch.float64)
    call = library().kernel("gsmae_splats_contributions", _INPUTS + "pi", "i")
    for first in range(0, len(viewmats), _VIEWS_AT_ONCE):
        part = inputs.views(slice(first, first + _VIEWS_AT_ONCE))
        _check(call(*part.arguments(), total.data_ptr(), threads()))
    return total.float()


class _Inputs:
    """Contiguous inputs of a call, kept alive while the kernel holds their addresses."""

    def __init__(
        self,
        splats: Sequence[Tensor],
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
        background: Tensor,
        offsets: Tensor | None,
    ):
        self.splats = [t.detach().contiguous() for t in splats]
        self.viewmats, self.Ks = viewmats.detach().contiguous(), Ks.detach().contiguous()
        self.offsets = None if offsets is None else offsets.detach().contiguous()
        self.background = background.detach().contiguous()
        self.width, self.height = width, height

    def views(self, chosen: slice) -> "_Inputs":
        offsets = None if self.offsets is None else self.offsets[chosen]
        cameras = self.viewmats[chosen], self.Ks[chosen]
        return _Inputs(self.splats, *cameras, self.width, self.height, self.background, offsets)

    def arguments(self) -> list[Any]:
        means, sh = self.splats[0], self.splats[4]
        return [
            len(means),
            sh.shape[1],
            *(t.data_ptr() for t in self.splats),
            len(self.viewmats),
            self.viewmats.data_ptr(),
            self.Ks.data_ptr(),
            None if self.offsets is None else self.offsets.data_ptr(),
            self.width,
            self.height,
            self.background.data_ptr(),
        ]


class _Scene:
    """What the backward pass needs of the forward pass, held by the library that made it and freed with this object."""

    def __init__(self, owner: Library, address: int):
        self.address = address
        self.owner = owner
        self._free = owner.kernel("gsmae_splats_free", "p")

    def __del__(self):
        self._free(self.address)


def _forward(owner: Library, inputs: _Inputs, colors: Tensor, alphas: Tensor, keep: bool) -> _Scene | None:
    call = owner.kernel("gsmae_splats_forward", _INPUTS + "pppi", "i")
    address = ctypes.c_void_p()
    scene = ctypes.byref(address) if keep else None
    _check(call(*inputs.arguments(), colors.data_ptr(), alphas.data_ptr(), scene, threads()))
    return _Scene(owner, address.value) if address.value else None


def _check(status: int) -> None:
    if status != 0:
        raise MemoryError("gsmae.ops: out of memory while drawing splats; draw fewer views at once")


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, sh, background, offsets, viewmats, Ks, width, height):
        inputs = _Inputs((means, quats, scales, opacities, sh), viewmats, Ks, width, height, background, offsets)
        colors = torch.empty(len(viewmats), height, width, 3)
        alphas = torch.empty(len(viewmats), height, width)
        ctx.scene = _forward(library(), inputs, colors, alphas, keep=True)
        ctx.save_for_backward(means, quats, scales, opacities, sh, background, offsets, viewmats, Ks, colors, alphas)
        ctx.width, ctx.height = width, height
        ctx.set_materialize_grads(False)
        return colors, alphas

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        g_colors, g_alphas = gradients
        *splats, background, offsets, viewmats, Ks, colors, alphas = ctx.saved_tensors
        if g_colors is None and g_alphas is None:
            return (None,) * 11
        g_colors = torch.zeros_like(colors) if g_colors is None else g_colors.contiguous()
        g_alphas = None if g_alphas is None else g_alphas.contiguous()
        inputs = _Inputs(splats, viewmats, Ks, ctx.width, ctx.height, background, offsets)
        g_splats = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in splats]
        g_background = torch.empty(3)
        g_offsets = torch.empty_like(offsets, memory_format=torch.contiguous_format) if offsets is not None else None
        means, quats, scales, opacities, sh = (t.data_ptr() for t in g_splats)
        call = ctx.scene.owner.kernel("gsmae_splats_backward", "p" + _INPUTS + "p" * 11 + "i", "i")
        _check(
            call(
                ctx.scene.address,
                *inputs.arguments(),
                *(None if t is None else t.data_ptr() for t in (colors, alphas, g_colors, g_alphas)),
                *(None if t is None else t.data_ptr() for t in (*g_splats, g_offsets, g_background)),
                threads(),
            )
        )
        return (*g_splats, g_background, g_offsets, None, None, None, None)

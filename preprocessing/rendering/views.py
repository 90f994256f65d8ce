"""Mesh + cameras -> pictures. `RENDERERS` is the registry; all entries draw what `shading` says, to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gsmae.errors import GsmaeError, nearest_name
from gsmae.ops.native import library

from ..meshes import Mesh
from . import native, reference
from .cameras import Cameras
from .shading import Background, Views


def render_views(
    mesh: Mesh,
    cameras: Cameras,
    supersample: int = 2,
    background: Background = (1.0, 1.0, 1.0),
    renderer: str = "auto",
    device: str = "cpu",
) -> Views:
    """Pictures of a mesh from each camera; the same bytes for any number of threads.

    supersample  samples per pixel and axis
    background   RGB 0..1
    renderer     a name in RENDERERS, or "auto": warp on a GPU, native where it was compiled, else the much slower
                 reference
    device       where "auto" is to work: "cpu" or "cuda"

    Raises GsmaeError for a renderer that is not known or cannot run here.
    """
    if supersample < 1:
        raise GsmaeError(f"supersample must be at least 1, not {supersample}")
    if renderer == "auto":
        renderer = "warp" if device.startswith("cuda") else "native" if library.available() else "reference"
    if renderer not in RENDERERS:
        raise GsmaeError(f"no renderer '{renderer}' ({nearest_name(renderer, RENDERERS)})")
    return RENDERERS[renderer](mesh, cameras, supersample, background)


def draw_views(mesh: Mesh, rigs: Sequence[Cameras], supersample: int, device: str) -> list[torch.Tensor]:
    """Pictures [V, H, W, 3] uint8, on white, of a mesh in each rig of cameras, on a device.

    On a GPU the mesh goes there once, and the pictures never leave it.
    """
    if not device.startswith("cuda"):
        return [torch.from_numpy(render_views(mesh, cameras, supersample).images) for cameras in rigs]
    from . import warp

    scene = warp.upload(mesh, device)
    return [warp.draw(scene, cameras, supersample)[0] for cameras in rigs]


def _warp(mesh: Mesh, cameras: Cameras, supersample: int, background: Background) -> Views:
    """Rays on the GPU, or on one slow thread where there is none; needs the extra `gpu`."""
    from .warp import render

    return render(mesh, cameras, supersample, background)


# name -> (mesh, cameras, supersample, background) -> Views
RENDERERS: dict[str, Callable[[Mesh, Cameras, int, Background], Views]] = {
    "native": native.render,
    "reference": reference.render,
    "warp": _warp,
}

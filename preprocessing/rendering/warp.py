"""The mesh renderer on a GPU: rays by NVIDIA Warp, the same pictures as csrc/mesh.cpp (see render.py).

`upload` and `draw` leave mesh and pictures on the device; `render` is the entry of `render.RENDERERS`. On a machine
without a GPU it is one slow thread, and an oracle that shares no kernel with the rasterisers.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gsmae.errors import GsmaeError
from gsmae.ops.warp import runtime

from ..meshes import Mesh
from .cameras import Cameras
from .shading import BLENDED, Background, Views, face_modes, light_table

PADDING = 1e-5  # of the faces' boxes, in sizes of the mesh: above the rounding of rays in single precision
MARGIN = 0.01  # how far before the mesh's box rays begin, in sizes of the mesh
MAX_TEXELS = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Scene:
    """A mesh on a device, to be drawn any number of times; about 0.4 kB a face and 5.4 bytes a texel.

    device     "cpu" or "cuda:0"
    value      the kernel's argument
    trees      owners of what `value` names only by number
    low, high  [3] bounding box
    """

    device: str
    value: Any
    trees: tuple[Any, ...]
    low: np.ndarray
    high: np.ndarray


def default_device() -> str:
    """The device "cuda" where both torch and Warp can use it, else "cpu"; GsmaeError where Warp is missing."""
    return "cuda" if runtime.warp().is_cuda_available() and torch.cuda.is_available() else "cpu"


def upload(mesh: Mesh, device: str | None = None) -> Scene:
    """Copy a mesh with its textures to a device (None: `default_device()`) and sort its faces into two trees of boxes.

    Raises GsmaeError where Warp is missing, the device cannot be used, or the textures have 2^31 pixels or more.
    """
    wp = runtime.warp()
    device = default_device() if device is None else device
    try:
        place = str(wp.get_device(device))
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise GsmaeError(f"the renderer 'warp' cannot use the device '{device}': {error}") from None
    modes = face_modes(mesh)
    corners = mesh.vertices[mesh.faces]
    low, high = corners.min(axis=1), corners.max(axis=1)
    slack = np.float32(PADDING) * np.abs(corners).max(initial=1e-30)
    chains, levels, texels = _textures(mesh)
    with _on(wp, place):

        def array(values: np.ndarray, dtype: Any) -> Any:
            return wp.array(np.ascontiguousarray(values), dtype=dtype, device=place)

        value, trees = importlib.import_module(".warp_kernels", __package__).Scene(), []
        for faces, chosen in ((value.solid, modes != BLENDED), (value.blended, modes == BLENDED)):
            numbers = np.flatnonzero(chosen).astype(np.int32)
            faces.numbers = array(numbers, wp.int32)
            if len(numbers):
                trees.append(wp.Bvh(array(low[numbers] - slack, wp.vec3), array(high[numbers] + slack, wp.vec3)))
                faces.tree = trees[-1].id
        value.corners, value.normals = array(corners, wp.vec3), array(mesh.normals, wp.vec3)
        value.uvs, value.colors = array(mesh.uvs, wp.vec2), array(mesh.colors, wp.vec4)
        value.texture, value.modes = array(mesh.texture, wp.int32), array(modes.astype(np.int32), wp.int32)
        value.chains, value.levels = array(chains, wp.vec3i), array(levels, wp.vec3i)
        value.texels, value.light = array(texels, wp.uint32), array(light_table(), wp.float32)
    return Scene(place, value, tuple(trees), low.min(axis=0), high.max(axis=0))


def draw(
    scene: Scene, cameras: Cameras, supersample: int = 2, background: Background = (1.0, 1.0, 1.0)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [V, H, W, 3] and cover [V, H, W] as in `render.Views`, uint8 on the scene's device; one launch for all.

    On CUDA it returns before the work is done; torch's current stream orders what follows.
    """
    wp = runtime.warp()
    kernels = importlib.import_module(".warp_kernels", __package__)
    shape = (len(cameras), cameras.height, cameras.width)
    images = torch.empty((*shape, 3), dtype=torch.uint8, device=scene.device)
    alphas = torch.empty(shape, dtype=torch.uint8, device=scene.device)
    with _on(wp, scene.device):
        views = _cameras(scene, cameras, supersample, kernels.Camera.numpy_dtype())
        wp.launch(
            kernels.draw, dim=shape, device=scene.device,
            inputs=[
                scene.value, wp.array(views, dtype=kernels.Camera, device=scene.device), supersample,
                wp.vec3(*background),
            ],
            outputs=[wp.from_torch(images), wp.from_torch(alphas)],
        )  # fmt: skip
    return images, alphas


def render(mesh: Mesh, cameras: Cameras, supersample: int, background: Background, device: str | None = None) -> Views:
    """Pictures of a mesh; see `render.render_views`. device: None is `default_device()`."""
    images, alphas = draw(upload(mesh, device), cameras, supersample, background)
    return Views(images.cpu().numpy(), alphas.cpu().numpy())


def _textures(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chains [T, 3] and levels [L, 3] as in csrc/surface.h, and all texels, four bytes in one number."""
    chains, levels, pixels, offset = [], [], [], 0
    for pyramid, cutout in zip(mesh.pyramids, mesh.cutouts, strict=True):
        chains.append((len(levels), len(pyramid), cutout))
        for level in pyramid:
            levels.append((offset, level.shape[1], level.shape[0]))
            offset += level.shape[0] * level.shape[1]
            pixels.append(level.reshape(-1))
    if offset > MAX_TEXELS:
        raise GsmaeError(f"the textures have {offset} pixels; the renderer 'warp' can hold {MAX_TEXELS}")
    table = [np.array(rows, dtype=np.int32).reshape(-1, 3) for rows in (chains, levels)]
    return table[0], table[1], np.concatenate(pixels or [np.zeros(0, np.uint8)]).view("<u4")


def _cameras(scene: Scene, cameras: Cameras, supersample: int, dtype: Any) -> np.ndarray:
    """The kernel's cameras, [V] of its struct."""
    scale = np.array([[supersample], [supersample], [1]])
    project = (cameras.Ks.astype(np.float64) * scale) @ cameras.viewmats[:, :3].astype(np.float64)
    unproject = np.linalg.inv(project[:, :, :3])
    box = np.stack([np.where([i & 1, i & 2, i & 4], scene.high, scene.low) for i in range(8)]).astype(np.float64)
    depth = box @ project[:, 2, :3].T + project[:, 2, 3]
    out: Any = np.zeros(len(cameras), dtype=dtype)
    out["project"], out["unproject"] = project, unproject
    out["eye"] = -(unproject @ project[:, :, 3:])[..., 0]
    out["first"] = np.maximum(depth.min(axis=0) - MARGIN * np.abs(box).max(), 0)
    return out


@contextmanager
def _on(wp: Any, device: str) -> Iterator[None]:
    """Warp's work goes to torch's stream, so that neither waits for the other nor frees what the other still reads."""
    stream = wp.stream_from_torch(torch.device(device)) if device != "cpu" else None
    with runtime.quiet(wp), wp.ScopedStream(stream, sync_enter=True, sync_exit=True):
        yield

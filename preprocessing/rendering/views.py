"""Mesh + cameras -> pictures. `RENDERERS` is the registry; all entries draw the same pictures, to rounding.

What is drawn:

* Light is fixed in the world, never on the camera: a surface point then has one colour from everywhere, which
  view-independent splats can hold (a lamp on the camera costs them 3 dB). The colour is
  albedo x (AMBIENT + sum over the LIGHTS of strength x max(0, n . l)), at most 1, in the values as stored (sRGB).
* Every face has two sides; the normal is turned to the side that is seen.
* Albedo is the mesh's colour times its texture: bilinear, repeating, trilinear between the two levels of the pyramid
  whose texels fit the sample best.
* Opacity is the colour's times the texture's. Textures that are cut out (`textures.is_cutout`) are opaque from one
  half on and absent below. Other translucent faces are blended over what lies behind them, sorted by depth at every
  sample, however many they are.
* Each pixel is the mean of supersample x supersample samples on a regular grid. A sample on an edge belongs to one
  of the two faces; of coplanar faces the first of the file is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gsmae.errors import GsmaeError, nearest_name
from gsmae.ops.native import library

from ..meshes import Mesh
from .cameras import Cameras

AMBIENT = 0.5
# direction towards the light (made unit) and strength; the key light stands where the paper's lamp does, at (3, 3, 5)
LIGHTS = (((3.0, 3.0, 5.0), 0.45), ((-4.0, -2.0, 1.0), 0.2))

OPAQUE, CUTOUT, BLENDED = 0, 1, 2
NEAR = 0.01  # distance of the near plane
COPLANAR = 1.00001  # of two faces in one place the later is drawn only if it is nearer by this factor
SOLID = 0.999  # opacity from which a face is taken as opaque
FAINT = 1 / 255  # opacity below which nothing is drawn


@dataclass(frozen=True)
class Views:
    """Pictures of a mesh.

    images  [V, H, W, 3] uint8, on the background
    alphas  [V, H, W] uint8, how much of each pixel the mesh covers
    """

    images: np.ndarray
    alphas: np.ndarray


Background = tuple[float, float, float]


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


def face_modes(mesh: Mesh) -> np.ndarray:
    """How each face is drawn, [F] uint8: OPAQUE, CUTOUT or BLENDED."""
    holes = np.append(mesh.cutouts, False)[mesh.texture]
    clear = np.array([image[..., 3].min(initial=255) < 255 for image in mesh.textures] + [False], dtype=bool)
    solid = mesh.colors[..., 3].min(axis=1) >= SOLID
    out = np.where(solid & ~clear[mesh.texture], OPAQUE, np.where(solid & holes, CUTOUT, BLENDED))
    return out.astype(np.uint8)


def light_table() -> np.ndarray:
    """AMBIENT, then x, y, z (unit) and strength of each of the LIGHTS; [1 + 4 * lights] float32."""
    table = [AMBIENT]
    for direction, strength in LIGHTS:
        table += [*(np.array(direction) / np.linalg.norm(direction)), strength]
    return np.array(table, dtype=np.float32)


def _native(mesh: Mesh, cameras: Cameras, supersample: int, background: Background) -> Views:
    """csrc/mesh.cpp: a visibility buffer, then each sample is shaded once."""
    if not library.available():
        raise GsmaeError("the native renderer was not compiled; reinstall gsmae on a machine with a C++ compiler")
    chains, levels, pixels = [], [], []
    offset = 0
    for image, cutout in zip(mesh.pyramids, mesh.cutouts, strict=True):
        chains.append((len(levels), len(image), cutout))
        for level in image:
            levels.append((offset, level.shape[1], level.shape[0]))
            offset += level.shape[0] * level.shape[1]
            pixels.append(level.reshape(-1))
    count, height, width = len(cameras), cameras.height, cameras.width
    images, alphas = np.empty((count, height, width, 3), np.uint8), np.empty((count, height, width), np.uint8)
    arrays = [
        np.ascontiguousarray(array)
        for array in (
            mesh.vertices, mesh.faces, mesh.normals, mesh.uvs, mesh.colors, mesh.texture, face_modes(mesh),
            np.concatenate(pixels) if pixels else np.zeros(4, np.uint8),
            np.array(levels, dtype=np.int64).reshape(-1, 3), np.array(chains, dtype=np.int32).reshape(-1, 3),
            light_table(), np.array(background, dtype=np.float32),
            cameras.viewmats.astype(np.float32, copy=False), cameras.Ks.astype(np.float32, copy=False), images, alphas,
        )
    ]  # fmt: skip
    p = [array.ctypes.data for array in arrays]
    kernel = library.library().kernel("gsmae_mesh_render", "plplppppppppppppiiiippi")
    kernel(
        p[0], len(mesh.vertices), p[1], len(mesh.faces), *p[2:14], count, width, height, supersample, *p[14:],
        library.threads(),
    )  # fmt: skip
    return Views(images, alphas)


def _reference(mesh: Mesh, cameras: Cameras, supersample: int, background: Background) -> Views:
    """Plain numpy, the definition."""
    from .reference import render

    return render(mesh, cameras, supersample, background)


def _warp(mesh: Mesh, cameras: Cameras, supersample: int, background: Background) -> Views:
    """Rays on the GPU, or on one slow thread where there is none; needs the extra `gpu`."""
    from .warp import render

    return render(mesh, cameras, supersample, background)


# name -> (mesh, cameras, supersample, background) -> Views
RENDERERS: dict[str, Callable[[Mesh, Cameras, int, Background], Views]] = {
    "native": _native,
    "reference": _reference,
    "warp": _warp,
}

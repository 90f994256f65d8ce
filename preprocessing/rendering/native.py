"""The compiled renderer: csrc/mesh.cpp, a visibility buffer, then each sample is shaded once."""

from __future__ import annotations

import numpy as np

from gsmae.errors import GsmaeError
from gsmae.ops.native import library

from ..meshes import Mesh
from .cameras import Cameras
from .shading import Background, Views, face_modes, light_table


def render(mesh: Mesh, cameras: Cameras, supersample: int, background: Background) -> Views:
    """See `views.render_views`. Raises GsmaeError where the library was not compiled."""
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

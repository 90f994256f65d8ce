"""What every renderer draws:

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

from dataclasses import dataclass

import numpy as np

from ..meshes import Mesh

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

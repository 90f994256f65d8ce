"""A mesh file -> triangles in the splats' frame with everything the views, the samples and the part labels need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gsmae.errors import GsmaeError, InputError
from gsmae.files import sha256

from .formats import READERS, Assets, RawMesh
from .formats.assets import Limits
from .sources import MeshItem
from .textures import is_cutout, pyramid

MAX_BYTES = 4 << 30  # of a mesh file

# What takes each file's up axis to z, as rows of a rotation. From y: (x, y, z) -> (x, -z, y), as in the released
# splats. OBJ and glTF have y up; OFF (ModelNet), PLY and STL are taken as they stand; COLLADA says it itself.
ROTATIONS = {
    "x": ((0, -1, 0), (0, 0, -1), (1, 0, 0)),
    "y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in the splats' frame: z up, bounding box centred on the origin, the farthest vertex at distance 1.

    vertices        [V, 3] float32
    faces           [F, 3] int32, in the file's order; a polygon's triangles follow each other
    normals         [F, 3, 3] float32 unit vectors per corner, on the side from which the face runs counter-clockwise
    uvs             [F, 3, 2] float32, v up; 0 where the file has none
    colors          [F, 3, 4] float32 RGBA 0..1 as stored (sRGB), to be multiplied by the texture; alpha is opacity
    texture         [F] int32 index into `textures`, -1 = none
    textures        arrays [h, w, 4] uint8, top row first
    materials       [F] int32 index into `material_names`
    groups          [F] int32 index into `group_names`: object and group of an OBJ, node of a scene
    mesh_to_splat   [4, 4] float64, takes the file's coordinates to these
    sha256          of the mesh file
    warnings        what the file names but does not have, in words
    path            the mesh file, for messages
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    colors: np.ndarray
    texture: np.ndarray
    textures: tuple[np.ndarray, ...]
    materials: np.ndarray
    material_names: tuple[str, ...]
    groups: np.ndarray
    group_names: tuple[str, ...]
    mesh_to_splat: np.ndarray
    sha256: str
    warnings: tuple[str, ...]
    path: Path = Path("mesh")

    @cached_property
    def pyramids(self) -> tuple[tuple[np.ndarray, ...], ...]:
        """The textures' pyramids; see `textures.pyramid`."""
        return tuple(pyramid(image) for image in self.textures)

    @cached_property
    def cutouts(self) -> np.ndarray:
        """[textures] bool: which textures are cut out at half their alpha; see `textures.is_cutout`."""
        return np.array([is_cutout(image) for image in self.textures], dtype=bool)


def load_mesh(
    item: MeshItem | str | Path, root: str | Path | None = None, up: str | None = None, limits: Limits | None = None
) -> Mesh:
    """Read a mesh file and what it names, check it, and bring it to the splats' frame.

    root  folder that material libraries and textures must lie in; default: `formats.assets.object_folder`
    up    "x", "y" or "z" where the file's up axis is not the one of its format (see ROTATIONS)
    limits  of faces and textures; a larger object is refused

    Raises InputError, naming file, cause and cure, for a file that is missing, empty, truncated, not of its format, or
    whose triangles are none, too many, not finite, or without any area.
    """
    path = Path(item.path if isinstance(item, MeshItem) else item)
    reader = READERS.get(path.suffix.lower())
    if not path.is_file():
        raise InputError(path, "no such file")
    if reader is None:
        raise InputError(path, f"no reader for '{path.suffix}' files", f"known: {', '.join(sorted(READERS))}")
    size = path.stat().st_size
    if size == 0:
        raise InputError(path, "the file is empty")
    if size > MAX_BYTES:
        raise InputError(path, f"{size / 2**30:.1f} GB; mesh files may have {MAX_BYTES >> 30} GB")
    assets = Assets(path, None if root is None else Path(root), limits)
    try:
        raw = reader(path, assets)
    except InputError:
        raise
    except GsmaeError as error:  # of a part that does not know the file
        raise InputError(path, str(error), "cut its faces into triangles before") from None
    except MemoryError:
        raise InputError(path, "needs more memory than this process may take", "simplify the mesh") from None
    if len(raw.faces) == 0:
        raise InputError(path, "contains no faces", "point clouds and curves have no surface to show")
    assets.count_faces(len(raw.faces))
    vertices, faces, transform = _normalise(path, raw, ROTATIONS[up if up is not None else raw.up])
    texture, textures, uvs = _textures(raw)
    return Mesh(
        vertices=vertices,
        faces=faces,
        normals=_normals(vertices, faces, raw, transform),
        uvs=uvs,
        colors=_colors(raw, texture),
        texture=texture,
        textures=textures,
        materials=_indices(raw.material, len(faces)),
        material_names=tuple(material.name for material in raw.materials),
        groups=_indices(raw.group, len(faces)),
        group_names=raw.groups,
        mesh_to_splat=transform,
        sha256=sha256(path),
        warnings=(*raw.warnings, *assets.warnings),
        path=path,
    )


def _normalise(path: Path, raw: RawMesh, rotation: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices in use [V, 3] float32 and faces [F, 3] int32 in the splats' frame, and the 4x4 that leads there."""
    if raw.faces.min() < 0 or raw.faces.max() >= len(raw.vertices):
        raise InputError(
            path, f"a face names a vertex that is not among the {len(raw.vertices)}", "the file is damaged"
        )
    used, faces = np.unique(raw.faces, return_inverse=True)
    points = raw.vertices[used]
    if not np.isfinite(points).all():
        wrong = int(used[~np.isfinite(points).all(1)][0])
        raise InputError(path, f"vertex {wrong + 1} is not finite", "the file is damaged")
    low, high = points.min(0), points.max(0)
    centre = low / 2 + high / 2
    radius = _length(points - centre).max()
    if not np.isfinite(radius) or radius <= np.abs(points).max() * 1e-12 or radius == 0:
        raise InputError(path, "has no extent: all its vertices lie in one point", "there is nothing to show")
    transform = np.eye(4)
    transform[:3, :3] = np.array(rotation) / radius
    transform[:3, 3] = -(np.array(rotation) @ (centre / radius))
    vertices = ((points - centre) / radius) @ np.array(rotation).T
    faces = faces.reshape(-1, 3)
    corners = vertices[faces]
    if not (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) != 0).any():
        raise InputError(path, "every face is without area", "there is nothing to show")
    return vertices.astype(np.float32), faces.astype(np.int32), transform


def _length(vectors: np.ndarray) -> np.ndarray:
    """Lengths along the last axis, without overflow or underflow."""
    top = np.abs(vectors).max(-1)
    safe = np.where(top > 0, top, 1)
    return top * np.sqrt(((vectors / safe[..., None]) ** 2).sum(-1))


def _normals(vertices: np.ndarray, faces: np.ndarray, raw: RawMesh, transform: np.ndarray) -> np.ndarray:
    """The file's normals where they are sane, else the face's own; all on the side of the winding.

    Sane: finite, within 80 degrees of the face's normal or of its opposite, and all three corners on one side of it.
    """
    corners = vertices[faces].astype(np.float64)
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = np.where(length > 0, flat / np.where(length > 0, length, 1), [0.0, 0.0, 1.0])
    out = np.repeat(flat[:, None], 3, axis=1)
    if raw.normals is not None:
        turned = np.nan_to_num(raw.normals, posinf=0, neginf=0) @ transform[:3, :3].T
        size = _length(turned)[..., None]
        turned = turned / np.where(size > 0, size, 1)
        cosine = (turned * flat[:, None]).sum(-1)
        side = np.sign(cosine.sum(-1))
        sane = (cosine * side[:, None] > np.cos(np.radians(80))).all(-1)
        out = np.where(sane[:, None, None], turned * side[:, None, None], out)
    return out.astype(np.float32)


def _textures(raw: RawMesh) -> tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray]:
    """Texture of each face [F] (-1 none), the distinct pictures, and texture coordinates [F, 3, 2] without gaps."""
    count = len(raw.faces)
    images = list({id(m.image): m.image for m in raw.materials if m.image is not None}.values())
    place = {id(image): i for i, image in enumerate(images)}
    per_material = np.array([-1 if m.image is None else place[id(m.image)] for m in raw.materials], dtype=np.int32)
    texture = per_material[_indices(raw.material, count)]
    if raw.uvs is None:
        return np.full(count, -1, dtype=np.int32), (), np.zeros((count, 3, 2), dtype=np.float32)
    whole = (np.abs(raw.uvs) < 1e6).all(axis=(1, 2))  # false for NaN too
    texture = np.where(whole, texture, -1).astype(np.int32)
    uvs = np.where((texture >= 0)[:, None, None], raw.uvs, 0)
    # float32 keeps its precision near 0, and a picture repeats: move each face's coordinates there
    uvs = uvs - np.floor(uvs.min(axis=1, keepdims=True))
    return texture, tuple(images), uvs.astype(np.float32)


def _colors(raw: RawMesh, texture: np.ndarray) -> np.ndarray:
    """Colour per corner [F, 3, 4]: the material's, or its tint under a texture, times the vertex colours."""
    material = _indices(raw.material, len(raw.faces))
    plain = np.array([m.color for m in raw.materials], dtype=np.float32)[material]
    tint = np.array([m.tint for m in raw.materials], dtype=np.float32)[material]
    base = np.where((texture >= 0)[:, None], tint, plain)
    out = np.repeat(base[:, None], 3, axis=1) if raw.colors is None else base[:, None] * raw.colors
    if (out[..., 3] <= 0).all():  # an object that nobody could see: an exporter's slip
        out[..., 3] = 1
    return np.nan_to_num(out).clip(0, 1).astype(np.float32)


def _indices(values: np.ndarray | None, count: int) -> np.ndarray:
    return np.zeros(count, dtype=np.int32) if values is None else values.astype(np.int32)

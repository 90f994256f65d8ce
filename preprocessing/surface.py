"""Points on the surface of a mesh, with normal, colour and part."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gsmae.errors import InputError

from .meshes import Mesh
from .textures import sample_trilinear

VISIBLE = 0.5  # opacity below which a texel of a cut-out texture is a hole
FAINT = 1 / 255  # opacity below which a surface is not there at all


@dataclass(frozen=True)
class SurfaceSamples:
    """P points on a mesh in the splats' frame.

    points   [P, 3] float32
    normals  [P, 3] float32 unit
    colors   [P, 3] uint8, the surface's own colour without light
    faces    [P] int32, the triangle each lies on
    """

    points: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    faces: np.ndarray

    def __len__(self) -> int:
        return len(self.points)


def sample_surface(mesh: Mesh, count: int, seed: int) -> SurfaceSamples:
    """`count` points, independent and uniform over the visible area: not on invisible faces or in cut-out holes.

    Raises InputError where nothing is visible.
    """
    random = np.random.default_rng(seed)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    area = np.cumsum(np.where(mesh.colors[..., 3].max(axis=1) >= FAINT, area, 0))
    if not area[-1] > 0:
        raise InputError(mesh.path, "no face is visible", "is its material fully transparent?")
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    left, barren = count, 0
    while left > 0:
        drawn = max(left, 64)
        faces = np.searchsorted(area, random.random(drawn) * area[-1], side="right").clip(0, len(area) - 1)
        root, share = np.sqrt(random.random(drawn)), random.random(drawn)
        weights = np.stack([1 - root, root * (1 - share), root * share], axis=1)
        rgba = albedo(mesh, faces, weights)
        textured = mesh.texture[faces]
        holes = (textured >= 0) & np.append(mesh.cutouts, False)[textured]
        seen = np.flatnonzero(rgba[:, 3] >= np.where(holes, VISIBLE, FAINT))[:left]
        kept.append((faces[seen], weights[seen], rgba[seen]))
        left -= len(seen)
        barren = 0 if len(seen) else barren + 1
        if barren == 100:
            raise InputError(mesh.path, "its textures are transparent all over", "there is nothing to show")
    faces, weights, rgba = (np.concatenate(values) for values in zip(*kept, strict=True))
    normals = (mesh.normals[faces] * weights[..., None]).sum(axis=1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return SurfaceSamples(
        points=(corners[faces] * weights[..., None]).sum(axis=1).astype(np.float32),
        normals=(normals / np.maximum(length, 1e-12)).astype(np.float32),
        colors=np.round(rgba[:, :3] * 255).astype(np.uint8),
        faces=faces.astype(np.int32),
    )


def albedo(mesh: Mesh, faces: np.ndarray, weights: np.ndarray, lod: np.ndarray | None = None) -> np.ndarray:
    """The surface's own colour, RGBA [P, 4] in 0..1, at barycentric `weights` [P, 3] of `faces` [P].

    lod  [P] level of the texture pyramid, 0 = the finest, which is the default
    """
    rgba = (mesh.colors[faces] * weights[..., None]).sum(axis=1).astype(np.float64)
    for number, levels in enumerate(mesh.pyramids):
        here = np.flatnonzero(mesh.texture[faces] == number)
        uvs = (mesh.uvs[faces[here]] * weights[here, :, None]).sum(axis=1)
        rgba[here] *= sample_trilinear(levels, uvs, np.zeros(len(here)) if lod is None else lod[here])
    return rgba


def part_labels(mesh: Mesh, faces: np.ndarray, patterns: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Part of each face in `faces` [P], as the index of its name in `patterns`; -1 = unlabelled. Returns [P] int16.

    patterns  part -> shell patterns (`*door*`), compared without regard to case to the face's material name and then
              to its group name and the pieces of it ("object/group"); the first part that fits wins

    Where there are several parts but the mesh has one material and one group, its name says nothing about parts, so
    all is unlabelled.
    """
    parts = list(patterns)
    drawn_from = np.unique(mesh.materials), np.unique(mesh.groups)
    if len(parts) > 1 and all(len(distinct) == 1 for distinct in drawn_from):
        return np.full(len(faces), -1, dtype=np.int16)
    material = np.array([_part([name], patterns) for name in mesh.material_names], dtype=np.int16)
    group = np.array([_part([name, *name.split("/")], patterns) for name in mesh.group_names], dtype=np.int16)
    by_material = material[mesh.materials[faces]]
    return np.where(by_material >= 0, by_material, group[mesh.groups[faces]]).astype(np.int16)


def _part(names: Sequence[str], patterns: Mapping[str, Sequence[str]]) -> int:
    """Index of the first part with a pattern that fits one of the names, or -1."""
    for index, wanted in enumerate(patterns.values()):
        if any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for name in names for pattern in wanted):
            return index
    return -1

"""What scenes are made of: triangles of one material under one name, merged into one mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gsmae.errors import InputError

from .raw import Material, RawMesh


@dataclass(frozen=True)
class Piece:
    """Triangles of one material in the frame of the scene; see RawMesh for what the arrays hold.

    vertices [n, 3], faces [F, 3] rows of them, normals [F, 3, 3], uvs [F, 3, 2], colors [F, 3, 4]
    """

    vertices: np.ndarray
    faces: np.ndarray
    material: Material
    group: str = ""
    normals: np.ndarray | None = None
    uvs: np.ndarray | None = None
    colors: np.ndarray | None = None


def merge(path: Path, pieces: Sequence[Piece], up: str) -> RawMesh:
    """All pieces as one mesh, in their order. InputError where they have no face."""
    sizes = [len(piece.faces) for piece in pieces]
    if not sum(sizes):
        raise InputError(path, "contains no faces")
    materials = list({id(piece.material): piece.material for piece in pieces}.values())
    number = {id(material): i for i, material in enumerate(materials)}
    groups = list(dict.fromkeys(piece.group for piece in pieces))
    place = {name: i for i, name in enumerate(groups)}
    offsets = np.cumsum([0, *(len(piece.vertices) for piece in pieces)])
    return RawMesh(
        vertices=np.concatenate([piece.vertices for piece in pieces]),
        faces=np.concatenate([p.faces.astype(np.int64) + o for p, o in zip(pieces, offsets, strict=False)]),
        up=up,
        normals=_join([piece.normals for piece in pieces], sizes, 3, np.nan),
        uvs=_join([piece.uvs for piece in pieces], sizes, 2, np.nan),
        colors=_join([piece.colors for piece in pieces], sizes, 4, 1.0),
        material=np.repeat(np.array([number[id(p.material)] for p in pieces], dtype=np.int32), sizes),
        materials=tuple(materials),
        group=np.repeat(np.array([place[p.group] for p in pieces], dtype=np.int32), sizes),
        groups=tuple(groups),
    )


def mirrored(matrix: np.ndarray) -> bool:
    """Whether a matrix [3+, 3+] turns triangles inside out, so that their corners have to be read backwards."""
    return bool(np.linalg.det(matrix[:3, :3]) < 0)


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Axis [3] and angle in radians as a 3x3 matrix (Rodrigues); an axis without length does not turn."""
    x, y, z = axis / max(float(np.linalg.norm(axis)), 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _join(values: list[np.ndarray | None], sizes: list[int], width: int, missing: float) -> np.ndarray | None:
    """One attribute of all pieces, filled where a piece has none; None where all have none."""
    if all(value is None for value in values):
        return None
    blank = [np.full((n, 3, width), missing) if v is None else v for v, n in zip(values, sizes, strict=True)]
    return np.concatenate(blank)

"""PLY, STL, glTF and COLLADA files, through trimesh."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import trimesh
from trimesh.visual.material import PBRMaterial, SimpleMaterial
from trimesh.visual.texture import TextureVisuals

from gsmae.errors import InputError

from .assets import Assets, rgba
from .raw import GREY, WHITE, Material, RawMesh

UP = {".ply": "z", ".stl": "z", ".glb": "y", ".gltf": "y"}  # COLLADA says it itself


def read_scene(path: Path, assets: Assets) -> RawMesh:
    """Every triangle of every node, in the scene's frame; `groups` are the nodes' names.

    Raises InputError for what trimesh cannot read; COLLADA needs pycollada (the extra `dae`).
    """
    kind = path.suffix.lower()
    data = path.read_bytes()
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type=kind[1:], resolver=cast(Any, assets), process=False)
    except ImportError:
        raise InputError(path, f"reading {kind} needs pycollada", "pip install 'gsmae[dae]'") from None
    except InputError:
        raise
    except Exception as error:  # a parser of strangers' bytes fails in any way it likes
        cause = "reading COLLADA needs pycollada" if kind == ".dae" and "collada" in str(error) else None
        cure = "pip install 'gsmae[dae]'" if cause else "the file is damaged or not what its name says"
        raise InputError(path, cause or f"not readable: {type(error).__name__}: {str(error)[:120]}", cure) from None

    pieces, materials, groups = [], [], []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        geometry = scene.geometry[name]
        if isinstance(geometry, trimesh.Trimesh) and len(geometry.faces):
            pieces.append(_piece(geometry, np.asarray(transform, dtype=np.float64), path))
            materials.append(_material(geometry, path, assets))
            groups.append(str(node))
    if not pieces:
        raise InputError(path, "contains no faces")
    offsets = np.cumsum([0, *(len(p["vertices"]) for p in pieces)])
    sizes = [len(p["faces"]) for p in pieces]
    up = UP.get(kind) or _collada_up(data)
    return RawMesh(
        vertices=np.concatenate([p["vertices"] for p in pieces]),
        faces=np.concatenate([p["faces"] + o for p, o in zip(pieces, offsets, strict=False)]),
        up=up,
        normals=_merge(pieces, "normals", 3, np.nan),
        uvs=_merge(pieces, "uvs", 2, np.nan),
        colors=_merge(pieces, "colors", 4, 1.0),
        material=np.repeat(np.arange(len(pieces), dtype=np.int32), sizes),
        materials=tuple(materials),
        group=np.repeat(np.arange(len(pieces), dtype=np.int32), sizes),
        groups=tuple(groups),
    )


def _piece(mesh: trimesh.Trimesh, transform: np.ndarray, path: Path) -> dict[str, Any]:
    """Arrays of one node, moved to the scene's frame."""
    faces = np.asarray(mesh.faces, dtype=np.int64)
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(path, "a face names a vertex that does not exist", "the file is damaged or truncated")
    linear = transform[:3, :3]
    if np.linalg.det(linear) < 0:  # a mirror turns triangles inside out
        faces = faces[:, ::-1]
    out: dict[str, Any] = {"vertices": vertices @ linear.T + transform[:3, 3], "faces": faces}
    if "vertex_normals" in mesh._cache:  # those of the file; asking for the property would compute some
        out["normals"] = (np.asarray(mesh.vertex_normals) @ np.linalg.pinv(linear))[faces]
    visual: Any = mesh.visual
    if isinstance(visual, TextureVisuals):
        if visual.uv is not None and len(visual.uv) == len(vertices):
            out["uvs"] = np.asarray(visual.uv, dtype=np.float64)[:, :2][faces]
        painted = visual.vertex_attributes.get("color") if hasattr(visual, "vertex_attributes") else None
        if painted is not None and len(painted) == len(vertices):
            out["colors"] = _four(np.asarray(painted))[faces]
    elif visual.kind == "vertex":
        out["colors"] = _four(np.asarray(visual.vertex_colors))[faces]
    elif visual.kind == "face":
        out["colors"] = np.repeat(_four(np.asarray(visual.face_colors))[:, None], 3, axis=1)
    return out


def _four(colors: np.ndarray) -> np.ndarray:
    """RGB or RGBA of any number type as float RGBA 0..1."""
    scale = 255.0 if colors.dtype == np.uint8 else 65535.0 if colors.dtype == np.uint16 else 1.0
    out = np.ones((len(colors), 4))
    out[:, : colors.shape[1]] = np.clip(colors.astype(np.float64) / scale, 0, 1)
    return out


def _color(value: Any) -> tuple[float, float, float, float]:
    """One colour of a material as RGBA 0..1."""
    r, g, b, a = _four(np.atleast_2d(np.asarray(value)))[0].tolist()
    return r, g, b, a


def _merge(pieces: list[dict[str, Any]], key: str, width: int, missing: float) -> np.ndarray | None:
    """One attribute of all pieces, filled where a piece has none; None where all have none."""
    if not any(key in p for p in pieces):
        return None
    return np.concatenate([p.get(key, np.full((len(p["faces"]), 3, width), missing)) for p in pieces])


def _material(mesh: trimesh.Trimesh, path: Path, assets: Assets) -> Material:
    """The base colour and texture of a node's material."""
    visual: Any = mesh.visual
    if not isinstance(visual, TextureVisuals):
        return Material("", color=WHITE if visual.kind in ("vertex", "face") else GREY)
    material: Any = visual.material
    name = str(getattr(material, "name", None) or "")
    if isinstance(material, PBRMaterial):
        factor = material.baseColorFactor
        color = WHITE if factor is None else _color(factor)
        image = _image(material.baseColorTexture, name, path, assets)
        mode = material.alphaMode or "OPAQUE"
        if mode != "BLEND":
            cutoff = 0.5 if material.alphaCutoff is None else float(material.alphaCutoff)
            image = _harden(image, 0.0 if mode == "OPAQUE" else cutoff / max(color[3], 1e-6))
            color = (color[0], color[1], color[2], 1.0)
        return Material(name, color=color, tint=color, image=image)
    if isinstance(material, SimpleMaterial):
        color = _color(material.diffuse)
        image = _image(material.image, name, path, assets)
        return Material(name, color=color, tint=(1.0, 1.0, 1.0, color[3]), image=image)
    return Material(name)


def _image(picture: Any, name: str, path: Path, assets: Assets) -> np.ndarray | None:
    if picture is None:
        return None
    try:
        return rgba(picture, path)
    except (OSError, ValueError, SyntaxError) as error:
        assets.warn(f"texture of material {name} is not readable ({error}); its material's colour is used")
        return None


def _harden(image: np.ndarray | None, cutoff: float) -> np.ndarray | None:
    """The image with alpha 0 below the cutoff and 1 elsewhere (glTF's OPAQUE and MASK)."""
    if image is None:
        return None
    alpha = np.where(image[..., 3:] >= cutoff * 255, 255, 0).astype(np.uint8)
    return np.concatenate([image[..., :3], alpha], axis=-1)


def _collada_up(data: bytes) -> str:
    """The <up_axis> of a COLLADA file, by default y; trimesh does not apply it."""
    found = re.search(rb"<up_axis>\s*([XYZ])_UP\s*</up_axis>", data)
    return found.group(1).decode().lower() if found else "y"

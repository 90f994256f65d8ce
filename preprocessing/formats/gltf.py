"""glTF 2 and GLB: the default scene's triangles with base colours, textures and vertex colours.

A reader of our own: trimesh 5 drops triangle fans, takes Draco-compressed vertices for zeros, and neither applies
texture transforms and skins nor tells linear from sRGB colours.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gsmae.errors import InputError

from .assets import Assets
from .gltf_data import Container
from .pieces import Piece, merge, mirrored
from .polygons import fan, strip
from .raw import GREY, WHITE, Material, RawMesh

POINTS_AND_LINES = (0, 1, 2, 3)


def read_gltf(path: Path, assets: Assets) -> RawMesh:
    """Read the default scene; y is up. `groups` are "node/mesh" names, or whichever of the two there is.

    Colours are linear in glTF and become sRGB here. Skins stand in their nodes' pose; morph targets are left out.
    Raises InputError for glTF 1, compressed meshes (Draco, meshopt) and whatever names what does not exist.
    """
    try:
        scene = _Scene(Container(path, assets))
        return merge(path, list(scene.pieces()), "y")
    except (TypeError, AttributeError, LookupError, ValueError, ArithmeticError) as error:  # JSON of another shape
        cause = f"not readable as glTF: {type(error).__name__}: {str(error)[:80]}"
        raise InputError(path, cause, "the file is damaged or not what its name says") from None


class _Scene:
    def __init__(self, container: Container):
        self.file, self.json = container, container.json
        self.materials: dict[Any, Material] = {}
        self.pictures: dict[int, np.ndarray | None] = {}
        self.faces = 0  # so far: a mesh that is placed often counts as often
        self.worlds: dict[int, np.ndarray] = {}  # matrix of each node of the scene

    def pieces(self) -> Iterator[Piece]:
        """The triangles of every node."""
        order = []
        stack = [(number, np.eye(4)) for number in reversed(self._roots())]
        while stack:
            number, above = stack.pop()
            node = self.file.entry("nodes", number)
            if number in self.worlds:
                raise self.file.damaged(f"node {number} is in the scene twice: its nodes are no tree")
            with np.errstate(over="ignore", invalid="ignore"):
                self.worlds[number] = above @ _matrix(node)
            order.append((number, node))
            stack += [(child, self.worlds[number]) for child in reversed(node.get("children", []))]
        for number, node in order:
            if "EXT_mesh_gpu_instancing" in node.get("extensions", {}):
                raise self.file.damaged("places instances by EXT_mesh_gpu_instancing", "export it without")
            if "mesh" in node:
                mesh = self.file.entry("meshes", node["mesh"])
                if any(node.get("weights", mesh.get("weights", []))):
                    self.file.assets.warn("morph targets are not applied")
                group = "/".join(dict.fromkeys(str(name) for name in (node.get("name"), mesh.get("name")) if name))
                for primitive in mesh.get("primitives", []):
                    if primitive.get("mode", 4) not in POINTS_AND_LINES:
                        yield self._piece(primitive, number, node, group)

    def _roots(self) -> list[Any]:
        scenes = self.json.get("scenes", [])
        if not scenes:  # then everything that is nobody's child
            nodes = self.json.get("nodes", [])
            children = {child for node in nodes for child in node.get("children", [])}
            return [number for number in range(len(nodes)) if number not in children]
        if len(scenes) > 1:
            self.file.assets.warn(f"has {len(scenes)} scenes; only the default one is read")
        return self.file.entry("scenes", self.json.get("scene", 0)).get("nodes", [])

    def _piece(self, primitive: dict[str, Any], number: int, node: dict[str, Any], group: str) -> Piece:
        attributes = primitive["attributes"]
        position = self.file.entry("accessors", attributes["POSITION"])
        if "KHR_draco_mesh_compression" in primitive.get("extensions", {}) and "bufferView" not in position:
            raise self.file.damaged("is compressed (KHR_draco_mesh_compression)", "export it uncompressed")
        count = self.file.count(attributes["POSITION"])
        corners, mode = (
            self.file.count(primitive["indices"]) if "indices" in primitive else count,
            primitive.get("mode", 4),
        )
        self.faces += corners // 3 if mode == 4 else max(corners - 2, 0)
        self.file.assets.count_faces(self.faces)
        if "indices" in primitive:
            index = self.file.array(primitive["indices"], (1,))[:, 0].astype(np.int64)
        else:
            index = np.arange(count)
        if len(index) and not 0 <= index.min() <= index.max() < count:
            raise self.file.damaged(f"a face names vertex {index.max()} of {count}")
        faces = self._triangles(index, mode)
        rows = None
        if count > 3 * len(faces):  # many primitives may share one long array
            rows, faces = np.unique(faces, return_inverse=True)
            faces = faces.reshape(-1, 3)
        points = self.file.array(attributes["POSITION"], (3,), rows).astype(np.float64)
        world = self.worlds[number][None]
        if "skin" in node and "JOINTS_0" in attributes:
            world = self._skin(node["skin"], attributes, count, rows)
        with np.errstate(over="ignore", invalid="ignore"):  # whether positions are finite is checked by the caller
            moved = (world[:, :3, :3] @ points[:, :, None])[:, :, 0] + world[:, :3, 3]
        if mirrored(world[0]):
            faces = faces[:, ::-1]
        material, slot = self._material(primitive.get("material"), "COLOR_0" in attributes)
        return Piece(
            moved, faces, material, group,
            normals=self._normals(attributes, world, faces, count, rows),
            uvs=self._uvs(attributes, slot, faces, count, rows),
            colors=self._colors(attributes, primitive.get("material"), faces, count, rows),
        )  # fmt: skip

    def _triangles(self, index: np.ndarray, mode: Any) -> np.ndarray:
        """Triangles [F, 3] of a list (4), a strip (5) or a fan (6)."""
        if mode == 4:
            if len(index) % 3:
                self.file.assets.warn(f"{len(index) % 3} corner(s) at the end of a list of triangles are left out")
            return index[: len(index) // 3 * 3].reshape(-1, 3)
        if mode not in (5, 6):
            raise self.file.damaged(f"has primitives of the unknown mode {str(mode)[:20]}")
        return index[(strip if mode == 5 else fan)(len(index))]

    def _skin(self, number: Any, attributes: dict[str, Any], count: int, rows: np.ndarray | None) -> np.ndarray:
        """The matrix of every vertex [n, 4, 4] in the pose of its joints."""
        skin = self.file.entry("skins", number)
        joints = np.stack([self.worlds.get(joint, np.eye(4)) for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            inverse = self.file.array(skin["inverseBindMatrices"], (16,)).reshape(-1, 4, 4).swapaxes(1, 2)
            joints = joints @ inverse[: len(joints)]
        which = self._vertex_values(attributes["JOINTS_0"], (4,), count, rows).astype(np.int64)
        weights = self._vertex_values(attributes["WEIGHTS_0"], (4,), count, rows).astype(np.float64)
        if len(which) and not 0 <= which.min() <= which.max() < len(joints):
            raise self.file.damaged(f"a vertex names joint {which.max()} of {len(joints)}")
        total = weights.sum(1, keepdims=True)
        return np.einsum("nj,njab->nab", weights / np.where(total > 0, total, 1), joints[which])

    def _vertex_values(self, accessor: Any, widths: tuple[int, ...], count: int, rows: np.ndarray | None) -> np.ndarray:
        if self.file.count(accessor) != count:
            raise self.file.damaged(f"has {count} positions but {self.file.count(accessor)} of another attribute")
        return self.file.array(accessor, widths, rows)

    def _normals(
        self, attributes: dict[str, Any], world: np.ndarray, faces: np.ndarray, count: int, rows: np.ndarray | None
    ) -> np.ndarray | None:
        if "NORMAL" not in attributes:
            return None
        normals = self._vertex_values(attributes["NORMAL"], (3,), count, rows).astype(np.float64)
        turned = np.linalg.pinv(world[:, :3, :3]).swapaxes(1, 2) @ normals[:, :, None]
        return turned[:, :, 0][faces]

    def _uvs(
        self, attributes: dict[str, Any], slot: dict[str, Any], faces: np.ndarray, count: int, rows: np.ndarray | None
    ) -> np.ndarray | None:
        """Texture coordinates of the base colour, v up."""
        change = slot.get("extensions", {}).get("KHR_texture_transform", {})
        name = f"TEXCOORD_{change.get('texCoord', slot.get('texCoord', 0))}"
        if not slot or name not in attributes:
            return None
        uv = self._vertex_values(attributes[name], (2,), count, rows).astype(np.float64)
        uv = uv * np.array(change.get("scale", (1, 1)), dtype=np.float64)
        turn = float(change.get("rotation", 0))
        c, s = np.cos(turn), np.sin(turn)
        uv = uv @ np.array([[c, -s], [s, c]]) + np.array(change.get("offset", (0, 0)), dtype=np.float64)
        return (uv * (1, -1) + (0, 1))[faces]

    def _colors(
        self, attributes: dict[str, Any], material: Any, faces: np.ndarray, count: int, rows: np.ndarray | None
    ) -> np.ndarray | None:
        """Vertex colours as sRGB; their opacity counts where the material blends."""
        if "COLOR_0" not in attributes:
            return None
        values = self._vertex_values(attributes["COLOR_0"], (3, 4), count, rows)
        top = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1  # bytes whose flag was forgotten
        colors = np.ones((len(values), 4))
        colors[:, : values.shape[1]] = np.clip(np.nan_to_num(values / top), 0, 1)
        colors[:, :3] = _srgb(colors[:, :3])
        if material is None or self.file.entry("materials", material).get("alphaMode") != "BLEND":
            colors[:, 3] = 1
        return colors[faces]

    def _material(self, number: Any, painted: bool) -> tuple[Material, dict[str, Any]]:
        """A material, and the slot of its base colour texture ({} = none)."""
        if number is None:
            return self.materials.setdefault(painted, Material("", color=WHITE if painted else GREY)), {}
        entry = self.file.entry("materials", number)
        metal = entry.get("pbrMetallicRoughness", {})
        factor, slot = metal.get("baseColorFactor", WHITE), metal.get("baseColorTexture", {})
        older = entry.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
        if older is not None:
            factor, slot = older.get("diffuseFactor", WHITE), older.get("diffuseTexture", {})
        if not slot and not any(factor[:3]) and any(entry.get("emissiveFactor", ())):  # black but for its glow
            factor, slot = [*entry["emissiveFactor"], factor[3]], entry.get("emissiveTexture", {})
        key = "material", number
        if key not in self.materials:
            name = str(entry.get("name", ""))
            rgba = np.clip(np.nan_to_num(np.array(factor, dtype=np.float64).reshape(4)), 0, 1)
            r, g, b = _srgb(rgba[:3]).tolist()
            image, alpha, mode = self._image(slot, name), float(rgba[3]), entry.get("alphaMode", "OPAQUE")
            if mode != "BLEND":
                cutoff = float(entry.get("alphaCutoff", 0.5)) if mode == "MASK" else 0.0
                if image is not None:
                    image = _harden(image, cutoff / max(alpha, 1e-6))
                alpha = 1.0 if alpha >= cutoff or image is not None else 0.0
            self.materials[key] = Material(name, color=(r, g, b, alpha), tint=(r, g, b, alpha), image=image)
        return self.materials[key], slot

    def _image(self, slot: dict[str, Any], name: str) -> np.ndarray | None:
        """The picture of a slot, or None and a warning."""
        if not slot:
            return None
        texture = self.file.entry("textures", slot.get("index"))
        source = texture.get("extensions", {}).get("EXT_texture_webp", texture).get("source")
        if source is None:
            self.file.assets.warn(f"texture of material {name} is of a kind that is not read; its colour is used")
            return None
        entry = self.file.entry("images", source)
        if source not in self.pictures:
            data = self.file.image_bytes(entry)
            self.pictures[source] = self._decode(data, name) if data is not None else self._external(entry)
        return self.pictures[source]

    def _decode(self, data: bytes, name: str) -> np.ndarray | None:
        try:
            return self.file.assets.decode(data, self.file.path)
        except (OSError, ValueError, SyntaxError) as error:
            self.file.assets.warn(f"texture of material {name} is not readable ({error}); its colour is used")
            return None

    def _external(self, entry: dict[str, Any]) -> np.ndarray | None:
        uri = str(entry.get("uri", ""))
        name = uri if self.file.assets.find(uri) else urllib.parse.unquote(uri)
        return self.file.assets.image(name, self.file.path.name)


def _srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light 0..1 as stored in pictures (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def _harden(image: np.ndarray, cutoff: float) -> np.ndarray:
    """The image with alpha 0 below the cutoff and 1 elsewhere (glTF's OPAQUE and MASK)."""
    alpha = np.where(image[..., 3:] >= cutoff * 255, 255, 0).astype(np.uint8)
    return np.concatenate([image[..., :3], alpha], axis=-1)


def _matrix(node: dict[str, Any]) -> np.ndarray:
    """A node's matrix, or that of its translation, rotation (a quaternion xyzw) and scale."""
    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), dtype=np.float64)
    norm = x * x + y * y + z * z + w * w
    two = 2 / norm if norm > 0 else 0
    out = np.eye(4)
    out[:3, :3] -= two * np.array(
        [[y * y + z * z, z * w - x * y, -x * z - y * w],
         [-x * y - z * w, x * x + z * z, x * w - y * z],
         [y * w - x * z, -x * w - y * z, x * x + y * y]]
    )  # fmt: skip
    out[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), dtype=np.float64)
    out[:3, 3] = np.array(node.get("translation", (0, 0, 0)), dtype=np.float64)
    return out

"""COLLADA 1.4 and 1.5 files: the default scene's polygons with diffuse colours, textures and vertex colours.

A reader of our own, for pycollada and trimesh 5 leave out skinned meshes and nodes that are instances, silently.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from gsmae.errors import InputError

from .assets import Assets
from .pieces import Piece, merge, mirrored, rotation
from .polygons import fan, strip, triangulate
from .raw import GREY, WHITE, Material, RawMesh, numbers

MAX_NODES = 100_000
MAX_DEPTH = 500  # nodes inside nodes
SHADERS = ("phong", "lambert", "blinn", "constant")
Element = ElementTree.Element


class _Shape(NamedTuple):
    """One <triangles>, <polylist>, ... in its own frame, corner by corner."""

    points: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None
    uvs: np.ndarray | None
    colors: np.ndarray | None
    symbol: str  # of its material


def read_dae(path: Path, assets: Assets) -> RawMesh:
    """Read the scene; up is what the file's up_axis says, by default y. `groups` are the names of nodes.

    Skins stand in their bind pose. Raises InputError for XML that does not parse or declares a document type (its
    entities could grow without limit), and for references that lead nowhere.
    """
    try:
        root = ElementTree.XML(path.read_bytes(), ElementTree.XMLParser(target=_Builder(path)))
        for element in root.iter():  # without namespaces: 1.4 and 1.5 have different ones
            element.tag = element.tag.rpartition("}")[2]
        if root.tag != "COLLADA":
            raise InputError(path, f"is a file of <{root.tag[:40]}>, not COLLADA", "is this a COLLADA file?")
        axis = (root.findtext("asset/up_axis") or "Y_UP").strip()[:1].lower()
        return merge(path, list(_Document(path, assets, root).pieces()), axis if axis in ("x", "z") else "y")
    except (ElementTree.ParseError, ValueError, LookupError, TypeError, AttributeError) as error:  # of another shape
        cause = f"not readable as COLLADA: {type(error).__name__}: {str(error)[:100]}"
        raise InputError(path, cause, "the file is damaged or not what its name says") from None


class _Builder(ElementTree.TreeBuilder):
    """Elements of a document without a type: entities are declared in it and could grow without limit."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def doctype(self, *_: object) -> None:
        raise InputError(self.path, "declares an XML document type, which is not read", "export it without")


class _Document:
    def __init__(self, path: Path, assets: Assets, root: Element):
        self.path, self.assets, self.root = path, assets, root
        self.ids = {element.get("id", ""): element for element in root.iter() if element.get("id")}
        self.shapes: dict[str, list[_Shape]] = {}
        self.materials: dict[str, Material] = {}

    def pieces(self) -> Iterator[Piece]:
        """The faces of every instance of a geometry."""
        scene = self.root.find("scene/instance_visual_scene")
        top = (
            self.refer(scene.get("url")) if scene is not None else self.root.find("library_visual_scenes/visual_scene")
        )
        stack = [(node, np.eye(4), "", 0) for node in reversed(top.findall("node"))] if top is not None else []
        faces = 0  # so far: a geometry that is placed often counts as often
        for _ in range(MAX_NODES):
            if not stack:
                return
            node, above, name, depth = stack.pop()
            if depth > MAX_DEPTH:
                break
            name = node.get("name") or node.get("id") or name
            matrix = above @ self.matrix(node)
            below = [child for child in node if child.tag in ("node", "instance_node")]
            below = [self.refer(child.get("url")) if child.tag == "instance_node" else child for child in below]
            stack += [(child, matrix, name, depth + 1) for child in reversed(below)]
            for instance in [*node.findall("instance_geometry"), *node.findall("instance_controller")]:
                bound = {m.get("symbol"): m.get("target") for m in instance.iter("instance_material")}
                geometry, bind = self.geometry(instance)
                for shape in self.shape(geometry):
                    faces += len(shape.faces)
                    self.assets.count_faces(faces)
                    yield self.piece(shape, matrix @ bind, bound.get(shape.symbol), name)
        raise InputError(self.path, f"more than {MAX_NODES} nodes, or nodes inside themselves", "simplify the scene")

    def refer(self, url: str | None) -> Element:
        """The element that "#id" names."""
        found = self.ids.get((url or "")[1:]) if (url or "").startswith("#") else None
        if found is None:
            raise InputError(self.path, f"names {str(url)[:60]}, which does not exist", "the file is damaged")
        return found

    def numbers(self, element: Element | None, dtype: type = np.float64) -> np.ndarray:
        what = "a list" if element is None else f"<{element.tag}>"
        return numbers(self.path, what, (element.text or "").split() if element is not None else [], dtype)

    def matrix(self, node: Element) -> np.ndarray:
        """The product of a node's transformations, in their order."""
        out = np.eye(4)
        for element in node:
            if element.tag not in ("matrix", "translate", "rotate", "scale", "lookat", "skew"):
                continue
            values, step = self.numbers(element), np.eye(4)
            if len(values) != {"matrix": 16, "translate": 3, "rotate": 4, "scale": 3}.get(element.tag, len(values)):
                raise InputError(self.path, f"a <{element.tag}> of {len(values)} numbers", "the file is damaged")
            if element.tag == "matrix":
                step = values.reshape(4, 4)
            elif element.tag == "translate":
                step[:3, 3] = values
            elif element.tag == "scale":
                step[:3, :3] = np.diag(values)
            elif element.tag == "rotate":
                step[:3, :3] = rotation(values[:3], np.radians(values[3]))
            else:
                self.assets.warn(f"<{element.tag}> of node {node.get('name') or node.get('id')} is not applied")
            out = out @ step
        return out

    def geometry(self, instance: Element) -> tuple[Element, np.ndarray]:
        """The geometry that is placed, and the matrix by which a skin binds it."""
        found, bind = self.refer(instance.get("url")), np.eye(4)
        for _ in range(8):  # a controller may control a controller
            if found.tag != "controller":
                break
            skin, morph = found.find("skin"), found.find("morph")
            if morph is not None:
                self.assets.warn("morph targets are not applied")
            source = skin if skin is not None else morph
            values = self.numbers(skin.find("bind_shape_matrix")) if skin is not None else np.zeros(0)
            bind = bind @ values.reshape(4, 4) if len(values) == 16 else bind
            found = self.refer(source.get("source") if source is not None else None)
        return found, bind

    def shape(self, geometry: Element) -> list[_Shape]:
        """The faces of a geometry; read once, however often it is placed."""
        key = geometry.get("id", "")
        if key not in self.shapes:
            mesh = geometry.find("mesh")
            self.shapes[key] = list(self.primitives(mesh)) if mesh is not None else []
            if mesh is None:
                self.assets.warn(f"geometry {key} is no mesh and is left out")
        return self.shapes[key]

    def primitives(self, mesh: Element) -> Iterator[_Shape]:
        for element in mesh:
            if element.tag not in ("triangles", "polylist", "polygons", "tristrips", "trifans"):
                continue
            inputs = self.inputs(mesh, element)
            width = 1 + max((offset for _, offset, _ in inputs), default=0)
            runs = [self.numbers(p, np.int64) for p in element.iter("p")]
            if any(len(run) % width for run in runs):
                raise InputError(self.path, f"a <p> whose numbers are not {width} for each corner", "it is damaged")
            if element.find("ph") is not None:
                self.assets.warn("holes in polygons are filled")
            index = np.concatenate([np.zeros((0, width), np.int64), *(run.reshape(-1, width) for run in runs)])
            index, counts = self.corners(element, index, [len(run) // width for run in runs])
            kinds = {kind: (offset, values) for kind, offset, values in reversed(inputs)}  # the first of a kind counts
            if not len(index) or "POSITION" not in kinds:
                continue
            position = self.pick(kinds["POSITION"], index)
            if position.shape[1] < 3:
                raise InputError(self.path, f"positions of {position.shape[1]} numbers", "the file is damaged")
            corner, _ = triangulate(position[:, :3], counts)
            values = {kind: self.pick(found, index)[corner] for kind, found in kinds.items() if kind != "POSITION"}
            color = values.get("COLOR")
            if color is not None and color.shape[-1] < 4:
                color = np.concatenate([color[..., :3], np.ones((*color.shape[:2], 1))], axis=-1)
            uvs = values["TEXCOORD"][..., :2] if "TEXCOORD" in values else None
            used, faces = np.unique(index[:, kinds["POSITION"][0]][corner], return_inverse=True)
            yield _Shape(
                kinds["POSITION"][1][used][:, :3], faces.reshape(-1, 3), values.get("NORMAL"), uvs,
                None if color is None else np.clip(np.nan_to_num(color[..., :4]), 0, 1), element.get("material", ""),
            )  # fmt: skip

    def corners(self, element: Element, index: np.ndarray, runs: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `index` polygon by polygon, and the number of corners of each."""
        if element.tag in ("tristrips", "trifans"):
            starts = np.cumsum([0, *runs])
            run = strip if element.tag == "tristrips" else fan
            rows = np.concatenate(
                [np.zeros((0, 3), np.int64), *(s + run(n) for s, n in zip(starts, runs, strict=False))]
            )
            return index[rows.reshape(-1)], np.full(len(rows), 3)
        if element.tag == "polygons":
            counts = np.array(runs, dtype=np.int64)
        elif element.tag == "polylist":
            counts = self.numbers(element.find("vcount"), np.int64)
        else:
            counts = np.full(len(index) // 3, 3)
        if (counts < 0).any() or counts.sum() != len(index):
            raise InputError(self.path, f"a <{element.tag}> promises {counts.sum()} corners but has {len(index)}")
        if narrow := int((counts < 3).sum()):
            self.assets.warn(f"{narrow} face(s) of fewer than three corners are left out")
        return index, counts

    def inputs(self, mesh: Element, element: Element) -> list[tuple[str, int, np.ndarray]]:
        """Kind, place among the indices and values [n, width] of every input; VERTEX means those of <vertices>."""
        out = []
        for entry in element.findall("input"):
            try:
                offset = int(entry.get("offset", "0"))
            except ValueError:
                offset = -1
            if not 0 <= offset < 64:
                raise InputError(self.path, f"an input with the offset {entry.get('offset')}", "the file is damaged")
            source = self.refer(entry.get("source"))
            inner = source.findall("input") if entry.get("semantic") == "VERTEX" else [entry]
            out += [(e.get("semantic", ""), offset, self.values(self.refer(e.get("source")))) for e in inner]
        return out

    def values(self, source: Element) -> np.ndarray:
        """A <source> of floats as [n, width]."""
        accessor = source.find("technique_common/accessor")
        values = self.numbers(source.find("float_array"))
        width = max(int(accessor.get("stride", "1")) if accessor is not None else 3, 1)
        return values[: len(values) // width * width].reshape(-1, width)

    def pick(self, found: tuple[int, np.ndarray], index: np.ndarray) -> np.ndarray:
        """The values of one input at all corners."""
        rows, values = index[:, found[0]], found[1]
        if rows.min() < 0 or rows.max() >= len(values):
            raise InputError(self.path, f"a face names value {rows.max()} of {len(values)}", "the file is damaged")
        return values[rows]

    def piece(self, shape: _Shape, matrix: np.ndarray, target: str | None, name: str) -> Piece:
        with np.errstate(over="ignore", invalid="ignore"):  # whether positions are finite is checked by the caller
            points = shape.points @ matrix[:3, :3].T + matrix[:3, 3]
        turn = slice(None, None, -1) if mirrored(matrix) else slice(None)
        normals, uvs, colors = (
            None if v is None or v.shape[-1] < n else v[:, turn]
            for v, n in ((shape.normals, 3), (shape.uvs, 2), (shape.colors, 4))
        )
        if normals is not None and np.isfinite(matrix).all():
            normals = normals[..., :3] @ np.linalg.pinv(matrix[:3, :3])
        material = self.material(target if target is not None else f"#{shape.symbol}", colors is not None)
        return Piece(points, shape.faces[:, turn], material, name, normals, uvs, colors)

    def material(self, target: str, painted: bool) -> Material:
        """A material by "#id"; colours of vertices replace its diffuse colour where it has no texture."""
        key = f"{target} {painted}"
        if key not in self.materials:
            element = self.ids.get(target[1:])
            effect = element.find("instance_effect") if element is not None else None
            if element is None or effect is None:
                self.materials[key] = Material("", color=WHITE if painted else GREY)
            else:
                name = element.get("name") or element.get("id") or ""
                self.materials[key] = self.effect(name, self.refer(effect.get("url")), painted)
        return self.materials[key]

    def effect(self, name: str, effect: Element, painted: bool) -> Material:
        shader = next((s for kind in SHADERS for s in effect.iter(kind)), None)
        diffuse = shader.find("diffuse") if shader is not None else None
        texture = diffuse.find("texture") if diffuse is not None else None
        values = self.numbers(diffuse.find("color")) if diffuse is not None else np.zeros(0)
        r, g, b = np.clip(values[:3], 0, 1).tolist() if len(values) >= 3 else GREY[:3]
        alpha = self.opacity(shader)
        if texture is not None:
            image = self.image(effect, texture.get("texture", ""))
            if image is not None:
                return Material(name, color=(*GREY[:3], alpha), tint=(1.0, 1.0, 1.0, alpha), image=image)
        return Material(name, color=(*WHITE[:3], alpha) if painted else (r, g, b, alpha))

    def opacity(self, shader: Element | None) -> float:
        """Of A_ONE and RGB_ZERO, as COLLADA 1.4 defines them; an object that would be invisible is taken for opaque."""
        transparent = shader.find("transparent") if shader is not None else None
        if shader is None or (transparent is None and shader.find("transparency") is None):
            return 1.0
        share = self.numbers(shader.find("transparency/float"))
        share = float(np.clip(share[0], 0, 1)) if len(share) else 1.0
        color = self.numbers(transparent.find("color")) if transparent is not None else np.ones(4)
        if len(color) < 3:
            return 1.0
        if transparent is not None and transparent.get("opaque") == "RGB_ZERO":
            opacity = 1 - share * float(color[:3] @ (0.212671, 0.715160, 0.072169))
        else:
            opacity = share * float(color[3] if len(color) > 3 else 1)
        return float(np.clip(opacity, 0, 1)) if opacity > 0 else 1.0

    def image(self, effect: Element, name: str) -> np.ndarray | None:
        """The picture behind a texture: sampler -> surface -> image, or sampler -> image (1.5), or the image itself."""
        named = {p.get("sid", ""): p for p in effect.iter("newparam")}
        for _ in range(3):
            if name not in named:
                break
            links = [*named[name].iter("source"), *named[name].iter("init_from"), *named[name].iter("instance_image")]
            name = (links[0].text or links[0].get("url", "")).strip().lstrip("#") if links else ""
        element = self.ids.get(name)
        init = element.find("init_from") if element is not None else None
        ref = init.find("ref") if init is not None else None
        uri = ((ref if ref is not None else init).text or "").strip() if init is not None else ""  # type: ignore[union-attr]
        if not uri:
            self.assets.warn(f"texture {name} named by {self.path.name} is missing; its material's colour is used")
            return None
        clean = urllib.parse.unquote(re.sub(r"^file:/*", "/", uri))
        return self.assets.image(uri if self.assets.find(uri) else clean, self.path.name)

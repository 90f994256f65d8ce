"""VRML 2 (VRML97) files: the surfaces of a scene with the name and the plain colour of every material.

No maintained library reads them. KiCad's packages are flat lists of shapes whose material names (PIN-01, IC-BODY-
EPOXY-04) tell the parts; the few that were drawn elsewhere nest transforms and use nodes again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gsmae.errors import InputError

from .assets import Assets
from .pieces import mirrored, rotation
from .polygons import triangulate
from .raw import GREY, WHITE, Material, RawMesh
from .vrml_nodes import Node, parse

CHILDREN = {
    "Transform": "children", "Group": "children", "Anchor": "children", "Collision": "children",
    "Billboard": "children", "Switch": "choice", "LOD": "level",
}  # fmt: skip
WITHOUT_SURFACE = ("IndexedLineSet", "PointSet", "Text")
MAX_NODES = 100_000  # of the scene, one that is used twice counted twice
NOTHING = Node("", "", {})


class _Surface(NamedTuple):
    points: np.ndarray  # [n, 3] in the scene's frame
    corners: np.ndarray  # [M] rows of points
    counts: np.ndarray  # [P] corners of each polygon
    colors: np.ndarray | None  # [M, 3] of corners
    turned: bool  # seen from the other side than it was written from


def read_vrml(path: Path, assets: Assets) -> RawMesh:
    """Read every IndexedFaceSet that the scene shows; z is up, as in KiCad's packages.

    Materials are named as their nodes are; `groups` are the DEF names of the nodes around a shape. Textures, primitives
    (Box, Sphere, ...) and scenes in other files are left out with a warning, lines and points without. Raises
    InputError for VRML 1, prototypes and what does not parse.
    """
    text = path.read_bytes().decode("utf-8", errors="replace")
    if not text.startswith("#VRML V2.0"):
        raise InputError(path, "does not begin with '#VRML V2.0'", "VRML 1 is not read: export it as VRML 2")
    surfaces: list[_Surface] = []
    numbers: dict[
        tuple[int, bool], int
    ] = {}  # of the materials, which are told apart by node, and whether the shape brings colours of its own
    materials: list[Material] = []
    groups: dict[str, int] = {}
    owners: list[tuple[int, int]] = []  # material and group of each surface
    faces = 0  # so far: a shape that is used again counts again
    parsed: dict[int, _Surface | None] = {}  # by node, in its own frame: a shape may be used often
    for shape, matrix, group in _shapes(path, parse(path, text), assets):
        if id(shape) not in parsed:
            parsed[id(shape)] = _surface(path, shape, assets)
        own = parsed[id(shape)]
        if own is None:
            continue
        surface = _placed(own, matrix)
        faces += len(surface.counts)
        assets.count_faces(faces)
        appearance = shape.node("appearance") or NOTHING
        key = id(appearance.node("material")), surface.colors is not None
        if key not in numbers:
            numbers[key] = len(numbers)
            materials.append(_material(path, appearance, key[1], assets))
        surfaces.append(surface)
        owners.append((numbers[key], groups.setdefault(group, len(groups))))
    if not surfaces:
        raise InputError(path, "contains no faces")

    offsets = np.cumsum([0, *(len(s.points) for s in surfaces)])
    points = np.concatenate([s.points for s in surfaces])
    corners = np.concatenate([s.corners + o for s, o in zip(surfaces, offsets, strict=False)])
    counts = np.concatenate([s.counts for s in surfaces])
    corner, polygon = triangulate(points[corners], counts)
    if narrow := int((counts < 3).sum()):
        assets.warn(f"{narrow} face(s) of fewer than three corners are left out")
    surface = np.repeat(np.arange(len(surfaces)), [len(s.counts) for s in surfaces])[polygon]
    turned = np.array([s.turned for s in surfaces])[surface]
    corner[turned] = corner[turned][:, ::-1]
    colors = None
    if any(s.colors is not None for s in surfaces):
        colors = np.ones((len(corners), 4))
        colors[:, :3] = np.concatenate(
            [np.ones((len(s.corners), 3)) if s.colors is None else s.colors for s in surfaces]
        )
    return RawMesh(
        vertices=points,
        faces=corners[corner],
        up="z",
        colors=None if colors is None else colors[corner],
        material=np.array([m for m, _ in owners], dtype=np.int32)[surface],
        materials=tuple(materials),
        group=np.array([g for _, g in owners], dtype=np.int32)[surface],
        groups=tuple(groups),
    )


def _shapes(path: Path, roots: list[Node], assets: Assets) -> Iterator[tuple[Node, np.ndarray, str]]:
    """Every shape that is shown, in the file's order, with its matrix to the scene and the DEF name around it."""
    stack = [(root, np.eye(4), "") for root in reversed(roots)]
    for _ in range(MAX_NODES):
        if not stack:
            return
        node, matrix, group = stack.pop()
        group = node.name or group
        children = node.nodes(CHILDREN.get(node.kind, ""))
        if node.kind == "Shape":
            yield node, matrix, group
        elif node.kind == "Inline":
            assets.warn("a scene in another file (Inline) is left out")
        elif node.kind == "Transform":
            matrix = matrix @ _transform(path, node)
        elif node.kind == "Switch":
            which = node.vector(path, "whichChoice", -1)[0]
            children = [children[int(which)]] if 0 <= which < len(children) else []
        elif node.kind == "LOD":
            children = children[:1]
        stack += [(child, matrix, group) for child in reversed(children)]
    raise InputError(path, f"shows more than {MAX_NODES} nodes", "simplify the scene")


def _transform(path: Path, node: Node) -> np.ndarray:
    """T C R SR S SR^-1 C^-1, section 6.52 of VRML97."""
    move, centre, turn, stretch = np.eye(4), np.eye(4), np.eye(4), np.eye(4)
    move[:3, 3] = node.vector(path, "translation", 0, 0, 0)
    centre[:3, 3] = node.vector(path, "center", 0, 0, 0)
    *axis, angle = node.vector(path, "rotation", 0, 0, 1, 0)
    turn[:3, :3] = rotation(np.array(axis), angle)
    *axis, angle = node.vector(path, "scaleOrientation", 0, 0, 1, 0)
    tilt = rotation(np.array(axis), angle)
    stretch[:3, :3] = tilt @ np.diag(node.vector(path, "scale", 1, 1, 1)) @ tilt.T
    back = centre.copy()
    back[:3, 3] *= -1
    return move @ centre @ turn @ stretch @ back


@np.errstate(over="ignore", invalid="ignore")  # whether positions are finite is checked when the mesh is complete
def _placed(surface: _Surface, matrix: np.ndarray) -> _Surface:
    """A shape in the scene's frame."""
    points = surface.points @ matrix[:3, :3].T + matrix[:3, 3]
    return surface._replace(points=points, turned=surface.turned != mirrored(matrix))


def _surface(path: Path, shape: Node, assets: Assets) -> _Surface | None:
    """The faces of a shape in its own frame, with the points they use; None where it has none that we read."""
    geometry = shape.node("geometry")
    if geometry is None or geometry.kind in WITHOUT_SURFACE:
        return None
    if geometry.kind != "IndexedFaceSet":
        assets.warn(f"geometry of the type {geometry.kind} is left out; only IndexedFaceSet is read")
        return None
    points = (geometry.node("coord") or NOTHING).values(path, "point", np.float64, 3)
    index = geometry.values(path, "coordIndex", np.int64)[:, 0]
    if len(index) and index[-1] != -1:  # the last -1 may be left away
        index = np.append(index, -1)
    ends = np.flatnonzero(index == -1)
    corners, counts = index[index != -1], np.diff(ends, prepend=-1) - 1
    if len(corners) and not 0 <= corners.min() <= corners.max() < len(points):
        wrong = corners.min() if corners.min() < 0 else corners.max()
        raise InputError(path, f"a face names vertex {wrong} of {len(points)}", "the file is damaged or truncated")
    colors = _colors(path, geometry, corners, counts)
    if len(points) > len(corners):  # points that no face uses would be copied wherever the shape is
        used, corners = np.unique(corners, return_inverse=True)
        points = points[used]
    return _Surface(points, corners, counts, colors, geometry.fields.get("ccw") == ["FALSE"])


def _colors(path: Path, geometry: Node, corners: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """Colours [M, 3] of the corners, given by face or by corner; None where the shape has none."""
    node = geometry.node("color")
    if node is None:
        return None
    table = node.values(path, "color", np.float64, 3)
    chosen = geometry.values(path, "colorIndex", np.int64)[:, 0]
    if geometry.fields.get("colorPerVertex") == ["FALSE"]:
        by_face = chosen if len(chosen) else np.arange(len(counts))
        chosen = np.repeat(by_face, counts) if len(by_face) == len(counts) else by_face[:0]
    else:
        chosen = chosen[chosen != -1] if len(chosen) else corners
    if len(chosen) != len(corners) or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(table)):
        raise InputError(path, "the colours do not fit the faces", "the file is damaged")
    return np.clip(table[chosen], 0, 1)


def _material(path: Path, appearance: Node, painted: bool, assets: Assets) -> Material:
    """Name, diffuse colour and opacity; colours of faces and corners replace the diffuse colour."""
    if appearance.node("texture"):
        assets.warn("textures of VRML files are not read; their materials' colours are used")
    node = appearance.node("material")
    if node is None:
        return Material(appearance.name, color=WHITE if painted else GREY)
    r, g, b = WHITE[:3] if painted else np.clip(node.vector(path, "diffuseColor", 0.8, 0.8, 0.8), 0, 1).tolist()
    opacity = 1 - float(np.clip(node.vector(path, "transparency", 0)[0], 0, 1))
    return Material(node.name or appearance.name, color=(r, g, b, opacity))

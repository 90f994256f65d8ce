"""PLY files, text and binary: polygons, colours of vertices or faces, texture coordinates of vertices or corners.

A reader of our own: trimesh 5 does not read binary files with triangles beside quads, drops the last faces of a
truncated text file, and invents a texture where there are only coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gsmae.errors import InputError

from .assets import Assets
from .polygons import triangulate
from .raw import GREY, WHITE, Material, RawMesh, numbers

FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
COLORS = (("red", "green", "blue", "alpha"), ("diffuse_red", "diffuse_green", "diffuse_blue", "diffuse_alpha"),
          ("r", "g", "b", "a"))  # fmt: skip
LISTS = ("vertex_indices", "vertex_index", "texcoord")  # of faces; everything else is one value
COORDINATES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))


@dataclass(frozen=True)
class _Property:
    name: str
    dtype: np.dtype
    length: np.dtype | None  # type of the count in front of a list


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)


def read_ply(path: Path, assets: Assets) -> RawMesh:
    """Read a PLY's faces as they stand (z is up). Textures are those of its `comment TextureFile`.

    Raises InputError for a header that does not parse, a file that ends before its counts say, and triangle strips.
    """
    data = path.read_bytes()
    elements, textures, order, start = _header(path, data)
    assets.count_faces(sum(element.count for element in elements if element.name == "face"))
    body = _Body(path, data, start, order)
    read = {element.name: body.element(element) for element in elements if body.wanted(element)}
    vertex, face = _plain(read.get("vertex", {})), _plain(read.get("face", {}), LISTS)
    if "tristrips" in {element.name for element in elements if element.count} and "face" not in read:
        raise InputError(path, "has triangle strips, which are not read", "export it with faces")
    polygons = face.get("vertex_indices", face.get("vertex_index"))
    if polygons is None or not {"x", "y", "z"} <= set(vertex):
        raise InputError(path, "contains no faces", "point clouds and splats have no surface to show")
    points = np.stack([vertex[axis].astype(np.float64) for axis in "xyz"], axis=1)
    flat, counts = polygons[0].astype(np.int64), polygons[1]
    if len(flat) and not 0 <= flat.min() <= flat.max() < len(points):
        wrong = flat.min() if flat.min() < 0 else flat.max()
        raise InputError(path, f"a face names vertex {wrong} of {len(points)}", "the file is damaged")
    corner, polygon = triangulate(points[flat], counts)
    if narrow := int((counts < 3).sum()):
        assets.warn(f"{narrow} face(s) of fewer than three corners are left out")
    faces = flat[corner]
    uvs = _uvs(path, vertex, face, faces, corner, counts)
    images = [assets.image(name, path.name) for name in textures] if uvs is not None else []
    colors = _colors(vertex)
    colors = colors[faces] if colors is not None else None
    if colors is None and (painted := _colors(face)) is not None:
        colors = np.repeat(painted[polygon, None], 3, axis=1)
    return RawMesh(
        vertices=points,
        faces=faces,
        up="z",
        normals=np.stack([vertex[f"n{axis}"] for axis in "xyz"], axis=1)[faces]
        if {"nx", "ny", "nz"} <= set(vertex)
        else None,
        uvs=uvs,
        **_materials(images, textures, face, polygon, colors),
    )


def _plain(values: dict[str, Any], lists: tuple[str, ...] = ()) -> dict[str, Any]:
    """Those properties of an element that are lists where lists are expected, and single values elsewhere."""
    return {name: value for name, value in values.items() if isinstance(value, tuple) == (name in lists)}


def _materials(
    images: list[Any], textures: list[str], face: dict[str, Any], polygon: np.ndarray, colors: Any
) -> dict[str, Any]:
    """The fields `materials`, `material` and `colors` of a mesh; a texture stands instead of colours."""
    plain = Material("", color=GREY if colors is None else WHITE)
    if not any(image is not None for image in images):
        return {"materials": (plain,), "colors": colors}
    number = face["texnumber"][polygon] if "texnumber" in face else np.zeros(len(polygon))
    material = np.where((number >= 0) & (number < len(images)), number, len(images)).astype(np.int32)
    materials = [plain if i is None else Material(Path(n).stem, image=i) for i, n in zip(images, textures, strict=True)]
    if colors is not None:
        shown = np.array([image is not None for image in images] + [False])[material]
        colors = np.where(shown[:, None, None], 1.0, colors)
    return {"materials": (*materials, plain), "material": material, "colors": colors}


def _uvs(
    path: Path, vertex: dict[str, Any], face: dict[str, Any], faces: np.ndarray, corner: np.ndarray, counts: np.ndarray
) -> np.ndarray | None:
    """Texture coordinates of the corners, given by corner or by vertex; None where there are none."""
    if "texcoord" in face:
        flat, lengths = face["texcoord"]
        if ((lengths != 2 * counts) & (lengths != 0)).any():
            raise InputError(path, "a face's texture coordinates are not two for each corner", "the file is damaged")
        table = np.full((counts.sum(), 2), np.nan)
        table[np.repeat(lengths > 0, counts)] = flat.reshape(-1, 2)
        return table[corner]
    names = next((names for names in COORDINATES if set(names) <= set(vertex)), None)
    return None if names is None else np.stack([vertex[n].astype(np.float64) for n in names], axis=1)[faces]


def _colors(table: dict[str, Any]) -> np.ndarray | None:
    """RGBA 0..1 of an element, by the type they are stored as; None where it has none."""
    names = next((names for names in COLORS if set(names[:3]) <= set(table)), None)
    if names is None:
        return None
    out = np.ones((len(table[names[0]]), 4))
    for column, name in enumerate(names):
        if name in table:
            values = table[name]
            top = {"u1": 255, "u2": 65535}.get(values.dtype.str[1:], 255 if values.max(initial=0) >= 2 else 1)
            out[:, column] = np.clip(np.nan_to_num(values / top), 0, 1)
    return out


def _header(path: Path, data: bytes) -> tuple[list[_Element], list[str], str, int]:
    """Elements, texture names, byte order ("" = text), and where the body begins."""
    from gsmae.ply import KINDS  # only here: it loads torch, and a collection is listed without

    if not data.startswith(b"ply"):
        raise InputError(path, "does not begin with ply", "is this a PLY file?")
    end = data.find(b"end_header")
    start = data.find(b"\n", end) + 1
    if end < 0 or start == 0:
        raise InputError(path, "has no end_header", "the file is damaged or truncated")
    elements: list[_Element] = []
    textures, order = [], None
    for line in data[:end].decode("latin-1").splitlines():
        words = line.split()
        try:
            if words[:1] == ["format"]:
                order = FORMATS[words[1]]
            elif words[:1] == ["element"]:
                elements.append(_Element(words[1], int(words[2])))
            elif words[:2] == ["property", "list"]:
                kind = np.dtype((order or "<") + KINDS[words[3]])
                elements[-1].properties.append(_Property(words[4], kind, np.dtype((order or "<") + KINDS[words[2]])))
            elif words[:1] == ["property"]:
                elements[-1].properties.append(_Property(words[2], np.dtype((order or "<") + KINDS[words[1]]), None))
            elif words[:2] == ["comment", "TextureFile"]:
                textures.append(line.partition("TextureFile")[2].strip())
        except (KeyError, IndexError, ValueError):
            raise InputError(path, f"its header has the line '{line[:80]}'", "the file is damaged") from None
    if order is None or any(element.count < 0 for element in elements):
        raise InputError(path, "its header names no format, or negative counts", "the file is damaged")
    return elements, textures, order, start


class _Body:
    """The numbers behind the header: bytes of a binary file, or the words of a text as float64, one place each."""

    def __init__(self, path: Path, data: bytes, start: int, order: str):
        self.path, self.text, self.place = path, not order, 0
        if self.text:
            self.data = numbers(path, "a number", data[start:].split(), np.float64)
        else:
            self.data = np.frombuffer(data, np.uint8, offset=start)

    def wanted(self, element: _Element) -> bool:
        return element.count > 0 and len(element.properties) > 0

    def element(self, element: _Element) -> dict[str, Any]:
        """Values of every property: [count], or of a list its flat values and the counts of each row."""
        least = sum(self._size(p.length or p.dtype) for p in element.properties)
        if element.count * least > len(self.data) - self.place:
            self._cut()
        places, lengths = self._places(element)
        out: dict[str, Any] = {}
        for number, prop in enumerate(element.properties):
            if prop.length is None:
                out[prop.name] = self._values(places[:, number], prop.dtype)
            else:
                counts = lengths[:, number]
                first = np.repeat(
                    places[:, number] + self._size(prop.length) - self._size(prop.dtype) * (np.cumsum(counts) - counts),
                    counts,
                )
                out[prop.name] = (
                    self._values(first + np.arange(counts.sum()) * self._size(prop.dtype), prop.dtype),
                    counts,
                )
        return out

    def _places(self, element: _Element) -> tuple[np.ndarray, np.ndarray]:
        """Where every property of every row begins, and the lengths of its lists [rows, properties]."""
        lists = [number for number, prop in enumerate(element.properties) if prop.length is not None]
        first, sizes, width = self._row(element, self.place)
        rows = np.arange(element.count)
        places = np.array(first) + width * rows[:, None]
        lengths = np.tile(np.array(sizes), (element.count, 1))
        end = self.place + width * element.count
        if end <= len(self.data) and all(
            (self._values(places[:, n], element.properties[n].length) == sizes[n]).all() for n in lists
        ):
            self.place = end
            return places, lengths
        for row in range(element.count):  # rows of different lengths
            places[row], lengths[row], width = self._row(element, self.place)
            self.place += width
        return places, lengths

    def _row(self, element: _Element, place: int) -> tuple[list[int], list[int], int]:
        """The same of one row, and its size."""
        places, lengths, here = [], [], place
        for prop in element.properties:
            places.append(here)
            length = 1
            if prop.length is not None:
                value = float(self._values(np.array([here]), prop.length)[0])
                here += self._size(prop.length)
                if not 0 <= value <= len(self.data):
                    raise InputError(self.path, f"a list of {value:g} values", "the file is damaged or truncated")
                length = int(value)
            lengths.append(length)
            here += length * self._size(prop.dtype)
        if here > len(self.data):
            self._cut()
        return places, lengths, here - place

    def _size(self, dtype: np.dtype) -> int:
        return 1 if self.text else dtype.itemsize

    def _values(self, places: np.ndarray, dtype: Any) -> np.ndarray:
        """The values that begin at `places`."""
        if len(places) and places.max() + self._size(dtype) > len(self.data):
            self._cut()
        if self.text:
            values = self.data[places]
            if dtype.kind == "f":
                return values
            whole = np.nan_to_num(values).clip(-(2**53), 2**53).astype(np.int64)
            return (
                whole.astype(dtype) if np.can_cast(dtype, np.uint16) and (whole.astype(dtype) == whole).all() else whole
            )
        out = np.empty((len(places), dtype.itemsize), dtype=np.uint8)
        for byte in range(dtype.itemsize):
            out[:, byte] = self.data[places + byte]
        return out.view(dtype)[:, 0]

    def _cut(self) -> NoReturn:
        raise InputError(self.path, "ends before its counts say", "the file is truncated")

"""Wavefront OBJ files with the material, object and group name of every face.

A reader of our own: trimesh 5 merges faces by material and loses group names, names of materials without a library,
texture coordinates of faces in mixed chunks and every library after the first, and it does not notice an index 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from gsmae.errors import InputError

from .assets import Assets
from .mtl import read_mtl
from .polygons import triangulate
from .raw import GREY, WHITE, Material, RawMesh, blocks, numbers, unit_range

LINE = re.compile(r"[^\r\n]+")
RELATIVE = re.compile(r"-[0-9]{1,18}")


@dataclass
class _Lines:
    """The lines of an OBJ by kind, and for runs of faces the material and group in force."""

    v: list[str] = field(default_factory=list)
    vt: list[str] = field(default_factory=list)
    vn: list[str] = field(default_factory=list)
    f: list[str] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    materials: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


def read_obj(path: Path, assets: Assets) -> RawMesh:
    """Read an OBJ; y is up. `groups` are "object/group" where the file has both, else whichever it has.

    Raises InputError for a file that does not parse or whose faces name vertices that it does not have.
    """
    lines = _sort_lines(_text(path.read_bytes()))
    assets.count_faces(len(lines.f))
    table, colors = _vertices(path, lines.v)
    sizes, corners = _corners(path, lines.f)
    position = _checked(path, corners[:, 0], len(table), "vertex", required=True)
    corner, polygon = triangulate(table[position], sizes)
    if narrow := int((sizes < 3).sum()):
        assets.warn(f"{narrow} face(s) of fewer than three corners are left out")

    library = _libraries(lines.libraries, assets)
    run = np.searchsorted(lines.starts, polygon, side="right") - 1
    names, material = _index([lines.materials[r] for r in range(len(lines.starts))], run)
    groups, group = _index(lines.groups, run)
    for name in names:
        if name and name not in library and library:
            assets.warn(f"material {name} is in none of the file's libraries; it is drawn grey")
    plain = GREY if colors is None else WHITE
    return RawMesh(
        vertices=table,
        faces=position[corner],
        up="y",
        normals=_attribute(path, lines.vn, 3, corners[:, 2][corner], "normal"),
        uvs=_attribute(path, lines.vt, 2, corners[:, 1][corner], "texture coordinate"),
        colors=None if colors is None else colors[position[corner]],
        material=material,
        materials=tuple(library.get(name, Material(name, color=plain)) for name in names),
        group=group,
        groups=tuple(groups),
    )


def _text(data: bytes) -> str:
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _sort_lines(text: str) -> _Lines:
    """One pass over the text."""
    out = _Lines()
    material = thing = group = ""
    state = None
    if "\\" in text:
        text = text.replace("\\\r\n", " ").replace("\\\n", " ")
    for line in LINE.finditer(text):
        word = line.group().split(None, 1)
        if not word:
            continue
        key, rest = word[0], word[1] if len(word) > 1 else ""
        if key == "v":
            out.v.append(rest)
        elif key == "vt":
            out.vt.append(rest)
        elif key == "vn":
            out.vn.append(rest)
        elif key in ("f", "fo"):
            if state != (material, thing, group):
                state = (material, thing, group)
                out.starts.append(len(out.f))
                out.materials.append(material)
                out.groups.append("/".join(filter(None, (thing, group))))
            if "#" in rest:
                rest = rest.partition("#")[0]
            out.f.append(_absolute(rest, out) if "-" in rest else rest)
        elif key == "usemtl":
            material = rest.strip()
        elif key == "o":
            thing, group = rest.strip(), ""
        elif key == "g":
            group = " ".join(rest.split())
        elif key == "mtllib":
            out.libraries.append(rest.strip())
    return out


def _absolute(face: str, lines: _Lines) -> str:
    """A face line with negative, relative indices, as absolute ones (1 is the first)."""
    counts = (len(lines.v), len(lines.vt), len(lines.vn))
    return " ".join(
        "/".join(
            str(counts[place] + 1 + int(index)) if RELATIVE.fullmatch(index) else index
            for place, index in zip(range(3), corner.split("/"), strict=False)
        )
        for corner in face.split()
    )


def _vertices(path: Path, lines: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions [V, 3] and colours [V, 4], or None where not every vertex has one."""
    tables = [np.zeros((0, 3))]
    for block in blocks(lines):
        rows = [line.split() for line in block]
        least = min(map(len, rows))
        if least < 3:
            raise InputError(path, "a vertex has fewer than three numbers", "the file is damaged or truncated")
        width = 6 if least >= 6 else 3
        flat = chain.from_iterable(row[:width] for row in rows)
        tables.append(numbers(path, "a vertex", flat, np.float64).reshape(-1, width))
    points = np.concatenate([table[:, :3] for table in tables])
    if len(tables) == 1 or any(table.shape[1] == 3 for table in tables[1:]):
        return points, None
    colors = np.ones((len(points), 4))
    colors[:, :3] = unit_range(np.concatenate([table[:, 3:] for table in tables[1:]]))
    return points, colors


def _corners(path: Path, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Corners per face [P] and the indices v, vt, vn of every corner [M, 3]; 0-based, -1 where not given."""
    sizes, corners = [np.zeros(0, dtype=np.int64)], [np.zeros((0, 3), dtype=np.int64)]
    for block in blocks(lines):
        faces = [line.split() for line in block]
        sizes.append(np.array([len(face) for face in faces], dtype=np.int64))
        corners.append(_indices(path, list(chain.from_iterable(faces))))
    return np.concatenate(sizes), np.concatenate(corners) - 1


def _indices(path: Path, flat: list[str]) -> np.ndarray:
    """The words `v`, `v/vt`, `v//vn` or `v/vt/vn` as [M, 3], 0 where not given."""
    slashes = {token.count("/") for token in flat}
    double = sum("//" in token for token in flat)
    out = np.zeros((len(flat), 3), dtype=np.int64)
    if slashes == {0}:
        out[:, 0] = numbers(path, "a face", flat, np.int64)
    elif len(slashes) == 1 and double in (0, len(flat)) and not any(token.endswith("/") for token in flat):
        columns = [0, 2] if double else [0, 1, 2][: slashes.pop() + 1]
        split = " ".join(flat).replace("/", " ").split()
        if len(split) != len(flat) * len(columns):
            raise InputError(path, "a face has a corner without numbers", "the file is damaged")
        out[:, columns] = numbers(path, "a face", split, np.int64).reshape(-1, len(columns))
    elif flat:
        padded = ((token + "//").split("/")[:3] for token in flat)
        out[:] = numbers(path, "a face", (x or "0" for token in padded for x in token), np.int64).reshape(-1, 3)
    return out


def _checked(path: Path, index: np.ndarray, count: int, what: str, required: bool) -> np.ndarray:
    """`index`, refusing one that is out of range; -1 is "not given" where it is not required."""
    least = 0 if required else -1
    wrong = (index < least) | (index >= count)
    if wrong.any():
        raise InputError(
            path, f"a face names {what} {int(index[wrong][0]) + 1} of {count}", "the file is damaged or truncated"
        )
    return index


def _attribute(path: Path, lines: list[str], width: int, index: np.ndarray, what: str) -> np.ndarray | None:
    """Values [F, 3, width] of an attribute at the corners `index` [F, 3], NaN where not given; None where none is."""
    if not lines or not (index >= 0).any():
        return None
    tables = []
    for block in blocks(lines):
        words = chain.from_iterable((line.split() + ["0"] * width)[:width] for line in block)  # there may be just u
        tables.append(numbers(path, f"a {what}", words, np.float64).reshape(-1, width))
    table = np.concatenate(tables)
    _checked(path, index, len(table), what, required=False)
    return np.vstack([table, np.full(width, np.nan)])[index]


def _libraries(names: list[str], assets: Assets) -> dict[str, Material]:
    """Materials of every library named; `mtllib a b` is one name with a space, or else two."""
    found: dict[str, Material] = {}
    read: set[Path | None] = set()
    for entry in dict.fromkeys(names):
        whole = assets.find(entry) is not None
        for name in [entry] if whole else entry.split():
            if (file := assets.find(name)) in read and file is not None:
                continue
            read.add(file)
            try:
                text = assets.read(name).decode("utf-8", errors="replace")
            except FileNotFoundError:
                assets.warn(f"material library {name} {assets.absence(name)}; its materials are drawn grey")
                continue
            found.update(read_mtl(text, Path(name.replace("\\", "/")).name, assets))
    return found


def _index(values: list[str], run: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Distinct names in order of appearance, and for each face the name of its run."""
    distinct = list(dict.fromkeys(values))
    number = {value: i for i, value in enumerate(distinct)}
    place = np.array([number[value] for value in values], dtype=np.int32)
    return distinct, place[run] if len(place) else np.zeros(0, dtype=np.int32)

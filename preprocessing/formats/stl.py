"""STL files, binary and text: triangles without colours; the names of solids in text files are groups."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from gsmae.errors import InputError

from .assets import Assets
from .raw import RawMesh, numbers

FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
SOLID = re.compile(rb"^[ \t]*solid\b[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
START = re.compile(rb"\bfacet\s+normal\b", re.IGNORECASE)
VERTEX = re.compile(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", re.IGNORECASE)


def read_stl(path: Path, assets: Assets) -> RawMesh:
    """Read an STL as it stands (z is up). Its normals follow from its corners and are not used.

    Raises InputError for a file that ends before its facets do.
    """
    data = path.read_bytes()
    count = int.from_bytes(data[80:84], "little")
    if len(data) >= 84 and len(data) == 84 + FACET.itemsize * count:
        assets.count_faces(count)
        return _mesh(np.frombuffer(data, FACET, count, 84)["corners"].reshape(-1, 3).astype(np.float64))
    if START.search(data) is None and not (data.lstrip()[:5].lower() == b"solid" and b"\0" not in data):
        if len(data) < 84 + FACET.itemsize * count or len(data) < 84:
            raise InputError(path, f"promises {count} facets and ends before", "the file is truncated, or not an STL")
        return _mesh(np.frombuffer(data, FACET, count, 84)["corners"].reshape(-1, 3).astype(np.float64))
    assets.count_faces(data.lower().count(b"endfacet"))
    starts = np.array([match.start() for match in START.finditer(data)], dtype=np.int64)
    corners = VERTEX.findall(data)
    if len(corners) != 3 * len(starts):
        cause = f"has {len(starts)} facets but {len(corners)} corners, not three for each"
        raise InputError(path, cause, "the file is damaged or truncated")
    if b"endsolid" not in data[-4096:].lower():
        assets.warn("ends without 'endsolid': facets may be missing")
    words = (word.decode("latin-1") for corner in corners for word in corner)
    solids = [(match.start(), match.group(1).decode("latin-1").strip()) for match in SOLID.finditer(data)]
    solids = solids or [(0, "")]
    group = np.searchsorted([place for place, _ in solids], starts, side="right") - 1
    mesh = _mesh(numbers(path, "a vertex", words, np.float64).reshape(-1, 3))
    return RawMesh(
        mesh.vertices, mesh.faces, "z", group=group.clip(0).astype(np.int32), groups=tuple(name for _, name in solids)
    )


def _mesh(corners: np.ndarray) -> RawMesh:
    return RawMesh(vertices=corners, faces=np.arange(len(corners), dtype=np.int64).reshape(-1, 3), up="z")

"""OFF files: ModelNet's glued headers, comments, polygons, colours; counts are checked against the content."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import numpy as np

from gsmae.errors import InputError

from .assets import Assets
from .polygons import triangulate
from .raw import GREY, WHITE, Material, RawMesh, numbers, unit_range

# prefixes: ST texture coordinates, C colours, N normals, 4 four components, n any dimension (Geomview's manual)
HEADER = re.compile(r"\s*(ST)?(C)?(N)?(4)?(n)?OFF[ \t]*(BINARY)?", re.IGNORECASE)


def read_off(path: Path, assets: Assets) -> RawMesh:
    """Read an OFF, COFF, NOFF or CNOFF file as it stands (z is up, as in ModelNet).

    Raises InputError for another kind of OFF, a file that ends before its counts say, or text that is not numbers.
    """
    text = path.read_bytes().decode("latin-1")
    header = HEADER.match(text)
    if header is None:
        raise InputError(path, "does not begin with OFF", "is this an OFF file?")
    texture, color, normal, four, any_dimension, binary = header.groups()
    if texture or four or any_dimension or binary:
        raise InputError(path, f"{header.group().strip()} files are not read", "export it as plain OFF")
    lines = [line for raw in text[header.end() :].splitlines() if (line := raw.partition("#")[0].strip())]
    counts = numbers(path, "the counts", lines[0].split() if lines else [], np.int64)
    if len(counts) < 2 or (counts < 0).any():
        raise InputError(path, "the counts of vertices and faces are missing", "the file is damaged")
    vertex_count, face_count = int(counts[0]), int(counts[1])
    if len(lines) - 1 < vertex_count + face_count:
        raise InputError(
            path, f"promises {vertex_count} vertices and {face_count} faces but has {len(lines) - 1} lines",
            "the file is truncated",
        )  # fmt: skip
    table = _table(path, lines[1 : 1 + vertex_count], 3 + 3 * bool(normal) + 3 * bool(color))
    faces = lines[1 + vertex_count : 1 + vertex_count + face_count]
    corners, polygon, painted, narrow = _faces(path, faces, table[:, :3])
    if narrow:
        assets.warn(f"{narrow} face(s) of fewer than three corners are left out")

    colors = None
    if color:
        start = 6 if normal else 3
        rgba = np.ones((vertex_count, 4))
        rgba[:, : min(table.shape[1] - start, 4)] = unit_range(table[:, start : start + 4])
        colors = _take(path, rgba, corners)
    elif painted is not None:
        colors = np.repeat(painted[polygon, None], 3, axis=1)
    return RawMesh(
        vertices=table[:, :3],
        faces=corners,
        up="z",
        normals=_take(path, table[:, 3:6], corners) if normal else None,
        colors=colors,
        materials=(Material("", color=WHITE) if colors is not None else Material(""),),
    )


def _table(path: Path, lines: list[str], least: int) -> np.ndarray:
    """Rows of numbers of one width, [len(lines), width] float64."""
    rows = [line.split() for line in lines]
    width = min(map(len, rows), default=least)
    if width < least:
        raise InputError(path, f"a vertex has {width} numbers, {least} are needed", "the file is damaged")
    return numbers(path, "a vertex", chain.from_iterable(row[:width] for row in rows), np.float64).reshape(-1, width)


def _faces(path: Path, lines: list[str], points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """Triangles [F, 3], the polygon of each, the polygons' colours [P, 4] if any has one, and how many have no area."""
    rows = [line.split() for line in lines]
    sizes = numbers(path, "a face", (row[0] for row in rows), np.int64)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if (sizes < 0).any() or (lengths < 1 + sizes).any():
        raise InputError(path, "a face has fewer corners than it says", "the file is truncated")
    flat = numbers(
        path, "a face", chain.from_iterable(row[1 : 1 + n] for row, n in zip(rows, sizes, strict=True)), np.int64
    )
    corner, polygon = triangulate(_take(path, points, flat), sizes)
    painted = _face_colors(path, rows, lengths - 1 - sizes)
    return flat[corner], polygon, painted, int((sizes < 3).sum())


def _face_colors(path: Path, rows: list[list[str]], extra: np.ndarray) -> np.ndarray | None:
    """RGBA [P, 4] from the 3 or 4 numbers that end a face's line, grey where it has none; None where no face has.

    extra  [P] how many numbers follow the corners; a single one is an index into a table that nobody ships
    """
    colored = np.flatnonzero((extra == 3) | (extra == 4))
    if not len(colored):
        return None
    values = chain.from_iterable(rows[i][-4:] if extra[i] == 4 else [*rows[i][-3:], "0"] for i in colored)
    rgba = unit_range(numbers(path, "a face colour", values, np.float64).reshape(-1, 4))
    rgba[extra[colored] == 3, 3] = 1
    painted = np.tile(np.array(GREY), (len(rows), 1))
    painted[colored] = rgba
    return painted


def _take(path: Path, values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """values[index], refusing an index outside."""
    if index.size and (index.min() < 0 or index.max() >= len(values)):
        wrong = index.max() if index.max() >= len(values) else index.min()
        raise InputError(path, f"a face names vertex {wrong} of {len(values)}", "the file is damaged or truncated")
    return values[index]

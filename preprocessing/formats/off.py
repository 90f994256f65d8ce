"""OFF files: ModelNet's glued headers, comments, polygons, colours; counts are checked against the content."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import numpy as np

from gsmae.errors import InputError

from .assets import Assets
from .polygons import triangulate
from .raw import GREY, WHITE, Material, RawMesh, blocks, numbers, unit_range

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
    if len(lines) - 1 >= face_count:
        assets.count_faces(face_count)
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
    tables = [np.zeros((0, least))] if not lines else []
    for block in blocks(lines):
        rows = [line.split() for line in block]
        width = min(map(len, rows))
        if width < least:
            raise InputError(path, f"a vertex has {width} numbers, {least} are needed", "the file is damaged")
        flat = chain.from_iterable(row[:width] for row in rows)
        tables.append(numbers(path, "a vertex", flat, np.float64).reshape(-1, width))
    width = min(table.shape[1] for table in tables)
    return np.concatenate([table[:, :width] for table in tables])


def _faces(path: Path, lines: list[str], points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """Triangles [F, 3], the polygon of each, the polygons' colours [P, 4] if any has one, and how many have no area."""
    counts, corners, colors = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], []
    for block in blocks(lines):
        rows = [line.split() for line in block]
        sizes = numbers(path, "a face", (row[0] for row in rows), np.int64)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        if (sizes < 0).any() or (lengths - 1 < sizes).any():
            raise InputError(path, "a face has fewer corners than it says", "the file is truncated")
        words = chain.from_iterable(row[1 : 1 + n] for row, n in zip(rows, sizes, strict=True))
        corners.append(numbers(path, "a face", words, np.int64))
        counts.append(sizes)
        colors.append(_face_colors(path, rows, lengths - 1 - sizes))
    flat, sizes = np.concatenate(corners), np.concatenate(counts)
    corner, polygon = triangulate(_take(path, points, flat), sizes)
    painted = _fractions(np.concatenate(colors)) if colors else None
    return flat[corner], polygon, painted, int((sizes < 3).sum())


def _face_colors(path: Path, rows: list[list[str]], extra: np.ndarray) -> np.ndarray:
    """The 3 or 4 numbers [P, 4] that end a face's line as they stand; NaN for opacity or all where it has none.

    extra  [P] how many numbers follow the corners; a single one is an index into a table that nobody ships
    """
    out = np.full((len(rows), 4), np.nan)
    for width in (3, 4):
        here = np.flatnonzero(extra == width)
        values = chain.from_iterable(rows[i][-width:] for i in here)
        out[here, :width] = numbers(path, "a face colour", values, np.float64).reshape(-1, width)
    return out


def _fractions(colors: np.ndarray) -> np.ndarray | None:
    """RGBA 0..1, grey where a face has no colour; None where none has."""
    bare = np.isnan(colors).all(axis=1)
    if bare.all():
        return None
    opaque = np.isnan(colors[:, 3])
    out = unit_range(np.nan_to_num(colors))
    out[opaque, 3] = 1
    out[bare] = GREY
    return out


def _take(path: Path, values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """values[index], refusing an index outside."""
    if index.size and (index.min() < 0 or index.max() >= len(values)):
        wrong = index.max() if index.max() >= len(values) else index.min()
        raise InputError(path, f"a face names vertex {wrong} of {len(values)}", "the file is damaged or truncated")
    return values[index]

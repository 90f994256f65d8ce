"""What a reader of one file format returns: a triangle mesh as the file has it, before any frame or unit is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from gsmae.errors import InputError

GREY = (0.7, 0.7, 0.7, 1.0)  # the colour of a surface that nothing is known about
WHITE = (1.0, 1.0, 1.0, 1.0)
BLOCK = 100_000  # lines
Line = TypeVar("Line")


@dataclass(frozen=True)
class Material:
    """A named surface: a texture times a tint or, where a face has no texture coordinates, a plain colour.

    color  RGBA 0..1 as stored (sRGB)
    tint   RGBA 0..1 that multiplies the image
    image  [h, w, 4] uint8, top row first, or None
    """

    name: str
    color: tuple[float, float, float, float] = GREY
    tint: tuple[float, float, float, float] = WHITE
    image: np.ndarray | None = None


@dataclass(frozen=True)
class RawMesh:
    """Triangles in the file's own frame and units; what varies inside a face is kept per corner.

    vertices   [V, 3] float64
    faces      [F, 3] int64, not yet checked
    normals    [F, 3, 3] float, NaN at corners without; None = the file has none
    uvs        [F, 3, 2] float, v upwards, NaN at corners without; None = the file has none
    colors     [F, 3, 4] float 0..1, vertex or face colours that multiply the material; None = none
    material   [F] int32 index into `materials`
    group      [F] int32 index into `groups`, the object and group names of the file
    up         the axis that points up in the file: "x", "y" or "z"
    """

    vertices: np.ndarray
    faces: np.ndarray
    up: str
    normals: np.ndarray | None = None
    uvs: np.ndarray | None = None
    colors: np.ndarray | None = None
    material: np.ndarray | None = None
    materials: tuple[Material, ...] = (Material(""),)
    group: np.ndarray | None = None
    groups: tuple[str, ...] = ("",)
    warnings: tuple[str, ...] = field(default=())


def blocks(lines: list[Line]) -> Iterator[list[Line]]:
    """The lines, many at a time: as words they take 20 times the memory of their numbers, so not all should be."""
    for start in range(0, len(lines), BLOCK):
        yield lines[start : start + BLOCK]


def numbers(path: Path, what: str, tokens: Iterable[str] | Iterable[bytes], dtype: type) -> np.ndarray:
    """Text tokens as a flat array; InputError that names the file and `what` where one is not a number."""
    try:
        return np.array(tokens if isinstance(tokens, list) else list(tokens), dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise InputError(path, f"{what}: {' '.join(str(error).split())[:120]}", "the file is damaged") from None


def unit_range(colors: np.ndarray) -> np.ndarray:
    """Colours that may be 0..255 as 0..1, clipped; up to 2 they are taken for rounded fractions."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.clip(colors / 255 if colors.max(initial=0.0) >= 2 else colors, 0, 1))

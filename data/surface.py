"""Surface samples of one object: the file beside its splat."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gsmae.errors import InputError
from gsmae.files import sha256

from .shardfile import POINTS

MAX_BYTES = 256 << 20  # of one object's samples once unpacked


class Points(Protocol):
    """The surface samples of one object, wherever they come from."""

    def digest(self) -> str:
        """A hash of everything that decides what `read` returns."""
        ...

    def read(self, parts: int) -> dict[str, np.ndarray]:
        """As `read_points`."""
        ...


@dataclass(frozen=True)
class PointsFile:
    """The samples that `gsmae build` wrote beside a splat."""

    path: Path

    def digest(self) -> str:
        return sha256(self.path)

    def read(self, parts: int) -> dict[str, np.ndarray]:
        return read_points(self.path, parts)


def read_points(path: str | Path, parts: int) -> dict[str, np.ndarray]:
    """Surface samples of one object by their names in a shard; InputError when they are not what they should be.

    parts  number of part names of the category; labels are -1 or below it
    """
    path, cure = Path(path), "delete the object's record and run `gsmae build` again"
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise InputError(path, f"unpacks to more than {MAX_BYTES >> 20} MiB", cure)
        with np.load(path, allow_pickle=False) as file:
            names = dict(zip(POINTS, ("points", "normals", "colors", "parts"), strict=True))
            arrays = {name: np.asarray(file[theirs]) for name, theirs in names.items()}
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise whatever the bytes lead them to
        raise InputError(path, f"not readable as surface points: {error}", cure) from None
    n = len(arrays["points"]) if arrays["points"].ndim else 0
    for name, (dtype, cells) in POINTS.items():
        values = arrays[name]
        if values.dtype != np.dtype(dtype) or values.shape != ((n, cells) if cells else (n,)):
            cause = f"'{name}' is {values.dtype} {values.shape}, expected {dtype} {(n, cells) if cells else (n,)}"
            raise InputError(path, cause, cure)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(path, f"'{name}' has non-finite values", cure)
    labels = arrays["point_parts"]
    if n and (labels.min() < -1 or labels.max() >= parts):
        cause = f"part labels are {labels.min()} to {labels.max()}, the category has {parts} part names"
        raise InputError(path, cause, cure)
    return arrays

"""ModelNet as PointNet++ resampled it: one text file of points with normals per object."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from gsmae.errors import InputError

from .scans import Scan, z_up

NAMES = "modelnet40_shape_names.txt"
LIST = "modelnet40_{}.txt"


def modelnet_points(root: Path) -> list[Scan]:
    """The folder modelnet40_normal_resampled: CLASS/NAME.txt with a line "x,y,z,nx,ny,nz" per point, y up;
    modelnet40_train.txt and modelnet40_test.txt name the splits, modelnet40_shape_names.txt the classes."""
    taxonomy = set(_lines(root / NAMES))
    scans = []
    for split in ("train", "test"):
        listed = root / LIST.format(split)
        for name in _lines(listed):
            category = name.rsplit("_", 1)[0]
            if category not in taxonomy:
                cause = f"'{name}' is of class '{category}', which is not among the {len(taxonomy)} of {NAMES}"
                raise InputError(listed, cause, "download the collection again")
            file = root / category / f"{name}.txt"
            scans.append(Scan(f"{category}/{name}", split, str(file), partial(_read, file)))
    return scans


def _lines(file: Path) -> list[str]:
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise InputError(file, cause, "name the folder modelnet40_normal_resampled") from None
    if not found:
        raise InputError(file, "is empty", "download the collection again")
    return found


def _read(file: Path) -> np.ndarray:
    try:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(file, getattr(error, "strerror", None) or f"not rows of numbers: {error}") from None
    if rows.shape[1] not in (3, 6):
        raise InputError(file, f"has {rows.shape[1]} columns, expected x,y,z or x,y,z,nx,ny,nz")
    return z_up(rows)

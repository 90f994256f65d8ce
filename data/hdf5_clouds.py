"""Point clouds in HDF5: `data` [objects, points, 3] and `label` [objects], as ScanObjectNN and PointNet have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from gsmae.errors import InputError

from .scans import Scan, z_up

SCANOBJECTNN = ("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow",
                "sink", "sofa", "toilet")  # fmt: skip
MAX_POINTS = 1 << 20  # of an object
NAMED = re.compile(r"(training|train|test)_objectdataset.*\.h5")


def scanobjectnn(path: Path) -> list[Scan]:
    """A file training_objectdataset*.h5 or test_objectdataset*.h5 of ScanObjectNN, whose name says the split, or a
    folder with one of each; y up. OBJ_BG is main_split/*_objectdataset.h5, OBJ_ONLY the same below main_split_nobg,
    PB_T50_RS main_split/*_objectdataset_augmentedrot_scale75.h5."""
    files = [path] if path.is_file() else sorted(path.glob("*.h5"))
    found: dict[str, list[Path]] = {"train": [], "test": []}
    for file in files:
        named = NAMED.fullmatch(file.name)
        if named:
            found["test" if named[1] == "test" else "train"].append(file)
        elif path.is_file():
            raise InputError(file, "its name does not say the split", "name training_objectdataset*.h5 and test_...")
    if not any(found.values()):
        raise InputError(path, "holds no training_objectdataset*.h5 or test_objectdataset*.h5", "is this ScanObjectNN?")
    for several in found.values():
        if len(several) > 1:
            names = ", ".join(file.name for file in several)
            raise InputError(
                path, f"holds several variants: {names}", "name the two files that you mean, not the folder"
            )
    return [scan for split, of in found.items() for file in of for scan in _scans(file, split, SCANOBJECTNN)]


def modelnet_hdf5(path: Path) -> list[Scan]:
    """The folder modelnet40_ply_hdf5_2048 of PointNet: ply_data_{train,test}N.h5 and shape_names.txt, y up."""
    names = path / "shape_names.txt"
    try:
        taxonomy = names.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise InputError(names, cause, "name the folder modelnet40_ply_hdf5_2048") from None
    files = [(split, file) for split in ("train", "test") for file in sorted(path.glob(f"ply_data_{split}*.h5"))]
    if not files:
        raise InputError(path, "holds no ply_data_train*.h5 or ply_data_test*.h5", "is this modelnet40_ply_hdf5_2048?")
    return [scan for split, file in files for scan in _scans(file, split, taxonomy)]


def _scans(path: Path, split: str, taxonomy: Sequence[str]) -> list[Scan]:
    """The objects of one file; a label outside the taxonomy is an error of the whole file."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            shape, labels = _plain(path, file, "data").shape, np.asarray(_plain(path, file, "label")[()])
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py raises them all
        raise InputError(path, f"not readable as HDF5: {error}", "download it again") from None
    labels = labels.reshape(-1)
    if len(shape) != 3 or shape[2] < 3 or not 0 < shape[1] <= MAX_POINTS or len(labels) != shape[0]:
        cause = f"'data' is {shape} and 'label' has {len(labels)} values, expected [objects, points, 3] and one each"
        raise InputError(path, cause, "is this ScanObjectNN or ModelNet as PointNet has it?")
    outside = np.flatnonzero((labels < 0) | (labels >= len(taxonomy)))
    if len(outside):
        cause = f"object {outside[0]} has label {labels[outside[0]]}, there are the classes 0 to {len(taxonomy) - 1}"
        raise InputError(path, cause, f"the taxonomy is {', '.join(taxonomy[:3])}, ... {taxonomy[-1]}")
    return [
        Scan(f"{taxonomy[int(label)]}/{path.stem}_{i:05d}", split, f"{path}[{i}]", partial(_read, path, i))
        for i, label in enumerate(labels)
    ]


def _plain(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset that lies in this very file and has numbers."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file.get(name), h5py.Dataset):
        raise InputError(path, f"has no dataset '{name}'", "is this ScanObjectNN or ModelNet as PointNet has it?")
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    plist = found.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count() or found.dtype.kind not in "fiu":
        raise InputError(path, f"'{name}' is not a plain array of numbers", "download it again")
    return found


def _read(path: Path, i: int) -> np.ndarray:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return z_up(np.asarray(_plain(path, file, "data")[i, :, :3]))
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{path}[{i}]", f"not readable as HDF5: {error}") from None

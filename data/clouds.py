"""Point clouds as builds of neutral splats, so that what has no splat trains with the same network and loader.

Only the positions mean something, and the colours of points sampled from a mesh. Features of other fields are refused
when batches are made, see `data.streams.has_fields`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gsmae.errors import InputError, nearest_name
from gsmae.gaussians import SH_DC, Gaussians
from gsmae.ply import ply_bytes

from . import draws
from .archives import Made, Place
from .hdf5_clouds import modelnet_hdf5, scanobjectnn
from .manifest import Build, Record
from .scans import Scan
from .text_clouds import modelnet_points

SIZE = 0.01  # standard deviation of a neutral Gaussian
LOGIT = 10.0  # and its opacity
STAGE = "points"

CLOUDS: dict[str, Callable[[Path], list[Scan]]] = {
    "scanobjectnn": scanobjectnn,
    "modelnet-points": modelnet_points,
    "modelnet-hdf5": modelnet_hdf5,
}


def as_splat(points: np.ndarray, colors: np.ndarray | None = None) -> Gaussians:
    """Points as Gaussians that differ in nothing but their place and colour: round, of one size, opaque.

    points  [P, 3], z up
    colors  [P, 3] 0..255; None is grey
    """
    n = len(points)
    quats = torch.zeros(n, 4)
    quats[:, 0] = 1
    shade = np.full((n, 3), 127.5) if colors is None else np.asarray(colors, dtype=np.float64)
    sh = torch.from_numpy((shade / 255 - 0.5) / SH_DC).float()[:, None]
    means = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    return Gaussians(means, quats, torch.full((n, 3), float(np.log(SIZE))), torch.full((n,), LOGIT), sh)


def mesh_points(build: Build) -> Build:
    """The same objects, splits and counts with points sampled from the mesh in place of Gaussians: a baseline.

    Of an object's surface samples as many are taken as it has Gaussians, or all where there are fewer; which ones
    depends on its uid alone. Its surface samples stay what is segmented. An object without samples has failed; splits
    that are drawn agree with those of the splats only where there is none.
    """
    records, files = [], {}
    for record in build.records:
        surface = build.surface(record) if record.status == "done" else None
        if record.status == "done" and surface is None:
            reason = "has no surface points"
            record = record.model_copy(update={"status": "failed", "stage": STAGE, "reason": reason})
        elif surface is not None:

            def make(record: Record = record, surface=surface) -> bytes:
                arrays = surface.read(len(record.part_names or build.parts.get(record.category, ())))
                order = draws.permutation(len(arrays["points"]), draws.key("mesh-points", record.uid))
                chosen = order[: record.gaussians]
                return ply_bytes(as_splat(arrays["points"][chosen], arrays["point_colors"][chosen]), record.uid)

            files[record.uid] = Made(f"points of {build.splat(record)}", make)
            record = _measured(record, files[record.uid])
        records.append(record)
    layout = "mesh-points"
    return replace(
        build, records=tuple(records), files=files, layout=layout, config_hash=f"{build.config_hash}+{layout}"
    )


def read_clouds(path: str | Path, source: str) -> Build:
    """A collection of point clouds as a `Build` that `pack` takes; y-up collections are turned.

    path    as the function in `CLOUDS` says
    source  a name in `CLOUDS`
    A cloud that is broken is a failed record. Raises InputError when the path holds none, a label is outside the
    taxonomy, or one uid is there twice.
    """
    path = Path(path)
    if source not in CLOUDS:
        raise InputError(path, f"unknown source '{source}'", nearest_name(source, CLOUDS))
    if not path.exists():
        raise InputError(path, "no such file or folder", " ".join((CLOUDS[source].__doc__ or "").split()))
    records, files = [], {}
    for scan in sorted(CLOUDS[source](path), key=lambda scan: scan.uid):
        if scan.uid in files:
            raise InputError(scan.source, f"object '{scan.uid}' is there twice", "remove one of the two")
        files[scan.uid] = Made(scan.source, _made(scan))
        values = {"uid": scan.uid, "category": scan.uid.split("/")[0], "split": scan.split, "status": "done"}
        records.append(_measured(Record.model_validate(values), files[scan.uid]))
    return Build(path, source, 0, "z-up", tuple(records), {}, source, files)


def _made(scan: Scan) -> Callable[[], bytes]:
    def make() -> bytes:
        points = scan.read()
        if not len(points):
            raise InputError(scan.source, "has no points")
        if not np.isfinite(points).all():
            raise InputError(scan.source, "has non-finite coordinates")
        return ply_bytes(as_splat(points), scan.uid)

    return make


def _measured(record: Record, place: Place) -> Record:
    """The record with hash and counts of what is made for it, or the reason why nothing can be."""
    try:
        content = place.read_bytes()
    except InputError as error:
        return record.model_copy(update={"status": "failed", "stage": STAGE, "reason": error.cause})
    head = content[: content.index(b"end_header")].decode()
    count = int(head.split("element vertex ")[1].split()[0])
    values = {"gaussians": count, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "psnr": None}
    return record.model_copy(update=values)

"""The standard 3DGS PLY, the only file that knows its property names and the only one that imports plyfile (GPLv3).

Binary little endian, one element `vertex` of float32: x y z nx ny nz f_dc_0..2 f_rest_0.. opacity scale_0..2 rot_0..3
(wxyz); f_rest is channel-major (all red, all green, all blue); opacity is a logit, scale a logarithm.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .errors import InputError
from .files import write_aside
from .gaussians import Gaussians

MAX_HEADER = 64 * 1024
MAX_GAUSSIANS = 50_000_000
LARGEST = 1e15  # of a coordinate or a standard deviation: beyond, normalising in float32 can end in infinity
REST = {0: 0, 9: 1, 24: 2, 45: 3}  # number of f_rest properties -> SH degree
NEEDED = (
    "x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity",
    "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3",
)  # fmt: skip
KINDS = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
COUNT = re.compile(rb"(?m)^(\s*element\s+vertex\s+)\d+")


class _Header(NamedTuple):
    """A header that agrees with its file: format, property names and numpy types, rows, bytes before the body."""

    form: str
    names: list[str]
    kinds: list[str]
    count: int
    length: int


def read_ply(path: str | Path, *, finite: bool = True) -> Gaussians:
    """Read a 3DGS splat, with 0, 9, 24 or 45 `f_rest` properties in any order, binary or ASCII.

    finite  False lets Gaussians with NaN, infinite or absurd values through, for a caller that looks for them
    Raises InputError naming the file and the field when it is missing, truncated, not a splat, not finite, or has a
    coordinate or a standard deviation above LARGEST.
    +inf opacities and -inf scales are legal (fully opaque, flat) and are made finite.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(MAX_HEADER)
    except (OSError, ValueError) as error:
        raise InputError(path, getattr(error, "strerror", None) or str(error)) from None
    head = _guard(path, start, size)
    return _gaussians(path, head, _parsed(path, str(path)), finite)


def read_ply_bytes(content: bytes, name: object, *, finite: bool = True) -> Gaussians:
    """`read_ply` of a splat that is in memory already, a member of a zip for instance; errors call it `name`."""
    head = _guard(str(name), content[:MAX_HEADER], len(content))
    if head.form == "ascii":
        return _gaussians(str(name), head, _parsed(str(name), io.BytesIO(content)), finite)
    # plyfile maps a file but reads a stream value by value, seconds for one splat: it only judges the header here
    _parsed(str(name), io.BytesIO(COUNT.sub(rb"\g<1>0", content[: head.length], count=1)))
    rows = np.frombuffer(content, np.dtype(list(zip(head.names, head.kinds, strict=True))), head.count, head.length)
    return _gaussians(str(name), head, rows, finite)


def _parsed(path: str | Path, source: str | io.BytesIO) -> Any:
    """The element `vertex`, by plyfile."""
    from plyfile import PlyData, PlyParseError

    try:
        return PlyData.read(source)["vertex"]
    except (PlyParseError, ValueError, OSError, KeyError, MemoryError) as error:
        raise InputError(path, f"not readable as PLY: {error}") from None


def _gaussians(path: str | Path, head: _Header, vertex: Any, finite: bool) -> Gaussians:
    """Rows with named fields as Gaussians."""
    count, degree = head.count, REST[sum(name.startswith("f_rest_") for name in head.names)]

    def read(*properties: str) -> np.ndarray:
        return np.stack([np.asarray(vertex[p], dtype=np.float32) for p in properties], axis=1)

    sh = read("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    if degree:
        rest = read(*(f"f_rest_{i}" for i in range(3 * ((degree + 1) ** 2 - 1))))
        sh = np.concatenate([sh, rest.reshape(count, 3, -1).transpose(0, 2, 1)], axis=1)
    logits, logs = read("opacity")[:, 0], read("scale_0", "scale_1", "scale_2")
    logits = np.where(np.isposinf(logits), np.float32(30), logits)
    logs = np.where(np.isneginf(logs), np.float32(-20), logs)
    arrays = {"x, y, z": read("x", "y", "z"), "rot": read("rot_0", "rot_1", "rot_2", "rot_3")}
    arrays |= {"scale": logs, "opacity": logits, "f_dc or f_rest": sh}
    for name, values in arrays.items():
        bad = int((~np.isfinite(values.reshape(count, -1))).any(axis=1).sum())
        if bad and finite:
            cure = "remove those rows, as `gsmae pack --bad-rows drop` does"
            raise InputError(path, f"{bad} of {count} Gaussians have a non-finite {name}", cure)
    far = (np.abs(arrays["x, y, z"]) > LARGEST).any(axis=1) | (logs > math.log(LARGEST)).any(axis=1)
    if finite and far.any():
        cure = "remove those rows, as `gsmae pack --bad-rows drop` does"
        raise InputError(path, f"{far.sum()} of {count} Gaussians are too far away or too large to compute with", cure)
    return Gaussians(*(torch.from_numpy(np.ascontiguousarray(values)) for values in arrays.values()))


def write_ply(path: str | Path, gaussians: Gaussians) -> None:
    """Write a 3DGS splat as INRIA's code does, readable by gsplat and the usual viewers; equal input, equal bytes.

    Written aside and renamed. Non-finite values raise ValueError: they would blank a viewer.
    """
    content = ply_bytes(gaussians, path)
    with write_aside(path) as temporary:
        temporary.write_bytes(content)


def ply_bytes(gaussians: Gaussians, name: object = "splat") -> bytes:
    """What `write_ply` writes, in memory; errors call it `name`."""
    from plyfile import PlyData, PlyElement

    g = gaussians.to("cpu", torch.float32)
    rest = g.sh[:, 1:].transpose(1, 2).flatten(1)
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(rest.shape[1])] + list(NEEDED[6:])
    parts = [g.means, torch.zeros_like(g.means), g.sh[:, 0], rest, g.logit_opacities[:, None], g.log_scales, g.quats]
    body = torch.cat(parts, dim=1)
    if not torch.isfinite(body).all():
        raise ValueError(f"{name}: refusing to write non-finite Gaussians")
    rows = np.ascontiguousarray(body.numpy(), dtype="<f4").view([(column, "<f4") for column in names])[:, 0]
    stream = io.BytesIO()
    PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(stream)
    return stream.getvalue()


def _guard(path: str | Path, head: bytes, size: int) -> _Header:
    """Check the first bytes of a file of `size` bytes before any parser allocates what they promise."""
    cure = "is this a 3DGS splat?"
    if not head.startswith(b"ply"):
        raise InputError(path, "empty file" if not head else "does not begin with 'ply'", cure)
    end = re.search(rb"(?m)^end_header\r?\n", head)
    if end is None:
        raise InputError(path, f"no 'end_header' in the first {MAX_HEADER} bytes", "the file is cut off or not a PLY")
    lines = head[: end.start()].decode("ascii", errors="replace").split("\n")
    form, element, count, names, kinds = "", "", -1, [], []
    for words in (line.split() for line in lines):
        if words[:1] == ["format"] and len(words) > 1:
            form = words[1]
        elif words[:1] == ["element"]:
            if element:
                raise InputError(path, f"has a second element '{' '.join(words[1:2])}'", "a splat has only 'vertex'")
            element = words[1] if len(words) == 3 else "?"
            count = int(words[2]) if len(words) == 3 and words[2].isdigit() else -1
        elif words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in KINDS:
                raise InputError(path, f"property '{words[-1]}' is a list or of an unknown type", cure)
            names.append(words[2])
            kinds.append(KINDS[words[1]])
    if element != "vertex" or count < 0:
        raise InputError(path, "no readable 'element vertex COUNT' line", cure)
    if len(set(names)) != len(names):
        raise InputError(path, "a property is named twice", cure)
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise InputError(path, f"property '{missing[0]}' is missing ({len(missing)} in all)", cure)
    rest = [name for name in names if name.startswith("f_rest_")]
    if len(rest) not in REST or set(rest) != {f"f_rest_{i}" for i in range(len(rest))}:
        raise InputError(path, f"{len(rest)} 'f_rest' properties", "0, 9, 24 or 45 are SH degrees 0 to 3")
    if not 0 < count <= MAX_GAUSSIANS:
        raise InputError(path, f"promises {count} Gaussians", f"1 to {MAX_GAUSSIANS} are accepted")
    body, stride = size - end.end(), sum(int(kind[1]) for kind in kinds)
    if form.startswith("binary") and body != count * stride:
        what = "is cut off" if body < count * stride else "has trailing bytes"
        raise InputError(path, f"{what}: {count} Gaussians need {count * stride} bytes, there are {body}")
    if form == "ascii" and body < 2 * count * len(names) - 1:
        raise InputError(path, f"is cut off: {body} bytes cannot hold {count} Gaussians")
    if form not in ORDERS:
        raise InputError(path, f"unknown format '{form}'", cure)
    return _Header(form, names, [ORDERS[form] + kind for kind in kinds], count, end.end())

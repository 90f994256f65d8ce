"""Splats as glTF: one .glb with the Khronos extension KHR_gaussian_splatting, and the reader of what is written here.

As of its release candidate of 2026: a POINTS primitive with float attributes POSITION, ROTATION (unit xyzw), SCALE
(standard deviations), OPACITY (0..1) and SH_DEGREE_l_COEF_n (rgb, orders -l..l with the Condon-Shortley phase, which
are the coefficients and the order of a 3DGS PLY); kernel "ellipse", colours display-referred sRGB as they were fitted.
glTF is y-up: the attributes keep our z-up numbers, bit by bit, and the node turns them. COLOR_0 is for viewers that
know nothing of splats and draw coloured points.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gsmae import __version__
from gsmae.errors import InputError
from gsmae.files import write_aside
from gsmae.gaussians import Gaussians

NAME = "KHR_gaussian_splatting"
EXTENSION = {
    "kernel": "ellipse",
    "colorSpace": "srgb_rec709_display",
    "projection": "perspective",
    "sortingMethod": "cameraDistance",
}
Y_UP = [-math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]  # xyzw, a quarter turn about x: (x, y, z) -> (x, z, -y)
MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
POINTS, FLOAT, BYTE, VERTICES = 0, 5126, 5121, 34962
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def write_glb(path: str | Path, gaussians: Gaussians) -> None:
    """Write a splat as .glb, aside and renamed; equal input, equal bytes. Non-finite values raise ValueError.

    Means and SH are stored bit by bit; scales, opacities and rotations in their used form, as float32.
    """
    g = gaussians.to("cpu", torch.float32)
    arrays = {
        "POSITION": g.means,
        f"{NAME}:ROTATION": g.rotations[:, [1, 2, 3, 0]],
        f"{NAME}:SCALE": g.scales,
        f"{NAME}:OPACITY": g.opacities[:, None],
        **{f"{NAME}:{name}": g.sh[:, k] for k, name in enumerate(_coefficients(g.degree))},
    }
    numbers = {name: np.ascontiguousarray(values.numpy(), dtype="<f4") for name, values in arrays.items()}
    if not all(np.isfinite(values).all() for values in numbers.values()):
        raise ValueError(f"{path}: refusing to write non-finite Gaussians")
    numbers["COLOR_0"] = _fallback(g)
    views, accessors, size = [], [], 0
    for name, values in numbers.items():
        kind = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[values.shape[1]]
        accessor: dict[str, Any] = {"bufferView": len(views), "componentType": FLOAT, "count": len(g), "type": kind}
        if name == "POSITION":
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        if name == "COLOR_0":
            accessor |= {"componentType": BYTE, "normalized": True}
        views.append({"buffer": 0, "byteOffset": size, "byteLength": values.nbytes, "target": VERTICES})
        accessors.append(accessor)
        size += values.nbytes
    attributes = {name: i for i, name in enumerate(numbers)}
    document = {
        "asset": {"version": "2.0", "generator": f"gsmae {__version__}"},
        "extensionsUsed": [NAME],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "rotation": Y_UP}],
        "meshes": [{"primitives": [{"mode": POINTS, "attributes": attributes, "extensions": {NAME: EXTENSION}}]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": size}],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<III", MAGIC, 2, 12 + 8 + len(text) + 8 + size)
    with write_aside(path) as temporary, temporary.open("wb") as file:
        file.write(head + struct.pack("<II", len(text), JSON_CHUNK) + text)
        file.write(struct.pack("<II", size, BINARY_CHUNK))
        for values in numbers.values():
            file.write(values.tobytes())


def read_glb(path: str | Path) -> Gaussians:
    """Read a .glb that `write_glb` wrote, in our frame again. InputError for any other, or a broken one.

    Means and SH are those that were written; scales, opacities and rotations agree within the rounding of float32, but
    for opacities within 1e-7 of 0 or 1, which come back as that.
    """
    path, cure = Path(path), "only splats that `gsmae export` wrote are read here"
    document, body = _chunks(path)
    try:
        node, primitive = document["nodes"][0], document["meshes"][0]["primitives"][0]
        if primitive["mode"] != POINTS or primitive["extensions"][NAME]["kernel"] != "ellipse":
            raise InputError(path, "its points are not splats", cure)
        if node["rotation"] != Y_UP or set(node) - {"mesh", "rotation", "name"}:
            raise InputError(path, "its node is turned or moved in another way", cure)
        attributes = primitive["attributes"]

        def read(name: str, width: int) -> torch.Tensor:
            accessor = document["accessors"][attributes[name]]
            view = document["bufferViews"][accessor["bufferView"]]
            start, count = view.get("byteOffset", 0) + accessor.get("byteOffset", 0), accessor["count"]
            plain = accessor["componentType"] == FLOAT and "byteStride" not in view and "sparse" not in accessor
            if not plain or WIDTHS.get(accessor["type"]) != width:
                raise InputError(path, f"'{name}' is not {width} plain floats a splat", cure)
            if 4 * width * count != view["byteLength"] or not 0 <= start <= start + view["byteLength"] <= len(body):
                raise InputError(path, f"'{name}' does not fill its place in the file", cure)
            values = np.frombuffer(body, "<f4", width * count, start).reshape(count, width)
            if not np.isfinite(values).all():
                raise InputError(path, f"'{name}' has non-finite values", cure)
            return torch.from_numpy(values.astype(np.float32))

        degree = max(d for d in range(4) if f"{NAME}:SH_DEGREE_{d}_COEF_0" in attributes)
        sh = torch.stack([read(f"{NAME}:{name}", 3) for name in _coefficients(degree)], dim=1)
        quats = read(f"{NAME}:ROTATION", 4)[:, [3, 0, 1, 2]]
        scales, opacities = read(f"{NAME}:SCALE", 3), read(f"{NAME}:OPACITY", 1)[:, 0]
        g = Gaussians.from_used(read("POSITION", 3), quats, scales.double(), opacities.double(), sh)
        return g.to(torch.float32)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(path, f"is not a glTF splat: {type(error).__name__} {error}", cure) from None


def _coefficients(degree: int) -> list[str]:
    return [f"SH_DEGREE_{d}_COEF_{n}" for d in range(degree + 1) for n in range(2 * d + 1)]


def _fallback(g: Gaussians) -> np.ndarray:
    """Base colours and opacities as glTF's vertex colours: linear light, 8 bits, [N, 4]."""
    color = g.colors.clamp(0, 1).numpy().astype(np.float64)
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return np.rint(np.concatenate([linear, g.opacities[:, None].numpy()], axis=1) * 255).astype(np.uint8)


def _chunks(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary chunk of a .glb."""
    cure = "the file is cut off or not a .glb"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(path, error.strerror or str(error)) from None
    if len(raw) < 20 or struct.unpack_from("<I", raw)[0] != MAGIC:
        raise InputError(path, "does not begin as a .glb does", cure)
    _, version, size, length, kind = struct.unpack_from("<5I", raw)
    if version != 2 or size != len(raw) or kind != JSON_CHUNK or 28 + length > size:
        raise InputError(path, f"is version {version}, promises {size} bytes, has {len(raw)}", cure)
    rest, kind = struct.unpack_from("<II", raw, 20 + length)
    if kind != BINARY_CHUNK or 28 + length + rest != size:
        raise InputError(path, "its chunks do not fill it", cure)
    try:
        document = json.loads(raw[20 : 20 + length])
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(path, f"not readable as JSON: {error}", cure) from None
    if not isinstance(document, dict):
        raise InputError(path, "its JSON is not a table", cure)
    return document, raw[28 + length :]

"""The container of glTF 2: GLB or JSON, its buffers, and the typed arrays (accessors) in them."""

from __future__ import annotations

import base64
import binascii
import json
import struct
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np

from gsmae.errors import InputError

from .assets import Assets

TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
MAX_COPIED = 1 << 28  # bytes of accessors that are not in the file as they are: sparse ones and those without data
# extensions a file may require: those that change nothing we show, and those that we know
READ = ("KHR_texture_transform", "KHR_mesh_quantization", "EXT_texture_webp", "KHR_lights_punctual", "KHR_xmp")


class Container:
    """A parsed file: `json`, and arrays by accessor number. Every wrong reference is an InputError."""

    def __init__(self, path: Path, assets: Assets):
        self.path, self.assets = path, assets
        data = path.read_bytes()
        self.blob: bytes | None = None
        if data[:4] == b"glTF":
            data = self._chunks(data)
        try:
            self.json: dict[str, Any] = json.loads(data.decode("utf-8-sig"))
            version = str(self.json["asset"]["version"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            cause = f"not readable as glTF: {type(error).__name__}: {str(error)[:80]}"
            raise self.damaged(cause, "the file is damaged or not what its name says") from None
        if not version.startswith("2."):
            raise self.damaged(f"is glTF {version[:20]}; only glTF 2 is read", "convert it")
        needed = [str(name) for name in self.json.get("extensionsRequired", [])]
        unknown = [n for n in needed if n not in READ and not n.startswith("KHR_materials_")]
        if unknown:
            raise self.damaged(f"needs {', '.join(unknown)[:100]}, which is not read", "export it uncompressed")
        self._buffers: dict[int, bytes] = {}
        self._arrays: dict[int, np.ndarray] = {}
        self._copied = 0

    def damaged(self, cause: str, cure: str = "the file is damaged") -> InputError:
        return InputError(self.path, cause, cure)

    def entry(self, kind: str, number: Any) -> dict[str, Any]:
        """The number-th of the file's `nodes`, `meshes`, ...; InputError where there is none."""
        entries = self.json.get(kind, [])
        if not isinstance(number, int) or not isinstance(entries, list) or not 0 <= number < len(entries):
            raise self.damaged(f"names number {str(number)[:20]} of its {kind}, which does not exist")
        if not isinstance(entries[number], dict):
            raise self.damaged(f"number {number} of its {kind} is not an object")
        return entries[number]

    def array(self, number: Any, widths: tuple[int, ...], rows: np.ndarray | None = None) -> np.ndarray:
        """An accessor as [count, width] of its own type, floats where it is normalised; width is one of `widths`.

        rows  only these, in this order: whoever needs few of many then makes few
        """
        entry = self.entry("accessors", number)
        dtype, width = self._dtype(entry), WIDTHS.get(entry.get("type", ""), 0)
        if width not in widths:
            raise self.damaged(f"accessor {number} has the type {entry.get('type')}")
        if number not in self._arrays:
            self._arrays[number] = self._values(number, entry, width, dtype)
        values = self._arrays[number] if rows is None else self._arrays[number][rows]
        if entry.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values / np.iinfo(dtype).max, -1.0)
        return values

    def count(self, number: Any) -> int:
        """How many elements an accessor has."""
        return self._whole(self.entry("accessors", number), "count")

    def _values(self, number: int, entry: dict[str, Any], width: int, dtype: np.dtype) -> np.ndarray:
        count = self._whole(entry, "count")
        if "bufferView" not in entry or "sparse" in entry:
            self._copied += count * width * dtype.itemsize
            if self._copied > MAX_COPIED:
                how = "without data" if "bufferView" not in entry else "in sparse form"
                raise self.damaged(f"accessor {number} promises {count} elements {how}, which is too much")
        if "bufferView" in entry:
            values = self._view(entry["bufferView"], self._whole(entry, "byteOffset"), count, width, dtype)
        else:
            values = np.zeros((count, width), dtype)
        return self._sparse(values.copy(), entry["sparse"], width, dtype) if "sparse" in entry else values

    def image_bytes(self, entry: dict[str, Any]) -> bytes | None:
        """An image's encoded bytes where they are in the container; None where it names a file."""
        if "bufferView" in entry:
            view = self.entry("bufferViews", entry["bufferView"])
            return self._view(entry["bufferView"], 0, self._whole(view, "byteLength"), 1, np.dtype("u1")).tobytes()
        return self._inline(entry.get("uri"))

    def _whole(self, entry: dict[str, Any], key: str) -> int:
        value = entry.get(key, 0)
        if not isinstance(value, int) or value < 0:
            raise self.damaged(f"{key} is {str(value)[:20]}, not a count")
        return value

    def _dtype(self, entry: dict[str, Any]) -> np.dtype:
        if entry.get("componentType") not in TYPES:
            raise self.damaged(f"has numbers of the unknown type {str(entry.get('componentType'))[:20]}")
        return np.dtype(TYPES[entry["componentType"]])

    def _sparse(self, values: np.ndarray, sparse: Any, width: int, dtype: np.dtype) -> np.ndarray:
        try:
            count, at, new = self._whole(sparse, "count"), sparse["indices"], sparse["values"]
            rows = self._view(at["bufferView"], self._whole(at, "byteOffset"), count, 1, self._dtype(at))[:, 0]
            values[rows.astype(np.int64)] = self._view(
                new["bufferView"], self._whole(new, "byteOffset"), count, width, dtype
            )
        except (KeyError, TypeError, AttributeError, IndexError):
            raise self.damaged("has a sparse accessor that does not fit") from None
        return values

    def _view(self, number: Any, offset: int, count: int, width: int, dtype: np.dtype) -> np.ndarray:
        """[count, width] values of a buffer view, from an offset in bytes on."""
        view = self.entry("bufferViews", number)
        if "EXT_meshopt_compression" in view.get("extensions", {}):
            raise self.damaged("is compressed (EXT_meshopt_compression)", "export it uncompressed")
        buffer = self._buffer(view.get("buffer"))
        start, length = self._whole(view, "byteOffset"), self._whole(view, "byteLength")
        item = width * dtype.itemsize
        stride = self._whole(view, "byteStride") or item
        end = offset + (count - 1) * stride + item if count else 0
        if end > length or start + length > len(buffer):
            raise self.damaged("has an array that reaches beyond its buffer", "the file is damaged or truncated")
        return np.ndarray((count, width), dtype, buffer, start + offset, (stride, dtype.itemsize))

    def _buffer(self, number: Any) -> bytes:
        if number not in self._buffers:
            entry = self.entry("buffers", number)
            data = self.blob if number == 0 and "uri" not in entry else self._inline(entry.get("uri"))
            if data is None:
                if not isinstance(entry.get("uri"), str):
                    raise self.damaged(f"buffer {number} has no data", "the file is damaged or truncated")
                data = self._file(entry["uri"])
            self._buffers[number] = data
        return self._buffers[number]

    def _file(self, uri: str) -> bytes:
        name = uri if self.assets.find(uri) else urllib.parse.unquote(uri)
        try:
            return self.assets.read(name, buffer=True)
        except FileNotFoundError:
            raise self.damaged(f"its buffer {name[:100]} {self.assets.absence(name)}", "put it beside") from None

    def _inline(self, uri: Any) -> bytes | None:
        """The bytes of a data: address, None for anything else."""
        if not isinstance(uri, str) or not uri.startswith("data:"):
            return None
        try:
            return base64.b64decode(uri.partition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            raise self.damaged("has a data: address that is not base64") from None

    def _chunks(self, data: bytes) -> bytes:
        """JSON of a GLB; its binary chunk becomes `blob`."""
        if len(data) < 12 or struct.unpack_from("<I", data, 4)[0] != 2:
            raise self.damaged("is not GLB of version 2", "convert it")
        text, place = b"", 12
        while place + 8 <= len(data):
            length, kind = struct.unpack_from("<I4s", data, place)
            chunk = data[place + 8 : place + 8 + length]
            if len(chunk) < length:
                raise self.damaged("ends before its chunks do", "the file is truncated")
            if kind == b"JSON" and not text:
                text = chunk
            elif kind == b"BIN\0" and self.blob is None:
                self.blob = chunk
            place += 8 + length
        return text

"""One HDF5 shard: its datasets, how it is written once, and how a stranger's is opened without harm.

Datasets, all contiguous and uncompressed (lossless compression saves 7-15 % of float splats and costs 2-8 times the
processor): `splats` [rows, C] raw values, float32 or uint16, rows of an object in one fixed random order; `offsets`
[objects + 1]; `uids`, `categories`, `splits`, `sha256` (of the splat file), `labels`, `degrees`; for uint16 `minimum`
and `maximum` [objects, C]; surface samples `points`, `point_normals`, `point_colors`, `point_parts` (index within
the category's parts, -1 = none) and `point_offsets`. Attributes: see `Head`. docs/format.md has the whole table.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gsmae.errors import InputError

from .slabs import SharedFile, Slab

SCHEMA = 1
KIND = "gsmae-shard"
LEVELS = 65535  # steps of a uint16 between an object's minimum and maximum of a column
TEXT = 512  # bytes of the longest name
ATTRIBUTE = 64 << 20  # bytes of the longest attribute
STRINGS = {"uids": "uid", "categories": "category", "splits": "split", "sha256": "sha256"}  # dataset -> field of Packed
POINTS = {"points": ("f4", 3), "point_normals": ("f4", 3), "point_colors": ("u1", 3), "point_parts": ("i2", None)}
HEAVY = ("splats", "minimum", "maximum", *POINTS)  # what grows with the splats
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_LZF}
EXPANSION = 20  # splats shrink to a half; what unpacks to more is a bomb or a lie about the shape
FREE = 1 << 20  # bytes to which that does not apply


def column_names(degree: int) -> tuple[str, ...]:
    """Names of the raw columns: those of a 3DGS file, SH coefficient by coefficient (11 + 3 (degree + 1)^2)."""
    names = ["x", "y", "z", "rot_0", "rot_1", "rot_2", "rot_3", "scale_0", "scale_1", "scale_2", "opacity"]
    return (*names, *(f"sh_{k}_{c}" for k in range((degree + 1) ** 2) for c in "rgb"))


@dataclass(frozen=True)
class Head:
    """Attributes of a shard.

    config_hash  of the fits; several builds give a hash of theirs
    seed         of the row order
    class_names  of the whole pack, sorted; `labels` index them
    part_names   category -> part names
    degree       largest SH degree in the shard, which sets the number of columns; smaller objects are padded with 0
    quantize     "" (float32) or "u16"
    inputs       hash of everything the shard was made from
    """

    config_hash: str
    seed: int
    class_names: tuple[str, ...]
    part_names: dict[str, tuple[str, ...]]
    degree: int
    quantize: str
    inputs: str
    generator: str
    frame: str = "z-up"
    schema: int = SCHEMA


@dataclass(frozen=True)
class Packed:
    """One object ready to be written: rows [n, C'] of its own degree, with their range where they are uint16."""

    uid: str
    category: str
    split: str
    label: int
    sha256: str
    degree: int
    rows: np.ndarray
    minimum: np.ndarray | None = None
    maximum: np.ndarray | None = None
    points: dict[str, np.ndarray] = field(default_factory=dict)


def quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows as uint16 between the minimum and maximum of each column: (uint16 [n, C], minimum [C], maximum [C]).

    `dequantized` brings every value back within (maximum - minimum) / 131070 + 2^-22 max(|minimum|, |maximum|).
    """
    low, high = rows.min(axis=0), rows.max(axis=0)
    span = high.astype(np.float64) - low
    scaled = (rows - low.astype(np.float64)) * (LEVELS / np.where(span > 0, span, 1))
    return np.rint(scaled).astype(np.uint16), low, high


def dequantized(rows: np.ndarray, minimum: np.ndarray, maximum: np.ndarray) -> np.ndarray:
    """The inverse of `quantized`, float32."""
    step = ((maximum.astype(np.float64) - minimum) / LEVELS).astype(np.float32)
    out = rows.astype(np.float32)
    out *= step
    out += minimum
    return out


def write_shard(path: Path, objects: list[Packed], head: Head) -> None:
    """Write a shard; equal input gives equal bytes, wherever and whenever."""
    width = len(column_names(head.degree))
    counts = [len(o.rows) for o in objects]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    point_counts = [len(o.points["points"]) if o.points else 0 for o in objects]
    point_offsets = np.concatenate([[0], np.cumsum(point_counts)]).astype(np.int64)
    # a fixed version of the format (not the library's default) and aligned data that can be memory-mapped
    with h5py.File(path, "w", libver=("v108", "v108"), alignment_threshold=4096, alignment_interval=4096) as file:

        def put(name: str, values: np.ndarray) -> None:
            file.create_dataset(name, data=values, track_times=False)

        def space(name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
            return file.create_dataset(name, shape=shape, dtype=dtype, track_times=False)

        for name, value in asdict(head).items():
            text = isinstance(value, (str, tuple, dict))
            plain = value if isinstance(value, str) or not text else json.dumps(value, sort_keys=True)
            file.attrs[name] = np.bytes_(plain.encode()) if text else np.int64(value)
        file.attrs["kind"] = np.bytes_(KIND.encode())
        file.attrs["columns"] = np.bytes_(json.dumps(column_names(head.degree)).encode())
        for name, attribute in STRINGS.items():
            put(name, np.array([getattr(o, attribute).encode() for o in objects]))
        put("labels", np.array([o.label for o in objects], dtype=np.int64))
        put("degrees", np.array([o.degree for o in objects], dtype=np.int8))
        put("offsets", offsets)
        put("point_offsets", point_offsets)
        if head.quantize:
            for name in ("minimum", "maximum"):
                put(name, np.stack([_padded(getattr(o, name)[None], width)[0] for o in objects]))
        splats = space("splats", (int(offsets[-1]), width), "u2" if head.quantize else "f4")
        for o, start in zip(objects, offsets, strict=False):
            splats[start : start + len(o.rows)] = _padded(o.rows, width)
        for name, (dtype, cells) in POINTS.items():
            values = space(name, (int(point_offsets[-1]), *([cells] if cells else [])), dtype)
            for o, start in zip(objects, point_offsets, strict=False):
                if o.points:
                    values[start : start + len(o.points[name])] = o.points[name]


def _padded(rows: np.ndarray, width: int) -> np.ndarray:
    return rows if rows.shape[1] == width else np.pad(rows, ((0, 0), (0, width - rows.shape[1])))


class Shard:
    """A shard opened for reading. Splats and points stay in the file where it allows and are read when asked for, so
    that an open shard is small and no HDF5 handle has to survive a fork.

    held  bytes of splats and points in memory: 0 unless they are compressed, or `load`ed
    Raises InputError when the file is not a shard: external or soft links, virtual or external storage, filters other
    than gzip, lzf and shuffle, shapes that disagree or exceed the file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = SharedFile(self.path)
            size = self.path.stat().st_size
            with h5py.File(self.path, "r", locking=False) as file:
                _guard(file, self.path, size)
                self.head = _head(file, self.path)
                self._arrays: dict[str, Any] = {str(n): _array(file[n], self._file, size) for n in file}
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:  # h5py raises them all
            cause = getattr(error, "strerror", None) or str(error).strip("'\"")
            raise InputError(path, f"not readable as HDF5: {cause}", "copy it again, or pack again") from None
        self.columns = column_names(self.head.degree)
        self._check()
        for name in STRINGS:
            self.text(name)
        self.labels, self.degrees = self._arrays.pop("labels"), self._arrays.pop("degrees")
        self.offsets, self.point_offsets = self._arrays.pop("offsets"), self._arrays.pop("point_offsets")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def text(self, name: str) -> tuple[str, ...]:
        """`uids`, `categories`, `splits` or `sha256` of all objects, read anew by every call and not kept."""
        try:
            return tuple(v.decode() for v in self._arrays[name][:].tolist())
        except UnicodeDecodeError:
            raise InputError(self.path, f"'{name}' is not text", "pack again") from None

    @cached_property
    def uids(self) -> tuple[str, ...]:
        return self.text("uids")

    @cached_property
    def categories(self) -> tuple[str, ...]:
        return self.text("categories")

    @cached_property
    def splits(self) -> tuple[str, ...]:
        return self.text("splits")

    @cached_property
    def sha256(self) -> tuple[str, ...]:
        return self.text("sha256")

    @property
    def held(self) -> int:
        return sum(v.nbytes for name, v in self._arrays.items() if name in HEAVY and isinstance(v, np.ndarray))

    def rows(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Raw rows start..stop of object i, all columns of the shard: [n, C] float32, a copy."""
        first, last = int(self.offsets[i]), int(self.offsets[i + 1])
        stored = self._part("splats", first + start, last if stop is None else min(first + stop, last))
        if not self.head.quantize:
            return stored
        return dequantized(stored, *self._range(i))

    def stored(self, i: int) -> tuple[np.ndarray, ...]:
        """The rows of object i as they lie in the file, and their minimum and maximum where they are uint16."""
        rows = self._part("splats", int(self.offsets[i]), int(self.offsets[i + 1]))
        return (rows, *self._range(i)) if self.head.quantize else (rows,)

    def points(self, i: int) -> dict[str, np.ndarray]:
        """Surface samples of object i, copies: points, point_normals, point_colors, point_parts."""
        start, stop = int(self.point_offsets[i]), int(self.point_offsets[i + 1])
        return {name: self._part(name, start, stop) for name in POINTS}

    def load(self) -> None:
        """Bring the whole shard into memory."""
        self._arrays = {name: values[:] for name, values in self._arrays.items()}
        self.close()

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        self._file.close()

    def _part(self, name: str, start: int, stop: int) -> np.ndarray:
        values = self._arrays[name]
        return values[start:stop] if isinstance(values, Slab) else values[start:stop].copy()

    def _range(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self._part("minimum", i, i + 1)[0], self._part("maximum", i, i + 1)[0]

    def _check(self) -> None:
        """Counts, shapes and ranges agree with one another."""
        a, width = self._arrays, len(self.columns)
        names = {*STRINGS, *POINTS, "labels", "degrees", "offsets", "point_offsets", "splats"}
        names |= {"minimum", "maximum"} if self.head.quantize else set()
        if set(a) != names:
            odd = ", ".join(sorted(set(a) ^ names))
            raise InputError(self.path, f"datasets missing or unknown: {odd}", "pack again")
        n = len(a["uids"])
        rows = a["splats"].shape[0] if a["splats"].ndim == 2 else -1
        points = a["points"].shape[0] if a["points"].ndim == 2 else -1
        expected: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(STRINGS, ("S", (n,)))
        expected |= {"labels": ("i8", (n,)), "degrees": ("i1", (n,)), "offsets": ("i8", (n + 1,))}
        expected |= {"point_offsets": ("i8", (n + 1,))}
        expected["splats"] = ("u2" if self.head.quantize else "f4", (rows, width))
        expected |= {name: (t, (points, c) if c else (points,)) for name, (t, c) in POINTS.items()}
        if self.head.quantize:
            expected |= dict.fromkeys(("minimum", "maximum"), ("f4", (n, width)))
        for name, (kind, shape) in expected.items():
            good = a[name].dtype.kind == "S" if kind == "S" else a[name].dtype == np.dtype(f"<{kind}")
            if not good or a[name].shape != shape:
                is_, want = f"{a[name].dtype} {a[name].shape}", f"{kind} {shape}"
                raise InputError(self.path, f"dataset '{name}' is {is_}, expected {want}", "pack again")
        for name, end in (("offsets", rows), ("point_offsets", points)):
            o = a[name]
            if o[0] != 0 or o[-1] != end or (np.diff(o) < (1 if name == "offsets" else 0)).any():
                raise InputError(self.path, f"'{name}' does not divide the {end} rows", "pack again")
        if ((a["labels"] < 0) | (a["labels"] >= len(self.head.class_names))).any():
            raise InputError(self.path, "a label is not an index of the class names", "pack again")
        if ((a["degrees"] < 0) | (a["degrees"] > self.head.degree)).any():
            raise InputError(self.path, "an SH degree exceeds that of the shard", "pack again")


def _guard(file: Any, path: Path, size: int) -> None:
    """Refuse anything but plain datasets inside this very file."""
    cure = "refused: shards hold plain datasets only; pack again from a source you trust"
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise InputError(path, f"'{name}' is a link to elsewhere", cure)
        item = file.get(name)
        if not isinstance(item, h5py.Dataset):
            raise InputError(path, f"'{name}' is not a dataset", cure)
        plist = item.id.get_create_plist()
        if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
            raise InputError(path, f"'{name}' keeps its data in other files", cure)
        kinds = {plist.get_filter(k)[0] for k in range(plist.get_nfilters())}
        if not kinds <= FILTERS:
            raise InputError(path, f"'{name}' uses HDF5 filter {min(kinds - FILTERS)}", cure)
        if item.dtype.kind not in "fiuS" or item.ndim not in (1, 2) or item.dtype.itemsize > TEXT:
            raise InputError(path, f"'{name}' has type {item.dtype} and {item.ndim} axes", cure)
        stored = item.id.get_storage_size()
        room = stored * EXPANSION + FREE if kinds and stored else stored
        if item.nbytes > room or stored > size:
            raise InputError(path, f"'{name}' promises {item.nbytes} bytes of which {stored} are there", cure)
        if kinds and np.prod(item.chunks or (1,)) * item.dtype.itemsize > max(1 << 28, 2 * size):
            raise InputError(path, f"'{name}' has chunks of unreasonable size", cure)


def _head(file: Any, path: Path) -> Head:
    """The attributes, each of the expected type."""
    values: dict[str, Any] = {}
    for name in (*Head.__dataclass_fields__, "kind", "columns"):
        if name not in file.attrs:
            raise InputError(path, f"attribute '{name}' is missing", "is this a gsmae shard?")
        kind = file.attrs.get_id(name)
        if kind.shape != () or kind.dtype.kind not in "iS" or kind.get_storage_size() > ATTRIBUTE:
            raise InputError(path, f"attribute '{name}' has an unexpected type", "is this a gsmae shard?")
        value = file.attrs[name]
        try:
            values[name] = bytes(value).decode() if kind.dtype.kind == "S" else int(value)
            if name in ("class_names", "part_names", "columns"):
                values[name] = json.loads(values[name])
        except (UnicodeDecodeError, ValueError, TypeError, RecursionError):
            raise InputError(path, f"attribute '{name}' is not readable", "pack again") from None
    kind, columns = values.pop("kind"), values.pop("columns")
    if kind != KIND or values["schema"] != SCHEMA:
        cause = f"is '{kind}' of schema {values['schema']}, expected '{KIND}' of schema {SCHEMA}"
        raise InputError(path, cause, "pack again with this version")
    if values["degree"] not in (0, 1, 2, 3) or values["quantize"] not in ("", "u16"):
        raise InputError(path, "degree or quantisation is unknown", "pack again with this version")
    if columns != list(column_names(values["degree"])):
        raise InputError(path, f"has columns {columns}", "pack again with this version")
    if not isinstance(values["part_names"], dict):
        raise InputError(path, "attribute 'part_names' is not a table", "pack again")
    values["class_names"] = _names(values["class_names"], path)
    values["part_names"] = {category: _names(names, path) for category, names in values["part_names"].items()}
    return Head(**values)


def _names(values: Any, path: Path) -> tuple[str, ...]:
    """A list of strings as a tuple, or an InputError."""
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise InputError(path, "a list of names is something else", "pack again")
    return tuple(values)


def _array(item: Any, file: SharedFile, size: int) -> np.ndarray | Slab:
    """The dataset where it lies, if that is in one piece; small and compressed ones in memory."""
    offset = item.id.get_offset()
    if offset is None or item.name.strip("/") not in (*HEAVY, *STRINGS):
        return np.asarray(item[()])
    if offset + item.nbytes > size:
        cure = "the file is cut off: copy or pack it again"
        raise InputError(file.path, f"'{item.name}' ends beyond the file", cure)
    return Slab(file, offset, item.dtype, item.shape)

"""A pack folder's table of contents: pack.json, written last, and index.parquet, one row an object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from gsmae.errors import InputError
from gsmae.files import read_json, sha256, write_aside
from gsmae.gaussians import FIELDS

from .shardfile import Shard

SCHEMA = 1
PACK, INDEX = "pack.json", "index.parquet"
SHARD = "shard_{:05d}.h5"
KNOWN = {
    "mesh-points": ("means", "sh"),
    "scanobjectnn": ("means",),
    "modelnet-points": ("means",),
    "modelnet-hdf5": ("means",),
}  # source layout -> the fields that its objects have, where they are points and not splats (`data.clouds`)
FILE = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"  # a name in the folder, never a path


class ShardEntry(BaseModel):
    """One shard: its name in the folder, size and content hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=FILE)
    sha256: str
    bytes: int
    objects: int
    gaussians: int


class IndexEntry(BaseModel):
    """The index beside the shards.

    contents  hash of its rows, which is the same whatever version of pyarrow wrote the file; packs made before there
              was one have none
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=FILE)
    sha256: str
    bytes: int
    contents: str = ""


class Failure(BaseModel):
    """An object that the build could not fit, or that has no usable Gaussian; it is counted, not packed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: str
    stage: str
    reason: str


class Source(BaseModel):
    """One build that went in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: str
    config_hash: str
    seed: int
    objects: int


class SplitRule(BaseModel):
    """How splits came about: objects whose split was official, carved from train or assigned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    val_fraction: float
    official: int
    carved: int
    assigned: int


class PackInfo(BaseModel):
    """pack.json: what a pack holds and how to check it. Its presence means that the pack is complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal[1] = Field(1, alias="schema")
    kind: Literal["gsmae-pack"] = "gsmae-pack"
    generator: str
    frame: Literal["z-up"] = "z-up"
    seed: int
    quantize: Literal["", "u16"]
    objects_per_shard: int
    min_psnr: float | None
    config_hash: str
    inputs: str
    sources: tuple[Source, ...]
    class_names: tuple[str, ...]
    part_names: dict[str, tuple[str, ...]]
    objects: int
    gaussians: int
    points: int
    splits: dict[Literal["train", "val", "test"], int]
    split_rule: SplitRule
    below_psnr: int
    without_points: int
    leaks: int
    failed: tuple[Failure, ...]
    dropped: dict[str, int] = Field(default_factory=dict)
    """uid -> Gaussians left out of it for want of finite values; not in the file where there are none"""
    index: IndexEntry
    shards: tuple[ShardEntry, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields that every object has; the others are neutral constants, see `data.clouds.as_splat`."""
        return tuple(f for f in FIELDS if all(f in KNOWN.get(s.layout, FIELDS) for s in self.sources))

    @model_serializer(mode="wrap")
    def _written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = plain(self)
        if not values["index"]["contents"]:
            del values["index"]["contents"]
        return {name: value for name, value in values.items() if name != "dropped" or value}


@dataclass(frozen=True)
class Index:
    """Columns of index.parquet, all of one length. `shard` and `row` say where the object lies, `start` and `stop`
    are its rows in that shard."""

    uid: np.ndarray
    category: np.ndarray
    label: np.ndarray
    split: np.ndarray
    split_source: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    gaussians: np.ndarray
    degree: np.ndarray
    points: np.ndarray
    psnr: np.ndarray
    sha256: np.ndarray

    def __len__(self) -> int:
        return len(self.uid)


TYPES = {
    "uid": pa.string(), "category": pa.string(), "label": pa.int64(), "split": pa.string(), "split_source": pa.string(),
    "shard": pa.int32(), "row": pa.int32(), "start": pa.int64(), "stop": pa.int64(), "gaussians": pa.int64(),
    "degree": pa.int8(), "points": pa.int64(), "psnr": pa.float64(), "sha256": pa.string(),
}  # fmt: skip


def index_row(shard: Shard, number: int, row: int, source: str, psnr: float | None) -> dict[str, Any]:
    """The index's row of one object; `source` says how it came by its split, a shard holds no PSNR."""
    start, stop = int(shard.offsets[row]), int(shard.offsets[row + 1])
    return {
        "uid": shard.uids[row],
        "category": shard.categories[row],
        "label": int(shard.labels[row]),
        "split": shard.splits[row],
        "split_source": source,
        "shard": number,
        "row": row,
        "start": start,
        "stop": stop,
        "gaussians": stop - start,
        "degree": int(shard.degrees[row]),
        "points": int(shard.point_offsets[row + 1] - shard.point_offsets[row]),
        "psnr": psnr,
        "sha256": shard.sha256[row],
    }


def write_index(path: Path, rows: list[dict]) -> dict[str, Any]:
    """Write the index and return its entry for pack.json; an unknown psnr is null."""
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(TYPES.items())))
    with write_aside(path) as temporary:
        pq.write_table(table, temporary, compression="none")
    contents = hashlib.sha256()
    for row in rows:
        contents.update(json.dumps([row[name] for name in TYPES]).encode() + b"\n")
    size = path.stat().st_size
    return {"file": path.name, "sha256": sha256(path), "bytes": size, "contents": contents.hexdigest()}


def fingerprint(path: str | Path, info: PackInfo) -> str:
    """What tells this pack from others: a hash of all that pack.json says, but for who wrote it and the index's bytes.

    The same pack made on two machines has one fingerprint. For a pack whose index has no hash of its contents it is the
    hash of pack.json.
    """
    if not info.index.contents:
        return sha256(Path(path) / PACK)
    said = info.model_dump(mode="json", by_alias=True, exclude={"generator": True, "index": {"sha256", "bytes"}})
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_pack(path: str | Path) -> PackInfo:
    """Read pack.json. Raises InputError when the folder is not a complete pack."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(path, "no such folder", "name the folder that `gsmae pack` wrote")
    if not (path / PACK).is_file():
        half = any(path.glob("shard_*.h5"))
        cure = "run the same `gsmae pack` again to finish it" if half else "name the folder that `gsmae pack` wrote"
        raise InputError(path, "is an unfinished pack" if half else "is not a pack: it has no pack.json", cure)
    try:
        return PackInfo.model_validate(read_json(path / PACK))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(path / PACK, f"'{where}': {first['msg']}", "pack again with this version") from None


def read_index(path: str | Path, info: PackInfo) -> Index:
    """Read and check index.parquet: its hash, its columns, and that every row lies in a shard that exists."""
    return Index(**read_columns(path, info, tuple(TYPES)))


def read_columns(path: str | Path, info: PackInfo, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some columns of index.parquet, checked as by `read_index`; all of them are 1 kB an object for a while."""
    file = Path(path) / info.index.file
    if not file.is_file():
        raise InputError(file, "is missing", "copy the whole pack folder, or pack again")
    if sha256(file) != info.index.sha256:
        raise InputError(file, "differs from its hash in pack.json", "copy it again, or pack again")
    try:
        table = pq.read_table(file, columns=[*{*names, "shard", "row"}])
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(file, f"not readable as Parquet: {error}", "pack again") from None
    if schema.names != list(TYPES) or any(schema.field(n).type != t for n, t in TYPES.items()):
        raise InputError(file, f"has columns {schema.names}", "pack again with this version")
    shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
    if len(row) != info.objects or ((shard < 0) | (shard >= len(info.shards))).any() or (row < 0).any():
        raise InputError(file, "does not agree with pack.json", "pack again")
    try:
        columns = {name: table[name].to_numpy() for name in names}
    except (pa.ArrowException, ValueError) as error:  # text that is not UTF-8
        raise InputError(file, f"not readable as Parquet: {error}", "pack again") from None
    del table
    pa.default_memory_pool().release_unused()
    return columns

"""What a build folder holds: its records, splits, part names and failures; the files are the truth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gsmae.errors import InputError
from gsmae.files import read_json
from gsmae.gaussians import Gaussians
from gsmae.ply import read_ply, read_ply_bytes

from .archives import Place
from .lists import SPLITS as SPLITS  # part of this module's interface, too
from .surface import Points, PointsFile

SCHEMA = 1


class Record(BaseModel):
    """One object of a build, done or failed; fields as in docs/format.md, those of later versions are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uid: str
    category: str
    split: Literal["train", "val", "test", ""] = ""
    status: Literal["done", "failed"]
    reason: str | None = ""
    stage: str | None = ""
    mesh: str | None = ""
    mesh_sha256: str | None = ""
    mesh_to_splat: list[list[float]] | None = None
    gaussians: int | None = None
    psnr: float | None = None
    ssim: float | None = None
    seconds: float | None = None
    seed: int | None = None
    config_hash: str | None = ""
    sha256: str | None = ""
    bytes: int | None = None
    part_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Build:
    """A folder of splats, their records and their part names.

    path         the folder
    config_hash  of the whole fitting configuration
    seed, frame  as recorded
    records      done and failed, sorted by uid
    parts        category -> names of its parts, in the order of their labels
    layout       where the splats lie: "build" (splats/<uid>.ply) or a name in `data.released.DATASETS`
    files        uid -> splat on the disk or in a zip, where the layout is not "build"
    surfaces     uid -> surface samples, where they are not those that the build wrote
    """

    path: Path
    config_hash: str
    seed: int
    frame: str
    records: tuple[Record, ...]
    parts: dict[str, tuple[str, ...]]
    layout: str = "build"
    files: dict[str, Place] | None = None
    surfaces: dict[str, Points] | None = None

    @property
    def done(self) -> tuple[Record, ...]:
        """Records of the objects that have a splat."""
        return tuple(r for r in self.records if r.status == "done")

    @property
    def failed(self) -> tuple[Record, ...]:
        """Records of the objects that have none, with stage and reason."""
        return tuple(r for r in self.records if r.status == "failed")

    def splat(self, record: Record) -> Place:
        """Where an object's splat lies."""
        return self.files[record.uid] if self.files is not None else self.path / "splats" / f"{record.uid}.ply"

    def gaussians(self, record: Record) -> Gaussians:
        """An object's splat, read from the disk or from its zip; InputError when it is broken."""
        place = self.splat(record)
        return read_ply(place) if isinstance(place, Path) else read_ply_bytes(place.read_bytes(), place)

    def points(self, record: Record) -> Path:
        """Path of an object's surface points (which may not exist)."""
        return self.path / "points" / f"{record.uid}.npz"

    def surface(self, record: Record) -> Points | None:
        """An object's surface samples, None where it has none."""
        if self.surfaces is not None:
            return self.surfaces.get(record.uid)
        file = self.points(record)
        return PointsFile(file) if file.is_file() else None


def read_build(path: str | Path, *, rebuild: bool = False) -> Build:
    """Read a build folder.

    rebuild  make a record in memory for every splat that has none or an unreadable one, from the file itself; what
             only the fit knew (split, psnr, mesh) is then missing and a warning in the record says so
    Raises InputError when the folder is not a build, or a record is broken or belongs to another object.
    """
    path = Path(path)
    head = read_head(path)
    records: dict[str, Record] = {}
    for file in files(path / "records", ".json"):
        try:
            record = read_record(file)
        except InputError:
            if not rebuild:
                raise
            continue
        uid = _uid(file, path / "records", ".json")
        if record.uid != uid and record.status == "done":
            raise InputError(file, f"is the record of '{record.uid}'", "move it where its uid says")
        records[uid] = record
    if rebuild:
        for file in files(path / "splats", ".ply"):
            uid = _uid(file, path / "splats", ".ply")
            if uid not in records or records[uid].status == "failed":
                records[uid] = record_of(file, uid)
    return Build(
        path,
        str(head.get("config_hash", "")),
        int(head.get("seed") or 0),
        "z-up",
        tuple(records[uid] for uid in sorted(records)),
        read_parts(path / "parts.json"),
    )


def read_head(path: str | Path) -> dict[str, Any]:
    """build.json of a folder, of a schema and frame that this version knows. Raises InputError for any other."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(path, "no such folder", "name the folder that `gsmae build` wrote")
    if not (path / "build.json").is_file():
        raise InputError(path, "has no build.json", "name the folder that `gsmae build` wrote")
    head = read_json(path / "build.json")
    if not isinstance(head, dict):
        raise InputError(path / "build.json", "is not a table of values", "run `gsmae build` again")
    if head.get("schema") != SCHEMA:
        cure = "this version reads schema 1; update gsmae or build again"
        raise InputError(path / "build.json", f"has schema {head.get('schema')!r}", cure)
    if not str(head.get("frame", "")).startswith("z-up"):
        raise InputError(path / "build.json", f"frame is {head.get('frame')!r}", "only splats in the z-up frame")
    if not isinstance(head.get("seed") or 0, int):
        raise InputError(path / "build.json", f"seed is {str(head['seed'])[:40]!r}", "a whole number is expected")
    return head


def read_record(file: str | Path) -> Record:
    """Read one record; InputError names the field that is wrong."""
    values = read_json(file)
    if not isinstance(values, dict):
        raise InputError(file, "is not a table of values", "delete it and run `gsmae build` again")
    return _record(values, file)


def record_of(file: Place, uid: str, split: str = "", *, finite: bool = True) -> Record:
    """A record made from a splat alone: counts, bytes and hash are exact, the rest is unknown.

    finite  as of `read_ply`
    Raises InputError when the splat is broken.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(str(file), error.strerror or str(error)) from None
    warning = "record made from the file; quality and mesh are unknown"
    values = {"uid": uid, "category": uid.split("/")[0], "split": split, "status": "done", "warnings": [warning]}
    digest = hashlib.sha256(content).hexdigest()
    values |= {"gaussians": len(read_ply_bytes(content, file, finite=finite)), "sha256": digest, "bytes": len(content)}
    return _record(values, str(file))


def read_parts(file: str | Path) -> dict[str, tuple[str, ...]]:
    """Part names of each category, {} without the file."""
    file = Path(file)
    if not file.exists():
        return {}
    values = read_json(file)
    good = isinstance(values, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        for names in values.values()
    )
    if not good:
        raise InputError(file, "is not a table of category -> list of different part names")
    return {category: tuple(values[category]) for category in sorted(values)}


def files(folder: Path, suffix: str) -> Iterator[Path]:
    """Files <category>/<name><suffix> below a folder in sorted order; temporaries of killed writers are passed over."""
    for path in sorted(folder.glob(f"*/*{suffix}")):
        if not path.name.startswith("."):
            yield path


def _uid(file: Path, folder: Path, suffix: str) -> str:
    return file.relative_to(folder).as_posix()[: -len(suffix)]


def _record(values: dict[str, Any], file: str | Path) -> Record:
    cure = "delete it and run `gsmae build` again"
    if values.get("schema", SCHEMA) != SCHEMA:
        raise InputError(file, f"has schema {values['schema']!r}", "this version reads schema 1")
    try:
        record = Record.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(file, f"'{'.'.join(map(str, first['loc']))}': {first['msg']}", cure) from None
    parts = record.uid.split("/")
    named = len(parts) == 2 and parts[0] == record.category
    named = named and not any(p in ("", ".", "..") or "\\" in p for p in parts)
    if record.status == "done" and not named:
        cause = f"uid '{record.uid}' is not '<category>/<name>' of category '{record.category}'"
        raise InputError(file, cause, cure)
    return record

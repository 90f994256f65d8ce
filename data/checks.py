"""Finding what is wrong with a splat, a build or a pack: every fault is a typed row, nothing is repaired."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gsmae.errors import InputError
from gsmae.files import TEMPORARY, sha256
from gsmae.ply import read_ply, read_ply_bytes

from .archives import Place, places
from .manifest import Record, files, read_build, read_parts, read_record
from .packs import INDEX, PACK, Index, PackInfo, read_index, read_pack
from .shardfile import Shard
from .surface import read_points

Kind = Literal["failed", "missing", "unreadable", "changed", "disagrees", "leftover"]


@dataclass(frozen=True)
class Problem:
    """One fault.

    path   the file at fault
    kind   failed (a build gave up on the object), missing, unreadable (not what it should be), changed (its hash
           differs from the one recorded), disagrees (two files say different things), leftover (belongs to nothing)
    cause  what is wrong
    cure   what to do
    uid    of the object, where it is one object's
    """

    path: str
    kind: Kind
    cause: str
    cure: str = ""
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.cause}" + (f" ({self.cure})" if self.cure else "")


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` read and what it found wrong."""

    path: Path
    shards: int
    objects: int
    gaussians: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def check(path: str | Path) -> list[Problem]:
    """Everything wrong with a build folder, a pack folder, a single PLY, or a folder or zip of them; [] if all is well.

    Raises InputError only when the path is none of these.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".ply":
        return _check_splat(path)
    if (path / "build.json").is_file():
        return _check_build(path)
    if (path / PACK).is_file() or any(path.glob("shard_*.h5")):
        return list(verify(path).problems)
    found = _check_collection(path)
    if found is not None:
        return found
    cause = "is not a splat, a build or a pack" if path.exists() else "no such file or folder"
    raise InputError(path, cause, "name a build, a pack, a .ply, or a folder or zip of them")


def verify(path: str | Path) -> VerifyReport:
    """Read a whole pack: hashes, schema, counts, agreement with the index, finite values.

    Raises nothing for a bad pack: what is wrong is in the report.
    """
    path = Path(path)
    problems: list[Problem] = []
    objects = gaussians = 0
    try:
        info = read_pack(path)
    except InputError as error:
        return VerifyReport(path, 0, 0, 0, (_problem(error),))
    index: Index | None = None
    try:
        index = read_index(path, info)
        problems += _check_index(path / info.index.file, index, info)
    except InputError as error:
        problems.append(_problem(error, "changed" if "hash" in error.cause else "unreadable"))
    for number, entry in enumerate(info.shards):
        file = path / entry.file
        if not file.is_file():
            problems.append(Problem(str(file), "missing", "is missing", "copy the whole folder, or pack again"))
            continue
        if file.stat().st_size != entry.bytes or sha256(file) != entry.sha256:
            cause = "differs from its hash in pack.json"
            problems.append(Problem(str(file), "changed", cause, "copy it again, or pack again"))
            continue
        try:
            shard = Shard(file)
        except InputError as error:
            problems.append(_problem(error))
            continue
        objects, gaussians = objects + len(shard), gaussians + int(shard.offsets[-1])
        if (len(shard), int(shard.offsets[-1])) != (entry.objects, entry.gaussians):
            problems.append(Problem(str(file), "disagrees", "its counts differ from pack.json", "pack again"))
        problems += _check_shard(shard, number, info, index)
    known = {PACK, info.index.file, *(s.file for s in info.shards)}
    for file in sorted(path.iterdir()):
        if file.name not in known and (file.name.startswith(TEMPORARY) or file.suffix == ".h5"):
            problems.append(Problem(str(file), "leftover", "does not belong to the pack", "delete it"))
    return VerifyReport(path, len(info.shards), objects, gaussians, tuple(problems))


def _problem(error: InputError, kind: Kind = "unreadable", uid: str = "") -> Problem:
    return Problem(error.path, kind, error.cause, error.cure, uid)


def _check_index(file: Path, index: Index, info: PackInfo) -> list[Problem]:
    out = []
    twice = [uid for uid, count in Counter(index.uid.tolist()).items() if count > 1]
    if twice:
        out.append(Problem(str(file), "disagrees", f"'{twice[0]}' is listed twice", "pack again", twice[0]))
    if int(index.gaussians.sum()) != info.gaussians or int(index.points.sum()) != info.points:
        out.append(Problem(str(file), "disagrees", "its counts differ from pack.json", "pack again"))
    counts = {split: int((index.split == split).sum()) for split in info.splits}
    if counts != info.splits:
        out.append(Problem(str(file), "disagrees", f"splits are {counts}, pack.json says {info.splits}", "pack again"))
    return out


def _check_shard(shard: Shard, number: int, info: PackInfo, index: Index | None) -> list[Problem]:
    out: list[Problem] = []

    def add(kind: Kind, cause: str, uid: str = "") -> None:
        out.append(Problem(str(shard.path), kind, cause, "pack again", uid))

    if shard.head.class_names != info.class_names or shard.head.part_names != info.part_names:
        add("disagrees", "its class or part names differ from pack.json")
    for i, uid in enumerate(shard.uids):
        rows, points = shard.rows(i), shard.points(i)
        if not np.isfinite(rows).all():
            add("unreadable", f"'{uid}' has {int((~np.isfinite(rows)).any(axis=1).sum())} non-finite Gaussians", uid)
        if not (np.isfinite(points["points"]).all() and np.isfinite(points["point_normals"]).all()):
            add("unreadable", f"'{uid}' has non-finite surface points", uid)
        names = info.part_names.get(shard.categories[i], ())
        parts = points["point_parts"]
        if len(parts) and (parts.min() < -1 or parts.max() >= len(names)):
            add("unreadable", f"'{uid}' has part labels outside its {len(names)} part names", uid)
    if index is not None:
        mine = np.flatnonzero(index.shard == number)
        mine = mine[np.argsort(index.row[mine])]
        columns = {
            "uid": list(shard.uids),
            "category": list(shard.categories),
            "split": list(shard.splits),
            "label": shard.labels.tolist(),
            "row": list(range(len(shard))),
            "start": shard.offsets[:-1].tolist(),
            "stop": shard.offsets[1:].tolist(),
            "degree": shard.degrees.tolist(),
            "points": np.diff(shard.point_offsets).tolist(),
            "sha256": list(shard.sha256),
        }
        for name, values in columns.items():
            if getattr(index, name)[mine].tolist() != values:
                add("disagrees", f"'{name}' differs from {INDEX}")
    return out


def _check_collection(path: Path) -> list[Problem] | None:
    """Every splat of a folder or zip; a zip that is refused does not hide the others. None where there is neither."""
    out: list[Problem] = []
    splats: list[Place] = []
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if file.suffix.lower() == ".zip" and file.is_file() and not file.name.startswith("."):
            try:
                splats += [place for name, place in places(file) if name.lower().endswith(".ply")]
            except InputError as error:
                out.append(_problem(error))
        elif file.suffix == ".ply" and path.is_dir() and not file.name.startswith("."):
            splats.append(file)
    out += [problem for splat in splats for problem in _check_splat(splat)]
    return out if splats or out else None


def _check_splat(path: Place, uid: str = "") -> list[Problem]:
    try:
        gaussians = read_ply(path) if isinstance(path, Path) else read_ply_bytes(path.read_bytes(), path)
    except InputError as error:
        return [_problem(error, uid=uid)]
    zero = int((gaussians.quats.norm(dim=1) == 0).sum())
    if zero:
        cause = f"{zero} of {len(gaussians)} quaternions are zero (read as no rotation)"
        return [Problem(str(path), "unreadable", cause, "write unit quaternions", uid)]
    return []


def _check_build(path: Path) -> list[Problem]:
    """Records one by one, so that one broken record does not hide the others."""
    out: list[Problem] = []
    parts: dict[str, tuple[str, ...]] = {}
    try:
        parts = read_parts(path / "parts.json")
    except InputError as error:
        out.append(_problem(error))
    seen: set[Path] = set()
    for file in files(path / "records", ".json"):
        seen.add(path / "splats" / file.relative_to(path / "records").with_suffix(".ply"))
        try:
            record = read_record(file)
        except InputError as error:
            out.append(_problem(error))
            continue
        uid = file.relative_to(path / "records").with_suffix("").as_posix()
        if record.uid != uid and record.status == "done":
            cause = f"is the record of '{record.uid}'"
            out.append(Problem(str(file), "disagrees", cause, "move it where its uid says", record.uid))
            continue
        if record.status == "failed":
            cause = f"{record.stage}: {record.reason}" if record.stage else record.reason or "no reason given"
            out.append(Problem(str(file), "failed", cause, "mend the mesh and build again", uid))
            continue
        out += _check_object(path, record, len(record.part_names or parts.get(record.category, ())))
    for file in files(path / "splats", ".ply"):
        if file not in seen:
            cure = "run `gsmae repair`, or build again"
            out.append(Problem(str(file), "leftover", "a splat without a record", cure))
    for file in sorted(path.rglob(TEMPORARY + "*")):
        out.append(Problem(str(file), "leftover", "left by a killed writer", "run `gsmae repair`, or build again"))
    if not out:
        try:
            read_build(path)
        except InputError as error:
            out.append(_problem(error))
    return out


def _check_object(path: Path, record: Record, parts: int) -> list[Problem]:
    splat, points = path / "splats" / f"{record.uid}.ply", path / "points" / f"{record.uid}.npz"
    cure = "delete its record and build again"
    if not splat.is_file():
        return [Problem(str(splat), "missing", "its record says that it is done", cure, record.uid)]
    if record.sha256 and sha256(splat) != record.sha256:
        return [Problem(str(splat), "changed", "differs from the hash in its record", cure, record.uid)]
    out = _check_splat(splat, record.uid)
    if not out and record.gaussians is not None and len(read_ply(splat)) != record.gaussians:
        cause = f"has {len(read_ply(splat))} Gaussians, its record says {record.gaussians}"
        out.append(Problem(str(splat), "disagrees", cause, cure, record.uid))
    if points.is_file():
        try:
            read_points(points, parts)
        except InputError as error:
            out.append(_problem(error, uid=record.uid))
    return out

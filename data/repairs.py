"""Mending builds and packs: whatever can be made again from other files here is, the rest is told."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsmae.errors import InputError
from gsmae.files import sweep, write_json
from gsmae.locks import only_writer

from .checks import Problem, check, verify
from .manifest import SCHEMA, SPLITS, files, read_head, read_parts, read_record, record_of
from .packs import PACK, PackInfo, index_row, read_index, read_pack, write_index
from .shardfile import Shard


@dataclass(frozen=True)
class Mended:
    """One file that was made again or removed, and what that means."""

    path: str
    what: str


@dataclass(frozen=True)
class RepairReport:
    """What `repair` did, and what it could not: each with its cause and cure.

    Objects that a build gave up on are no damage and not in `left`.
    """

    path: Path
    mended: tuple[Mended, ...]
    left: tuple[Problem, ...]


def repair(path: str | Path) -> RepairReport:
    """Mend a build or a pack; running it again, or on a whole one, changes nothing.

    A build: a splat without a readable record gets one made from the file (its quality is unknown, and the next `gsmae
    build` fits the object again); parts.json is written from build.json. A pack: the index is written again from whole
    shards. Both: what killed writers left is removed. No splat or shard is ever changed or deleted.

    Raises InputError when the path is neither, cannot be written, or another process is writing there.
    """
    path = Path(path)
    act: Callable[[Path], list[Mended]]
    if (path / "build.json").is_file():
        kind, act = "build", _repair_build
    elif (path / PACK).is_file() or any(path.glob("shard_*.h5")):
        kind, act = "pack", _repair_pack
    else:
        cause = "is not a build or a pack" if path.exists() else "no such folder"
        raise InputError(path, cause, "name a folder that `gsmae build` or `gsmae pack` wrote")
    try:
        with only_writer(path, kind, keep=kind == "build"):
            swept = [Mended(str(file), "removed: left by a killed writer") for file in sweep(path)]
            mended = act(path)
            left = tuple(problem for problem in check(path) if problem.kind != "failed")
    except OSError as error:
        cause = f"reading or writing failed: {error.strerror or error}"
        raise InputError(error.filename or path, cause, "see that it is writable and has room") from error
    return RepairReport(path, (*swept, *mended), left)


def _repair_build(path: Path) -> list[Mended]:
    try:
        head = read_head(path)
    except InputError:  # of another schema or frame
        return []
    out = _repair_parts(path, head)
    try:
        parts = read_parts(path / "parts.json")
    except InputError:
        parts = {}
    for splat in files(path / "splats", ".ply"):
        uid = splat.relative_to(path / "splats").with_suffix("").as_posix()
        file = path / "records" / f"{uid}.json"
        if file.exists() and _readable(file):
            continue
        try:
            record = record_of(splat, uid, _split(head, uid))
        except InputError:  # `check` says what is wrong with the splat
            continue
        names = parts.get(record.category, ()) if (path / "points" / f"{uid}.npz").is_file() else ()
        values = record.model_copy(update={"part_names": names}).model_dump(mode="json")
        write_json(file, {"schema": SCHEMA, **values})
        told = "written from the splat: PSNR and mesh are unknown, and `gsmae build` would fit the object again"
        out.append(Mended(str(file), told + ("" if record.split else "; its split is unknown, too")))
    return out


def _repair_parts(path: Path, head: dict[str, Any]) -> list[Mended]:
    """parts.json from the patterns in build.json, where it is missing or broken."""
    patterns = head.get("part_patterns")
    if not isinstance(patterns, dict) or not patterns:
        return []
    file = path / "parts.json"
    try:
        if file.exists() and read_parts(file):
            return []
    except InputError:
        pass
    write_json(file, {category: list(names) for category, names in sorted(patterns.items())})
    return [Mended(str(file), "written from build.json")]


def _readable(file: Path) -> bool:
    try:
        read_record(file)
    except InputError:
        return False
    return True


def _split(head: dict[str, Any], uid: str) -> str:
    """The split that an object's place in its collection says, while that is still there; else ""."""
    category, name = uid.split("/", 1)
    home = Path(str(head.get("root", ""))) / category
    found = [split for split in SPLITS if any((home / split).glob(glob.escape(name) + ".*"))]
    return found[0] if len(found) == 1 else ""


def _repair_pack(path: Path) -> list[Mended]:
    try:
        info = read_pack(path)
    except InputError:
        return []
    try:
        read_index(path, info)
        return []
    except InputError:
        pass
    file = path / info.index.file
    broken = [
        p for p in verify(path).problems if p.kind in ("missing", "changed", "unreadable") and p.path != str(file)
    ]
    rows = [] if broken else _rows(path, info)
    if not rows:  # without every shard there would be an index of some other pack
        return []
    index = write_index(file, rows)
    if index["sha256"] == info.index.sha256:
        return [Mended(str(file), "written from the shards, byte for byte as it was")]
    write_json(path / PACK, {**info.model_dump(mode="json", by_alias=True), "index": index})
    told = "written from the shards, which know no PSNR; delete pack.json and pack the builds again to have it back"
    return [Mended(str(file), told), Mended(str(path / PACK), "notes the new index")]


def _rows(path: Path, info: PackInfo) -> list[dict]:
    """The index's rows as the shards say; [] where they do not add up to what pack.json says."""
    rows = []
    for number, entry in enumerate(info.shards):
        shard = Shard(path / entry.file)
        rows += [index_row(shard, number, i, _origin(info, shard.splits[i]), None) for i in range(len(shard))]
    splits = {split: sum(row["split"] == split for row in rows) for split in info.splits}
    totals = (len(rows), sum(r["gaussians"] for r in rows), sum(r["points"] for r in rows), splits)
    return rows if totals == (info.objects, info.gaussians, info.points, info.splits) else []


def _origin(info: PackInfo, split: str) -> str:
    """How an object came by its split, where the counts leave no doubt: objects are carved for val alone, and only
    where no official one is in it."""
    rule = info.split_rule
    if rule.assigned:
        return "" if rule.official or rule.carved else "assigned"
    return "carved" if rule.carved and split == "val" else "official"

"""What a pack will hold, decided before a splat is read: objects, order, labels, splits, hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gsmae import __version__
from gsmae.errors import InputError

from .archives import Place
from .manifest import Build, Record
from .shardfile import TEXT
from .splits import Assignment, Leak, assign, leaks
from .surface import Points


@dataclass(frozen=True)
class Item:
    """One object of the plan."""

    record: Record
    split: str
    source: str
    label: int
    splat: Place
    sha256: str
    points: Points | None
    points_sha256: str
    dropped: int = 0


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes, known before a splat is read."""

    items: tuple[Item, ...]
    class_names: tuple[str, ...]
    part_names: dict[str, tuple[str, ...]]
    config_hash: str
    assignment: Assignment
    failed: tuple[Record, ...]
    below: int
    leaks: tuple[Leak, ...]
    inputs: str

    @property
    def dropped(self) -> dict[str, int]:
        """uid -> Gaussians that are left out, for the objects that lose some."""
        return {item.record.uid: item.dropped for item in self.items if item.dropped}


def plan_pack(builds: list[Build], options: dict, dropped: dict[str, int]) -> Plan:
    """Decide objects, order, splits, labels and hashes, and refuse what cannot be packed before any work.

    dropped  uid -> Gaussians to leave out of it, see `data.usable`
    """
    home: dict[str, Build] = {}
    records: dict[str, Record] = {}
    failed: dict[str, Record] = {}
    below = 0
    for build in builds:
        for record in build.done:
            if record.uid in records:
                first, second = home[record.uid].splat(records[record.uid]), build.splat(record)
                cause = f"object '{record.uid}' is also {first}"
                raise InputError(str(second), cause, "rename one of the two, or pack the builds apart")
            home[record.uid], records[record.uid] = build, record
        failed |= {record.uid: record for record in build.failed}
    failed = {uid: record for uid, record in failed.items() if uid not in records}
    if options["min_psnr"] is not None:
        good = {u: r for u, r in records.items() if r.psnr is not None and r.psnr >= options["min_psnr"]}
        below, records = len(records) - len(good), good
    if not records:
        where = builds[0].path if builds else "pack"
        cause = f"no finished object to pack ({len(failed)} failed, {below} below min_psnr)"
        raise InputError(where, cause, "see the reasons with `gsmae check`")
    named = _part_names(builds, [(home[uid], record) for uid, record in records.items()])
    order = [records[uid] for uid in sorted(records)]
    assignment = assign(order, seed=options["seed"], val_fraction=options["val_fraction"])
    class_names = tuple(sorted({r.category for r in order}))
    part_names = {category: named[category] for category in class_names if named.get(category)}
    items = []
    for record in order:
        build = home[record.uid]
        splat, points = build.splat(record), build.surface(record)
        if not splat.is_file():
            cause = f"is missing, but its record says '{record.status}'"
            raise InputError(str(splat), cause, "run `gsmae build` again")
        if any(len(text.encode()) > TEXT for text in (record.uid, record.category)):
            raise InputError(str(splat), f"its uid is longer than {TEXT} bytes", "rename it")
        items.append(
            Item(
                record,
                assignment.splits[record.uid],
                assignment.sources[record.uid],
                class_names.index(record.category),
                splat,
                record.sha256 or hashlib.sha256(splat.read_bytes()).hexdigest(),
                points,
                points.digest() if points is not None else "",
                dropped.get(record.uid, 0),
            )
        )
    hashes = sorted({b.config_hash for b in builds})
    config_hash = hashes[0] if len(hashes) == 1 else _hash(hashes)[:12]
    inputs = _hash([options, class_names, part_names, config_hash, [_line(i) for i in items], sorted(failed), below])
    found = tuple(leaks(order, assignment.splits))
    left = tuple(failed[uid] for uid in sorted(failed))
    return Plan(tuple(items), class_names, part_names, config_hash, assignment, left, below, found, inputs)


def _part_names(builds: Iterable[Build], objects: Iterable[tuple[Build, Record]]) -> dict[str, tuple[str, ...]]:
    """One list of parts for each category; two that disagree are refused."""
    names: dict[str, tuple[str, ...]] = {}
    told: dict[str, Path] = {}
    claims = [(b.path / "parts.json", category, parts) for b in builds for category, parts in b.parts.items()]
    claims += [(b.path, record.category, record.part_names) for b, record in objects if record.part_names]
    for path, category, parts in claims:
        if names.setdefault(category, parts) != parts:
            cause = f"parts of '{category}' are {list(parts)}, but {list(names[category])} in {told[category]}"
            raise InputError(path, cause, "pack the builds apart, or build them with one parts file")
        told.setdefault(category, path)
    return {category: names[category] for category in sorted(names)}


def _line(item: Item) -> list:
    r = item.record
    line = [r.uid, r.category, item.split, item.source, item.sha256, item.points_sha256, r.psnr]
    return [*line, item.dropped] if item.dropped else line


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def shard_inputs(plan: Plan, items: Sequence[Item], options: dict) -> str:
    kept = {k: options[k] for k in ("seed", "quantize")}
    names = [plan.class_names, plan.part_names, plan.config_hash, __version__]
    return _hash([kept, names, [_line(item) for item in items]])

"""What is left of a collection, and what that will take, from what trials have taken."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gsmae.errors import InputError
from gsmae.files import read_json

from ..sources import SOURCES, detect
from .survey import Cost, costs, current


@dataclass(frozen=True)
class Estimate:
    """What the objects that are left take if machines of one type do them all.

    hours     of one worker: a core, or a slot of a GPU
    finish    seconds since 1970 when all is done if it begins now
    price     of all hours
    """

    cost: Cost
    hours: float
    wall_hours: float
    finish: float
    price: float


@dataclass(frozen=True)
class Plan:
    """A collection, what is built of it, and what the rest takes.

    bytes_each, bytes_left   of the files of one object on average, and of all that are left
    bytes_free               on the disk that they go to
    """

    path: str
    objects: int
    done: int
    failed: int
    left: int
    bytes_each: int
    bytes_left: int
    bytes_free: int
    estimates: tuple[Estimate, ...]


def plan(path: str | Path, like: Sequence[Path] = (), *, workers: int = 1, price: float = 0.0) -> Plan:
    """Plan a collection of meshes, or the rest of a build.

    path     a collection, or a folder that `gsmae build` wrote
    like     builds, of the same profile, whose times count; the build's own count anyway
    workers  objects side by side, on all machines together
    price    of one worker's hour
    Raises InputError where it is neither, or the collection of the build is not where it was.
    """
    path = Path(path)
    head = read_json(path / "build.json") if (path / "build.json").is_file() else {}
    root = Path(head["root"]) if head else path
    items = {item.uid for item in SOURCES[head["source"] if head else detect(root)](root)}
    here = {entry["uid"]: entry for entry in current(path)} if head else {}
    done = [uid for uid in items if uid in here and here[uid]["status"] == "done"]
    failed = [uid for uid in items if uid in here and here[uid]["status"] == "failed"]
    left = len(items) - len(done) - len(failed)
    trials = [path] if head else []
    for other in like:
        if not (other / "build.json").is_file():
            raise InputError(other, "is not a build", "name a folder that `gsmae build` wrote")
        trials.append(other)
    made = [(trial, e) for trial in trials for e in current(trial) if e["status"] == "done"]
    sizes = [_bytes(trial, e["uid"]) for trial, e in made[:: max(1, len(made) // 200)]]  # 200 tell the mean
    each = round(sum(sizes) / len(sizes)) if sizes else 0
    estimates = []
    for cost in costs([e for _, e in made]):
        hours = left * cost.seconds / 3600
        wall = hours / max(1, workers)
        estimates.append(Estimate(cost, hours, wall, time.time() + wall * 3600, hours * price))
    free = shutil.disk_usage(path).free
    return Plan(str(path), len(items), len(done), len(failed), left, each, each * left, free, tuple(estimates))


def _bytes(build: Path, uid: str) -> int:
    """Of all files of one object."""
    files = (("splats", ".ply"), ("points", ".npz"), ("views", ".png"), ("records", ".json"))
    paths = [build / folder / f"{uid}{suffix}" for folder, suffix in files]
    return sum(path.stat().st_size for path in paths if path.exists())

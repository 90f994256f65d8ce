"""How far a build is, and what its objects cost: read from another shell, while it runs or after it was killed."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsmae.errors import InputError
from gsmae.files import read_json

from . import ledgers, notes
from .records import MAX_TRIES, fault


@dataclass(frozen=True)
class Cost:
    """What the finished objects of one type of machine took.

    objects  that these numbers come from
    seconds  of one worker per object: mean, median and 90th percentile
    stages   mean seconds by stage
    memory   most bytes that a worker held
    """

    machine: str
    objects: int
    seconds: float
    median: float
    slow: float
    stages: dict[str, float]
    memory: int


@dataclass(frozen=True)
class Survey:
    """A build folder, counted.

    done, failed  objects with a record
    given_up      failed ones that have been tried MAX_TRIES times
    failures      by kind, stage and reason, the commonest first
    costs         by machine type, the commonest first
    at_work       (object, stage, seconds) of each worker that is at it now
    state         "building", "stopped" (killed), or "idle"; "unknown" where the builder is on another machine
    rate          objects per hour over the last half hour of work
    objects       of the running build, 0 where none says
    """

    path: str
    done: int
    failed: int
    given_up: int
    failures: dict[str, int]
    costs: tuple[Cost, ...]
    gaussians: int
    psnr: float
    at_work: tuple[tuple[str, str, float], ...]
    state: str
    engine: str
    rate: float
    objects: int


def survey(path: str | Path) -> Survey:
    """Count a build; reads ledgers, and of the records only those that no ledger tells the truth about.

    Raises InputError where the folder is no build.
    """
    path = Path(path)
    if not (path / "build.json").is_file():
        raise InputError(path, "is not a build" if path.exists() else "no such folder", "name what `gsmae build` wrote")
    entries = list(current(path))
    done = [e for e in entries if e["status"] == "done"]
    failed = [e for e in entries if e["status"] == "failed"]
    said = notes.announced(path)
    now = time.time()
    ends = {e["uid"]: e.get("finished") or 0.0 for e in entries}
    working = [
        note
        for who, note in notes.read(path).items()
        if ledgers.lives(who) is not False and ends.get(note["uid"], 0.0) < note["since"]  # else it is done with it
    ]
    quality = [e["psnr"] for e in done if e.get("psnr") is not None]
    return Survey(
        path=str(path),
        done=len(done),
        failed=len(failed),
        given_up=sum(e.get("attempts", 0) >= MAX_TRIES for e in failed),
        failures=dict(Counter(fault(e) for e in failed).most_common()),
        costs=costs(done),
        gaussians=sum(e["gaussians"] or 0 for e in done),
        psnr=round(statistics.fmean(quality), 2) if quality else 0.0,
        at_work=tuple((n["uid"], n["stage"], round(now - n["since"], 1)) for n in working),
        state=_state(said),
        engine=str(said.get("engine", "")),
        rate=_rate(entries),
        objects=int(said.get("objects", 0)),
    )


def current(path: Path) -> Iterator[dict[str, Any]]:
    """One entry per record: the ledger's line where it is of that very record, else a line made from the record."""
    lines = {(entry["uid"], entry["record_mtime_ns"]): entry for entry in ledgers.read(path)}
    for uid, file in records(path / "records"):
        mtime = file.stat().st_mtime_ns
        entry = lines.get((uid, mtime))
        if entry is None:
            try:
                entry = ledgers.line(read_json(file.path), mtime)
            except (InputError, KeyError, TypeError, AttributeError):  # `gsmae check` says what is wrong with it
                continue
        yield entry


def records(folder: Path) -> Iterator[tuple[str, os.DirEntry]]:
    """(uid, file) of every record, in no order."""
    stack = [str(folder)] if folder.is_dir() else []
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif entry.name.endswith(".json") and not entry.name.startswith("."):
                    yield os.path.relpath(entry.path, folder).removesuffix(".json"), entry


def costs(done: list[dict[str, Any]]) -> tuple[Cost, ...]:
    """What objects took, by type of machine."""
    found = []
    for machine, _ in Counter(e.get("machine") or "unknown" for e in done).most_common():
        ours = [e for e in done if (e.get("machine") or "unknown") == machine]
        seconds = sorted(e["seconds"] for e in ours)
        staged = [e["stages"] for e in ours if e.get("stages")]
        names = list(dict.fromkeys(name for stages in staged for name in stages))
        found.append(
            Cost(
                machine,
                len(ours),
                round(statistics.fmean(seconds), 2),
                round(statistics.median(seconds), 2),
                round(seconds[int(0.9 * (len(seconds) - 1))], 2),
                {name: round(statistics.fmean(s.get(name, 0.0) for s in staged), 2) for name in names},
                max(e.get("peak_memory") or 0 for e in ours),
            )
        )
    return tuple(found)


def _state(said: dict[str, Any]) -> str:
    if not said:
        return "idle"
    alive = ledgers.lives(str(said.get("builder", "--")))
    return {True: "building", False: "stopped", None: "unknown"}[alive]


def _rate(entries: list[dict[str, Any]]) -> float:
    """Objects per hour, over the half hour before the last one ended."""
    ends = sorted(e["finished"] for e in entries if e.get("finished"))
    recent = [t for t in ends if t >= ends[-1] - 1800] if ends else []
    span = recent[-1] - recent[0] if len(recent) > 1 else 0
    return round((len(recent) - 1) / span * 3600, 1) if span > 0 else 0.0

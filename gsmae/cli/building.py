"""plan, status, retry, gc: around a build that is large, or far away, or was killed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from .verb import Arguments, Outcome, parse, plain


class PlanArguments(Arguments):
    """What is left of a collection or a build, and the hours, the disk and the money that it takes.

    Times come from builds: begin with `gsmae build --limit 100`, then plan the rest.
    """

    path: tyro.conf.Positional[Path]
    """a collection of meshes, or a folder written by `gsmae build`"""
    like: tuple[Path, ...] = ()
    """builds of the same profile whose times are to be used; those of PATH itself are"""
    workers: Annotated[int, Field(ge=1)] = 1
    """objects side by side, on all machines together"""
    price_per_hour: Annotated[float, Field(ge=0)] = 0
    """of one worker: a core, or its share of a GPU"""


class StatusArguments(Arguments):
    """How far a build is: from any shell, while it runs or after it was killed. Changes nothing."""

    path: tyro.conf.Positional[Path]
    """a folder written by `gsmae build`"""


class GcArguments(Arguments):
    """Remove what killed builds left: temporaries, files of objects without a record, notes and logs of tasks."""

    path: tyro.conf.Positional[Path]
    """a folder written by `gsmae build`; nobody may be building in it"""


def plan(argv: list[str]) -> Outcome:
    """gsmae plan"""
    from preprocessing.building.plans import plan as plan_build

    a = parse(PlanArguments, "plan", argv)
    found = plan_build(a.path, a.like, workers=a.workers, price=a.price_per_hour)
    lines = [f"{found.objects:,} objects: {found.done:,} done, {found.failed:,} failed, {found.left:,} left"]
    for e in found.estimates:
        took = f"{e.cost.seconds:.1f} s an object (median {e.cost.median:.1f}, 90 % below {e.cost.slow:.1f})"
        lines.append(f"{e.cost.machine}: {took}, of {e.cost.objects:,} objects")
        lines.append("  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in e.cost.stages.items()))
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.finish))
        cost = f", {e.price:,.2f} to pay" if a.price_per_hour else ""
        lines.append(f"  left: {e.hours:,.1f} worker-hours; with {a.workers} at a time until {when}{cost}")
    lines = [line for line in lines if line.strip()]
    if found.estimates:
        need, free = found.bytes_left / 1e9, found.bytes_free / 1e9
        lines.append(f"disk: {found.bytes_each / 1e6:.2f} MB an object, {need:.1f} GB for the rest, {free:.1f} GB free")
        lines += ["  that is not enough"] if need > free else []
    else:
        lines.append("no times to go by: run `gsmae build --limit 100`, then plan again, or name a build with --like")
    return Outcome(plain(found), 0, a.as_json, lines)


def status(argv: list[str]) -> Outcome:
    """gsmae status"""
    from preprocessing.building.survey import survey

    a = parse(StatusArguments, "status", argv)
    s = survey(a.path)
    words = {
        "building": f"being built ({s.engine})",
        "stopped": f"its builder ({s.engine}) was killed: the same command goes on",
        "idle": "nobody is building",
        "unknown": f"its builder ({s.engine}) is, or was, on another machine",
    }
    total = f" of {s.objects:,}" if s.objects else ""
    lines = [f"{s.path}: {words[s.state]}"]
    lines.append(f"{s.done:,} done, {s.failed:,} failed{total}; {s.gaussians:,} Gaussians, {s.psnr:.2f} dB")
    left = s.objects - s.done - s.failed
    if s.rate:
        until = f"; {left:,} left, about {left / s.rate:,.1f} h" if left > 0 else ""
        lines.append(f"{s.rate:,.0f} objects an hour, lately{until}")
    lines += [
        f"{c.machine}: {c.seconds:.1f} s an object (median {c.median:.1f}, 90 % below {c.slow:.1f})"
        + (f", at most {c.memory / 2**30:.2f} GB a worker" if c.memory else "")
        for c in s.costs
    ]
    lines += [f"at work: {uid}, {stage} ({seconds:.0f} s)" for uid, stage, seconds in s.at_work]
    lines += [f"failed ({count}): {reason}" for reason, count in list(s.failures.items())[:20]]
    lines += [f"{s.given_up} of them three times"] if s.given_up else []
    return Outcome(plain(s), 0, a.as_json, lines)


def retry(argv: list[str]) -> Outcome:
    """gsmae retry"""
    from preprocessing.command import retry as retry_command

    return retry_command(argv)


def gc(argv: list[str]) -> Outcome:
    """gsmae gc"""
    from preprocessing.building.upkeep import gc as collect

    a = parse(GcArguments, "gc", argv)
    report = collect(a.path)
    lines = [f"removed: {path}" for path in report.orphans]
    lines.append(
        f"{a.path}: {report.temporaries} temporaries and {len(report.orphans)} orphans removed; "
        f"{report.ledger_lines:,} lines in the ledger"
    )
    return Outcome(plain(report), 0, a.as_json, lines)

"""audit, repair: whether a collection is what it claims to be, and mending what can be mended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from gsmae.errors import GsmaeError

from .verb import Arguments, Outcome, parse, plain


class AuditArguments(Arguments):
    """Look for objects in two splits, ids in two categories, missing objects, equal meshes and equal splats.

    Nothing is changed. Exit code 4 when something is found.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")]
    """builds, packs, folders or zips of splats, or lists such as train.txt and test.txt; several are taken as one"""
    lists: Annotated[tuple[Path, ...], tyro.conf.arg(name="list")] = ()
    """lists of what should be there; modelnet40 and modelnet10 are known"""
    show: int = 5
    """findings of each kind to print; --json prints all"""


def audit(argv: list[str]) -> Outcome:
    """gsmae audit"""
    from data.audit import KINDS, overlaps
    from data.audit import audit as audit_paths

    a = parse(AuditArguments, "audit", argv)
    if not a.paths:
        raise GsmaeError("nothing to audit: name a build, a pack, a folder or zip of splats, or lists")
    report = audit_paths(a.paths, a.lists, progress=True)
    splits = ", ".join(f"{split} {count:,}" for split, count in report.splits.items() if count) or "no splits"
    lines = [f"{report.objects:,} objects, {report.ids:,} ids, {report.categories} categories; {splits}"]
    lines += [f"compared with {report.standard}"] if report.standard else []
    for kind, words in KINDS.items():
        found = [f for f in report.findings if f.kind == kind]
        if found:
            lines.append(f"{len(found):,} {words}")
            lines += [f"  {line}" for line in overlaps(report)] if kind == "splits" else []
            lines += [
                f"  {f.name}: {f.cause}" + (_objects(f.uids) if kind in ("meshes", "splats") else "")
                for f in found[: a.show]
            ]
            lines += [f"  and {len(found) - a.show:,} more"] if len(found) > a.show else []
    lines += [] if report.findings else ["nothing found"]
    return Outcome(plain(report), 0 if report.ok else 4, a.as_json, lines)


class RepairArguments(Arguments):
    """Mend what can be mended without guessing: records from splats, indices from shards, leftovers of killed writers.

    What cannot be mended is listed, and the exit code is 4. Objects are never deleted.
    """

    path: tyro.conf.Positional[Path]
    """a build or a pack"""


def repair(argv: list[str]) -> Outcome:
    """gsmae repair"""
    from data.repairs import repair as repair_path

    a = parse(RepairArguments, "repair", argv)
    report = repair_path(a.path)
    lines = [f"mended: {done.path}: {done.what}" for done in report.mended]
    lines += [f"not mended: {problem}" for problem in report.left]
    lines += [] if lines else [f"{a.path}: nothing to mend"]
    return Outcome(plain(report), 4 if report.left else 0, a.as_json, lines)


def _objects(uids: tuple[str, ...]) -> str:
    return f" ({', '.join(uids[:4])}{', ...' if len(uids) > 4 else ''})"

"""What is done to a build folder between builds: failed objects tried again, and what kills left removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gsmae.config import from_mapping
from gsmae.errors import InputError
from gsmae.files import read_json, sweep, write_aside
from gsmae.locks import only_writer

from ..build import BuildReport, build
from ..engines import Resources
from ..profiles import BuildConfig
from . import ledgers, notes
from .limits import ObjectLimits
from .records import path_of
from .survey import current

# folder -> suffix of what belongs to an object; views are kept of failed ones too, to see why they were rejected
BELONGINGS = {"splats": ".ply", "points": ".npz", "views": ".png", "quarantine": ".txt"}


@dataclass(frozen=True)
class GcReport:
    """What `gc` removed, and whether it wrote the ledgers again."""

    path: str
    temporaries: int
    orphans: tuple[str, ...]
    notes: int
    ledger_lines: int


def retry(
    out: str | Path,
    failed: str = "",
    *,
    anyway: bool = False,
    engine: str = "local",
    resources: Resources | None = None,
    limits: ObjectLimits | None = None,
    **more,
) -> BuildReport:
    """Try the failed objects of a build again whose kind, stage or reason match the expression `failed`.

    anyway  also those that have been tried MAX_TRIES times
    The configuration is the one in build.json. Raises InputError where there is none.
    """
    out = Path(out)
    head = _head(out)
    config = from_mapping(BuildConfig, head["config"], out / "build.json")
    return build(
        head["root"], out, config, source=head["source"], parts=head["part_patterns"], seed=head["seed"], retry=True,
        failed=failed, anyway=anyway, missing=False, engine=engine, resources=resources, limits=limits, **more,
    )  # fmt: skip


def gc(out: str | Path) -> GcReport:
    """Remove what killed builds left: temporaries, notes, logs of tasks, and files of objects without a record.

    The ledgers are written again, one line per record. Raises InputError where the folder is no build, is being built,
    or has lost its records: `gsmae repair` writes those again from the splats.
    """
    out = Path(out)
    _head(out)
    try:
        with only_writer(out, "build", keep=True):
            noted = len(list((out / notes.FOLDER).glob("*.json")))
            notes.leave(out)  # before anything else: workers that a killed build left stop at their next stage
            splats = sum(1 for _ in (out / "splats").rglob("*.ply"))
            orphans = list(_orphans(out))
            lost = sum(path.suffix == ".ply" for path in orphans)
            if lost > 10 and lost > splats / 2:
                raise InputError(out, f"{lost} of {splats} splats have no record", "run `gsmae repair` before this")
            swept = sweep(out)
            for path in orphans:
                path.unlink(missing_ok=True)
            shutil.rmtree(out / "slurm", ignore_errors=True)
            lines = _rewrite_ledgers(out)
    except OSError as error:
        raise InputError(error.filename or out, f"cannot be written: {error.strerror or error}") from None
    return GcReport(str(out), len(swept), tuple(str(path) for path in orphans), noted, lines)


def _head(out: Path) -> dict:
    if not (out / "build.json").is_file():
        raise InputError(out, "is not a build" if out.exists() else "no such folder", "name what `gsmae build` wrote")
    return read_json(out / "build.json")


def _orphans(out: Path) -> Iterator[Path]:
    """Files of objects that have no record, and splats and points of those that failed."""
    for folder, suffix in BELONGINGS.items():
        for path in sorted((out / folder).rglob(f"*{suffix}")):
            if path.name.startswith("."):
                continue
            record = path_of(out, path.relative_to(out / folder).as_posix().removesuffix(suffix))
            unused = {"splats": True, "points": True, "quarantine": False}.get(folder)  # of one that failed
            if not record.exists() or (unused is not None and _failed(record) == unused):
                yield path


def _failed(record: Path) -> bool:
    try:
        return read_json(record)["status"] == "failed"
    except (InputError, KeyError, TypeError):
        return False


def _rewrite_ledgers(out: Path) -> int:
    """One ledger with one line per record in place of all of them."""
    entries = sorted(current(out), key=lambda entry: entry["uid"])
    old = list((out / ledgers.FOLDER).glob("*.jsonl"))
    if not entries and not old:
        return 0
    whole = out / ledgers.FOLDER / "whole.jsonl"
    with write_aside(whole) as path:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    for path in old:
        if path != whole:
            path.unlink()
    return len(entries)

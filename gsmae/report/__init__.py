"""Pages from what lies on disk: one self-contained HTML file about builds, packs and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from gsmae import __version__
from gsmae.errors import InputError
from gsmae.files import write_aside

from .builds import read_build
from .folders import kind_of
from .packs import read_pack
from .pages import render_page
from .runs import read_run

__all__ = ["ReportSummary", "report"]

READERS = {"build": read_build, "pack": read_pack, "run": read_run}


@dataclass(frozen=True)
class ReportSummary:
    """What went into a page. `problems` counts what could not be read and was left out; the page lists it."""

    out: str
    builds: int
    packs: int
    runs: int
    objects: int
    failed: int
    pictures: int
    problems: int
    bytes: int


def report(folders: Sequence[str | Path], out: str | Path, *, note: str = "", most: int = 60) -> ReportSummary:
    """Write one HTML page, without any reference to the outside, about folders of any of the three kinds.

    folders  as written by `gsmae build`, `gsmae pack`, or a training verb; in the order of the page
    out      the page, written aside and renamed
    note     a sentence for the reader, shown at the top
    most     pictures per sheet; a larger build shows its worst objects and a random sample of the others
    Raises InputError for a folder that is none of the three. Whatever a folder lacks is left out of the page.
    """
    if not folders:
        raise InputError(out, "a page about no folder", "name at least one build, pack or run")
    if most < 1:
        raise InputError("--most", f"{most} pictures per sheet", "at least 1")
    out = Path(out)
    if out.is_dir():
        raise InputError(out, "is a folder", "name the page, such as report.html")
    named = [(kind_of(folder), Path(folder)) for folder in folders]
    sections = [READERS[kind](folder, most) for kind, folder in named]
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    html = render_page(sections, note=note, made=f"{now}, gsmae {__version__}")
    try:
        with write_aside(out) as temporary:
            temporary.write_bytes(html.encode("utf-8", errors="replace"))  # JSON may hold half surrogate pairs
    except OSError as error:
        raise InputError(out, f"cannot be written: {error.strerror}") from None
    kinds = [kind for kind, _ in named]
    return ReportSummary(
        out=str(out),
        builds=kinds.count("build"),
        packs=kinds.count("pack"),
        runs=kinds.count("run"),
        objects=sum(s.objects for s in sections),
        failed=sum(s.failed for s in sections),
        pictures=sum(s.pictures for s in sections),
        problems=sum(len(s.problems) for s in sections),
        bytes=out.stat().st_size,
    )

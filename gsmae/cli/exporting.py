"""export, stats: splats for other programs, and numbers about them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from gsmae.errors import InputError
from gsmae.files import write_aside, write_json

from .verb import Arguments, Flag, Outcome, parse, plain


class ExportArguments(Arguments):
    """Write splats for viewers and other programs. Exit code 4 when an object could not be read."""

    path: tyro.conf.Positional[Path]
    """a 3DGS .ply, a folder written by `gsmae build` or `gsmae pack`, or a folder or zip of released splats"""
    out: Path
    """folder for OUT/CATEGORY/NAME.*, or OUT/SPLIT-000000.tar for wds"""
    format: Literal["ply", "ply-sh3", "splat", "spz", "sog", "glb", "wds"]
    """ply; ply-sh3 (padded with zeros to SH degree 3, which some viewers insist on); splat, spz, sog (compact, lossy,
    need gsmae[formats]); glb (glTF with KHR_gaussian_splatting); wds (WebDataset shards of .ply and .json)"""
    split: Literal["all", "train", "val", "test"] = "all"
    """only this split"""
    classes: tuple[str, ...] = ()
    """only these classes; none given: all"""
    limit: int = 0
    """at most so many objects, evenly spread over the classes; 0: all"""
    upright: Flag = False
    """turn splats from z-up to the y-down that most viewers expect of ply, splat, spz and sog (a glb always stands)"""
    measure: int = 0
    """read so many files back and print the PSNR of their pictures against the originals'"""
    shard: int = 1000
    """objects per shard of wds"""


def export(argv: list[str]) -> Outcome:
    """gsmae export"""
    from data.exports import export as export_splats

    a = parse(ExportArguments, "export", argv)
    _at_least("--limit", a.limit, 0)
    _at_least("--measure", a.measure, 0)
    _at_least("--shard", a.shard, 1)
    made = export_splats(
        a.path, a.out, a.format, split=None if a.split == "all" else a.split, classes=a.classes or None,
        limit=a.limit or None, upright=a.upright, measure=a.measure, per_shard=a.shard, progress=True,
    )  # fmt: skip
    each = f", {made.bytes / made.gaussians:.1f} bytes a Gaussian" if made.gaussians else ""
    lines = [f"{made.out}: {made.objects:,} objects in {made.files:,} files, {made.bytes / 1e6:.1f} MB{each}"]
    if made.psnr:
        values = sorted(made.psnr.values())
        middle = f"mean {sum(values) / len(values):.2f} dB, worst {values[0]:.2f} dB"
        lines.append(f"pictures of {len(values)} files read back against the originals': {middle}")
    lines += [f"left out: {reason}" for reason in made.failed.values()]
    return Outcome(plain(made), 4 if made.failed else 0, a.as_json, lines)


class StatsArguments(Arguments):
    """Count and measure splats class by class, and compare where their centres lie with uniform samples of the meshes.
    Exit code 4 when an object could not be read."""

    path: tyro.conf.Positional[Path]
    """a folder written by `gsmae build` or `gsmae pack`, a folder or zip of released splats, or a 3DGS .ply"""
    out: Path | None = None
    """folder for statistics.json, statistics.csv and, where there are surface samples, centroids.csv, .png and .svg"""
    split: Literal["all", "train", "val", "test"] = "all"
    """only this split"""
    classes: tuple[str, ...] = ()
    """only these classes; none given: all"""
    limit: int = 0
    """at most so many objects, evenly spread over the classes; 0: all"""
    compare: int = 200
    """at most so many objects for the comparison with the surface; 0: none"""
    radius: float = 1.0
    """of the coverage, in mean distances between neighbouring surface samples"""
    seed: int = 0
    """of the points that are compared"""


def stats(argv: list[str]) -> Outcome:
    """gsmae stats"""
    from data.centroids import as_table, centroids, summary
    from data.centroids import as_text as centroids_text
    from data.statistics import as_csv, as_text, rows, statistics

    a = parse(StatsArguments, "stats", argv)
    _at_least("--limit", a.limit, 0)
    _at_least("--compare", a.compare, 0)
    if not 0 < a.radius < float("inf"):
        raise InputError("--radius", f"{a.radius:g} is not a positive number")
    split, classes, limit = None if a.split == "all" else a.split, a.classes or None, a.limit or None
    found = statistics(a.path, split=split, classes=classes, limit=limit, progress=True)
    most = min(a.compare, a.limit or a.compare)
    compared = None
    if most and found.kind != "splat":
        compared = centroids(
            a.path, split=split, classes=classes, limit=most, radius=a.radius, seed=a.seed, progress=True
        )
    values = {**plain(found), "centroids": plain(summary(compared)) if compared else None}
    lines = as_text(found) + (centroids_text(compared) if compared else [])
    if a.out is not None:
        try:
            write_json(a.out / "statistics.json", values)
            tables = {"statistics.csv": list(rows(found)), "centroids.csv": as_table(compared) if compared else []}
            for name, table in tables.items():
                if table:
                    with write_aside(a.out / name) as temporary:
                        temporary.write_text(as_csv(table), encoding="utf-8")
            if compared:
                from data.centroid_chart import draw, save

                lines += [f"figure: {path}" for path in save(draw(compared), a.out)]
        except OSError as error:
            raise InputError(error.filename or a.out, f"cannot be written: {error.strerror or error}") from None
    lines += [f"left out: {reason}" for reason in found.broken.values()]
    return Outcome(values, 4 if found.broken else 0, a.as_json, lines)


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise InputError(name, f"{value} is less than {low}")

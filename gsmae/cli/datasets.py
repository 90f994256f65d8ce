"""build, pack, check: from meshes to shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from .verb import Arguments, Flag, Outcome, parse, plain


class ExamplesArguments(Arguments):
    """Print the folder of the example meshes: gsmae build "$(gsmae examples)/meshes" --out splats"""


def examples(argv: list[str]) -> Outcome:
    """gsmae examples"""
    from preprocessing.sources import examples as folder

    a = parse(ExamplesArguments, "examples", argv)
    found = folder()
    return Outcome({"examples": str(found)}, 0, a.as_json, [str(found)])


def build(argv: list[str]) -> Outcome:
    """gsmae build"""
    from preprocessing.command import build as build_command

    return build_command(argv)


class PackArguments(Arguments):
    """Pack splats into immutable shards: rows shuffled once per object, uncompressed, hashed. Safe to run twice."""

    builds: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")]
    """folders written by `gsmae build`, or folders or zips of splats or of point clouds that others made"""
    out: Path
    """folder for the shards and their index"""
    source: Literal[
        "auto", "build", "shapesplats", "modelnet-splats", "folder", "scanobjectnn", "modelnet-points", "modelnet-hdf5"
    ] = "auto"
    """what the paths are: builds; ShapeSplats' SYNSET-ID.ply; ModelNet_Splats' CLASS/SPLIT/NAME/point_cloud.ply; any
    folder CATEGORY/NAME.ply. All but builds also inside zips. Points without splats, to be named: ScanObjectNN's .h5
    files; modelnet40_normal_resampled; modelnet40_ply_hdf5_2048"""
    points: Literal["splat", "mesh"] = "splat"
    """mesh: a baseline of the same objects, splits and counts with points sampled from the mesh instead of splats"""
    parts: Path | None = None
    """ShapeNetPart, folder or zip: only its objects, with its labelled points and its splits"""
    shard: int = 512
    """objects per shard"""
    quantize: Literal["none", "u16"] = "none"
    """none: float32; u16: 16 bits per value between each object's minimum and maximum"""
    val: float = 0.1
    """share of the training split that becomes the validation split where the collection has none"""
    seed: int = 0
    """of the shuffles and of the splits that are drawn"""
    bad_rows: Literal["refuse", "drop"] = "refuse"
    """Gaussians with NaN or infinite values. refuse: not this splat; drop: leave them out and count them, a splat that
    has no others fails"""
    verify: Flag = False
    """read everything back and compare hashes, also of an existing pack"""


def pack(argv: list[str]) -> Outcome:
    """gsmae pack"""
    from data.checks import verify
    from data.clouds import CLOUDS, mesh_points, read_clouds
    from data.parts import labelled, read_labels
    from data.released import read_source
    from data.shards import pack as pack_splats

    a = parse(PackArguments, "pack", argv)
    labels = read_labels(a.parts) if a.parts else None
    names = labels.names if labels else None
    finite = a.bad_rows == "refuse"
    if a.source in CLOUDS:
        builds = [read_clouds(path, a.source) for path in a.builds]
    else:
        builds = [read_source(path, a.source, names=names, finite=finite, progress=True) for path in a.builds]
    if labels:
        builds = [labelled(build, labels, progress=True) for build in builds]
    if a.points == "mesh":
        builds = [mesh_points(build) for build in builds]
    report = pack_splats(
        builds, a.out, objects_per_shard=a.shard, quantize=None if a.quantize == "none" else a.quantize,
        val_fraction=a.val, seed=a.seed, bad_rows=a.bad_rows, progress=True,
    )  # fmt: skip
    found = verify(a.out).problems if a.verify else ()
    broken = report.failed > 0 and any(build.layout != "build" for build in builds)  # of a build's own, `build` told
    summary = {**plain(report), "problems": plain(found)}
    return Outcome(summary, 4 if found or broken or report.unusable else 0, a.as_json)


class CheckArguments(Arguments):
    """Look for missing, altered or broken files. Exit code 4 when something is found."""

    path: tyro.conf.Positional[Path]
    """a build, a pack, one .ply, or a folder or zip of them"""


def check(argv: list[str]) -> Outcome:
    """gsmae check"""
    from data.checks import check as check_files

    a = parse(CheckArguments, "check", argv)
    problems = check_files(a.path)
    lines = [str(p) for p in problems] or [f"{a.path}: nothing found"]
    return Outcome({"path": str(a.path), "problems": plain(problems)}, 4 if problems else 0, a.as_json, lines)

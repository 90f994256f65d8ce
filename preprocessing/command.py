"""`gsmae build` from the command line; here because its arguments hold this package's configurations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from gsmae.cli.verb import NO_PREFIX, Arguments, Flag, Outcome, parse, plain, preset, with_defaults
from gsmae.files import read_json

from .build import build as build_splats
from .profiles import PROFILES, BuildConfig


class BuildArguments(Arguments):
    """Build a splat for every mesh below PATH. Safe to interrupt; the same command goes on where it stopped."""

    path: tyro.conf.Positional[Path]
    """a ShapeNetCore or ModelNet tree, or any folder CATEGORY/[SPLIT/]NAME.{obj,off,ply,glb,gltf,stl,dae}"""
    out: Path
    """folder for the splats and their records"""
    source: Literal["auto", "shapenet", "modelnet", "folder"] = "auto"
    """how to read the tree"""
    profile: Literal["tiny", "fast", "paper"] = "fast"
    """tiny: seconds per object, for trials; fast: the default; paper: 72 views, 30,000 steps, SH degree 3"""
    parts: Path | None = None
    """JSON: category -> part -> patterns of material and group names; gives labelled points for segmentation"""
    engine: Literal["local"] = "local"
    """where the work is done"""
    workers: Annotated[int, Field(ge=0)] = len(os.sched_getaffinity(0))
    """objects side by side, one core each; 0 works inside this process"""
    limit: Annotated[int, Field(ge=0)] = 0
    """only the first so many objects; 0 = all"""
    seed: int = 0
    """same seed, same bytes on the CPU"""
    retry: Flag = False
    """try objects again that failed before"""
    build: Annotated[BuildConfig, NO_PREFIX] = BuildConfig()


def build(argv: list[str]) -> Outcome:
    """gsmae build"""
    profile = preset(argv, "--profile", PROFILES, "fast")
    default = with_defaults(BuildArguments, build=PROFILES[profile])
    a = parse(BuildArguments, "build", argv, default)
    report = build_splats(
        a.path, a.out, a.build, source=a.source, parts=read_json(a.parts) if a.parts else None, engine=a.engine,
        workers=a.workers, limit=a.limit, seed=a.seed, retry=a.retry,
    )  # fmt: skip
    lines = [
        f"{report.done} of {report.objects} objects are splats in {report.out} "
        f"({report.already} were there before); {report.gaussians:,} Gaussians, {report.psnr:.2f} dB on test views"
    ]
    lines += [f"failed ({count}): {reason}" for reason, count in list(report.failures.items())[:20]]
    if report.failed:
        lines.append(f"records with reasons: {a.out}/records; --retry tries failed objects again")
    return Outcome(plain(report), 4 if report.failed else 0, a.as_json, lines)

"""`gsmae build` and `gsmae retry`; here because their arguments hold this package's configurations."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field

from gsmae.cli.verb import NO_PREFIX, Arguments, Flag, Outcome, parse, plain, preset, with_defaults
from gsmae.errors import GsmaeError

from .build import BuildReport
from .build import build as build_splats
from .building.devices import LAUNCH, chosen_device
from .building.limits import ObjectLimits
from .building.upkeep import retry as retry_failed
from .engines import RayOptions, Resources, SlurmOptions
from .parts import read_part_patterns
from .profiles import PROFILES, BuildConfig

log = logging.getLogger(__name__)

ANY = ObjectLimits()


class WorkArguments(Arguments):
    """Where and how the work is done. Engine, workers and limits change no splat; device, kernels and objects at once
    do: by rounding, which grows with the steps to what docs/gpu.md says."""

    engine: Literal["local", "ray", "slurm"] = "local"
    """where the work is done: here, on a Ray cluster, or in Slurm arrays; see docs/cluster.md"""
    workers: Annotated[int, Field(ge=0)] = len(os.sched_getaffinity(0))
    """objects side by side, one core each; 0 works inside this process; clusters have options of their own; on GPUs at
    most 2 for each, one to read meshes while the other fits"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cuda: many objects at once on a GPU; auto: so where torch sees a GPU and the extra `gpu` is installed; on a
    cluster, where a worker is given GPUs. Splats of the two differ by rounding, and are as good"""
    objects_per_launch: Annotated[int, Field(ge=0)] = 0
    """objects that are fitted at once, as memory allows; 0 = 64 on a GPU, one by one on the CPU. At once or one by
    one, splats differ by rounding"""
    kernels: Literal["auto", "each", "warp", "gsplat"] = "auto"
    """what fits many objects at once; auto: warp on a GPU; gsplat must be installed, and compiles for many minutes;
    splats of different kernels differ by rounding, those of gsplat by a little more"""
    ray: RayOptions = RayOptions()
    slurm: SlurmOptions = SlurmOptions()
    limit_seconds: Annotated[float, Field(ge=0)] = ANY.seconds
    """wall-clock time that one object may take, 0 = any; over it, it fails as `timeout`"""
    limit_memory: Annotated[float, Field(ge=0)] = ANY.memory
    """GB that a worker may hold, 0 = any; over it, its object fails as `memory`"""
    limit_faces: Annotated[int, Field(ge=1)] = ANY.faces
    """triangles that a mesh may have"""
    limit_side: Annotated[int, Field(ge=1)] = ANY.side
    """pixels that a texture's longer side may have"""
    limit_texels: Annotated[int, Field(ge=1)] = ANY.texels
    """pixels that all textures of an object may have together"""

    def limits(self) -> ObjectLimits:
        """Those of one object."""
        return ObjectLimits(
            seconds=self.limit_seconds, memory=self.limit_memory, faces=self.limit_faces, side=self.limit_side,
            texels=self.limit_texels,
        )  # fmt: skip

    def resources(self) -> Resources:
        """What an engine may use."""
        return Resources(workers=self.workers, device=self.on(), ray=self.ray, slurm=self.slurm)

    def on(self) -> Literal["cpu", "cuda"]:
        """Where objects are fitted. Raises GsmaeError where a GPU is wanted and there is none, or none is asked for."""
        given = {"ray": self.ray.gpus, "slurm": self.slurm.gpus}
        if self.engine in given:
            if self.device == "cuda" and not given[self.engine]:
                raise GsmaeError(
                    f"--device cuda: --engine {self.engine} gives its workers no GPU; set --{self.engine}.gpus"
                )
            return "cuda" if self.device == "cuda" or (self.device == "auto" and given[self.engine]) else "cpu"
        return chosen_device(self.device)

    def batches(self) -> dict[str, Any]:
        """Arguments of `build` about many objects at once; says so where it is a GPU."""
        device = self.on()
        launch = self.objects_per_launch or (LAUNCH if device == "cuda" else 0)
        if device == "cuda":
            log.info("on a GPU (CUDA), up to %d objects at once; --device cpu for the processor", launch)
        return {"device": device, "launch": launch, "kernels": self.kernels}


class BuildArguments(WorkArguments):
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
    limit: Annotated[int, Field(ge=0)] = 0
    """only the first so many objects; 0 = all"""
    seed: int = 0
    """same seed, same bytes, where objects are built one by one on the CPU"""
    retry: Flag = False
    """try objects again that failed before, unless they have failed three times; see also `gsmae retry`"""
    build: Annotated[BuildConfig, NO_PREFIX] = BuildConfig()


class RetryArguments(WorkArguments):
    """Try failed objects of a build again, with the configuration that it was begun with, and nothing else."""

    path: tyro.conf.Positional[Path]
    """a folder written by `gsmae build`"""
    failed: str = ""
    """only those whose kind, stage or reason match this regular expression: texture, timeout, ^load"""
    anyway: Flag = False
    """also those that have failed three times"""


def build(argv: list[str]) -> Outcome:
    """gsmae build"""
    profile = preset(argv, "--profile", PROFILES, "fast")
    default = with_defaults(BuildArguments, build=PROFILES[profile])
    a = parse(BuildArguments, "build", argv, default)
    report = build_splats(
        a.path, a.out, a.build, source=a.source, parts=read_part_patterns(a.parts) if a.parts else None,
        engine=a.engine, resources=a.resources(), limits=a.limits(), limit=a.limit, seed=a.seed, retry=a.retry,
        **a.batches(),
    )  # fmt: skip
    return _outcome(report, a.as_json)


def retry(argv: list[str]) -> Outcome:
    """gsmae retry"""
    a = parse(RetryArguments, "retry", argv)
    report = retry_failed(
        a.path, a.failed, anyway=a.anyway, engine=a.engine, resources=a.resources(), limits=a.limits(), **a.batches()
    )
    return _outcome(report, a.as_json)


def _outcome(report: BuildReport, as_json: bool) -> Outcome:
    lines = [
        f"{report.done} of {report.objects} objects are splats in {report.out} "
        f"({report.already} were there before); {report.gaussians:,} Gaussians, {report.psnr:.2f} dB on test views"
    ]
    lines += [f"failed ({count}): {reason}" for reason, count in list(report.failures.items())[:20]]
    if report.failed:
        lines.append(f"each with its reason and traceback in {report.out}/quarantine; again: gsmae retry {report.out}")
    if report.given_up:
        lines.append(f"{report.given_up} failed three times and are left alone: --anyway, after mending the cause")
    return Outcome(plain(report), 4 if report.failed else 0, as_json, lines)

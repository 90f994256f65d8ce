"""What an engine may use, and how workers share GPUs. None of it is part of a build's configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from gsmae.config import Config

PER_GPU = 2  # workers: one reads meshes while the other fits
SHARED_BY = "GSMAE_WORKERS_PER_GPU"  # in a worker's environment


class RayOptions(Config):
    """How `--engine ray` finds its cluster and what one object gets of it."""

    address: str = ""
    """of a running cluster ("auto", "HOST:6379"); empty starts one on this machine for the build"""
    cpus: Annotated[float, Field(gt=0)] = 1
    """processor cores for one worker"""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs for one worker; 0.25 puts four workers on each"""


class SlurmOptions(Config):
    """How `--engine slurm` submits its arrays; what is empty or 0 is left to the cluster's defaults."""

    shard: Annotated[int, Field(ge=1)] = 100
    """objects in one array task; a task that is preempted or ends at its time limit goes on where it stopped"""
    parallel: Annotated[int, Field(ge=1)] = 64
    """array tasks at the same time"""
    cpus: Annotated[int, Field(ge=1)] = 8
    """cores of a task, and objects side by side in it"""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of a task"""
    memory: Annotated[float, Field(ge=0)] = 0
    """GB of a task"""
    minutes: Annotated[int, Field(ge=1)] = 240
    """time limit of a task"""
    partition: str = ""
    """queue, as `sinfo` lists them"""
    account: str = ""
    """whom the hours are charged to"""
    qos: str = ""
    """quality of service"""
    constraint: str = ""
    """features that a node must have"""
    setup: tuple[str, ...] = ()
    """shell lines that a task runs first, for instance "module load gcc" """
    extra: dict[str, str] = {}
    """any other option of sbatch, without its dashes"""
    cluster: Literal["slurm", "local"] = "slurm"
    """local: the same tasks as plain processes of this machine, `parallel` at a time, to try things out"""
    poll: Annotated[float, Field(gt=0)] = 5
    """seconds between two looks at the tasks"""


class Resources(Config):
    """What a build may use.

    tries    how often a job is begun whose worker dies under it
    """

    workers: Annotated[int, Field(ge=0)] = 1
    """jobs side by side; 0 works in this process"""
    seconds: Annotated[float, Field(ge=0)] = 0
    """wall-clock time that one job may take, times its length where it is a tuple; 0 = any"""
    longest: Annotated[float, Field(ge=0)] = 0
    """wall-clock time that any one job may take, however long it is; 0 = any"""
    memory: Annotated[float, Field(ge=0)] = 0
    """bytes that a worker may hold; 0 = any"""
    tries: Annotated[int, Field(ge=1)] = 3
    """how often a job is begun whose worker dies under it"""
    device: Literal["cpu", "cuda"] = "cpu"
    """what workers work on; with cuda each is given one GPU"""
    ray: RayOptions = RayOptions()
    slurm: SlurmOptions = SlurmOptions()


def side_by_side(device: str, workers: int, gpus: int) -> int:
    """Workers on a machine: on GPUs at most PER_GPU each, and never more than `workers`."""
    return min(workers, PER_GPU * gpus) if device == "cuda" and gpus else workers


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, each as CUDA_VISIBLE_DEVICES names it."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        names = [name.strip() for name in told.split(",")]
        return names[: next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))]
    import torch  # counts them without touching them

    return [str(i) for i in range(torch.cuda.device_count())]


def next_gpu(gpus: Sequence[str], taken: Sequence[str]) -> str:
    """The GPU for one more worker: the one that fewest have taken, the first of equals."""
    return min(gpus, key=list(taken).count)


def environment_of(gpu: str, workers: int) -> dict[str, str]:
    """What a worker is told before CUDA starts in it: its GPU, and how many workers have it."""
    return {"CUDA_VISIBLE_DEVICES": gpu, SHARED_BY: str(workers)}


def workers_of_this_gpu(environment: Mapping[str, str] = os.environ) -> int:
    """How many workers share the GPU of this one, itself among them."""
    return max(1, int(environment.get(SHARED_BY, "1")))

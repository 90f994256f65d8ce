"""What an engine may use. None of it changes a splat, so none of it is part of a build's configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gsmae.config import Config


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
    """wall-clock time that one job may take; 0 = any"""
    memory: Annotated[float, Field(ge=0)] = 0
    """bytes that a worker may hold; 0 = any"""
    tries: Annotated[int, Field(ge=1)] = 3
    """how often a job is begun whose worker dies under it"""
    ray: RayOptions = RayOptions()
    slurm: SlurmOptions = SlurmOptions()

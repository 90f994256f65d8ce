"""Where the objects of a build are worked on. An engine only spreads work; that an object is whole or absent is the
business of whoever commits it. `ENGINES` is the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .failures import NoWorkers, OverLimit, WorkerDied
from .local import local
from .ray import on_ray
from .resources import RayOptions, Resources, SlurmOptions
from .slurm import on_slurm

# name -> (work, jobs, resources, tick) -> iterator of (job, result or error), each job once, in any order.
# `work` and the jobs are picklable; a job may be several objects. `tick` is called now and then while nothing ends.
ENGINES: dict[str, Callable[..., Iterator[tuple[Any, Any]]]] = {"local": local, "ray": on_ray, "slurm": on_slurm}

__all__ = ["ENGINES", "NoWorkers", "OverLimit", "RayOptions", "Resources", "SlurmOptions", "WorkerDied"]

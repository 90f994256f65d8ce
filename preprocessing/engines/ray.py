"""The engine of a Ray cluster (extra `ray`): a Ray Core task per job, with whole or fractional GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from gsmae.errors import GsmaeError

from .failures import WorkerDied
from .resources import SHARED_BY, Resources
from .worker import Seat

J = TypeVar("J")
R = TypeVar("R")

AHEAD = 4  # tasks submitted per slot of the cluster: enough that no slot waits, few enough for 200,000 jobs
NODES = 20  # nodes that may be lost under one job before it is given up
_seat = Seat()  # in a Ray worker: the process that does its jobs


def on_ray(
    work: Callable[[J], R], jobs: Sequence[J], resources: Resources, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[J, R | Exception]]:
    """Work on a Ray cluster; yields (job, result or error) as they are done.

    Each Ray worker keeps a child that does the job and that it ends over a limit. A job whose Ray worker dies is tried
    `resources.tries` times in all; the loss of a node is not counted against it. Every node needs this package in the
    same Python version and the build's folders at the same paths. Raises GsmaeError where Ray is not installed or not
    reachable.
    """
    try:
        import ray
        from ray import exceptions
    except ImportError:
        raise GsmaeError("the engine ray needs Ray: pip install 'gsmae[ray]'") from None

    options = resources.ray
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, resources)
    key = os.urandom(8).hex()
    remote = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0)(_do)
    todo, shared, settings = iter(jobs), ray.put(work), ray.put(resources)
    running: dict[Any, tuple[J, int, int]] = {}

    def submit(job: J, tries: int, lost: int) -> None:
        running[remote.remote(shared, job, settings, key)] = (job, tries, lost)

    try:
        while True:
            room = AHEAD * _slots(ray, options.cpus, options.gpus) - len(running)
            for _, job in zip(range(room), todo, strict=False):
                submit(job, 1, 0)
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1, timeout=1)[0]:
                job, tries, lost = running.pop(reference)
                try:
                    result = ray.get(reference)
                except (exceptions.NodeDiedError, exceptions.ObjectLostError) as error:
                    if lost + 1 < NODES:
                        submit(job, tries, lost + 1)
                        continue
                    result = WorkerDied(lost + 1, f"{type(error).__name__}: nodes were lost")
                except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError) as error:
                    if tries < resources.tries:
                        submit(job, tries + 1, lost)
                        continue
                    result = WorkerDied(tries, type(error).__name__)
                except exceptions.RayError as error:
                    raise GsmaeError(f"Ray: {error}") from error
                if isinstance(result, WorkerDied) and tries < resources.tries:  # the child of a worker of Ray's
                    submit(job, tries + 1, lost)
                    continue
                yield job, WorkerDied(tries, result.what) if isinstance(result, WorkerDied) else result
            tick()
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _connect(ray: Any, resources: Resources) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    address = resources.ray.address
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            cores = max(1, round(resources.workers * resources.ray.cpus))
            ray.init(num_cpus=cores, include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise GsmaeError(f"no Ray cluster at '{address or 'this machine'}': {error}") from None


def _slots(ray: Any, cpus: float, gpus: float) -> int:
    """Jobs that the cluster can work on side by side now; at least one, so that a lost node is waited for."""
    there = ray.cluster_resources()
    slots = there.get("CPU", 0) / cpus
    if gpus:
        slots = min(slots, there.get("GPU", 0) / gpus)
    return max(1, int(slots))


def _do(work: Callable[[Any], Any], job: Any, resources: Resources, key: str) -> Any:
    """In a Ray worker: the job, by a child that is kept for the next job of the same build on the same GPUs."""
    once = resources.model_copy(update={"tries": 1})
    sharing = round(1 / resources.ray.gpus) if 0 < resources.ray.gpus < 1 else 1
    return _seat.do(work, job, once, (key, os.environ.get("CUDA_VISIBLE_DEVICES")), {SHARED_BY: str(sharing)})

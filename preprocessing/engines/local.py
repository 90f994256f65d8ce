"""The engine of one machine: a process per core, or two per GPU, watched one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

from gsmae.errors import GsmaeError

from .failures import FRESH, Faults, Starts, WorkerDied
from .resources import Resources, environment_of, next_gpu, side_by_side, visible_gpus
from .worker import LOOK, Worker, caught

J = TypeVar("J")
R = TypeVar("R")


def local(
    work: Callable[[J], R], jobs: Sequence[J], resources: Resources, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[J, R | Exception]]:
    """Work on this machine, one job per process; yields (job, result or error) as they are done.

    A worker that dies takes no other job with it; its own is tried again after all others, `resources.tries` times in
    all, then its result is WorkerDied. A worker over a limit is ended, and the job's result is OverLimit. One that has
    met a fault of its GPU is replaced and the job tried once more; raises NoWorkers where that happens again and again.
    """
    faults = Faults()
    if resources.workers == 0:
        if resources.seconds or resources.memory:
            raise GsmaeError("limits of time and memory need a worker process: --workers 1")
        with _small_operations():
            for job in jobs:
                value = caught(work, job)
                faults.found(value, "", 1)
                yield job, value
        return
    gpus = visible_gpus() if resources.device == "cuda" else []
    most = side_by_side(resources.device, resources.workers, len(gpus))
    waiting = deque((job, 1) for job in jobs)
    workers: list[Worker] = []
    tries: dict[Worker, int] = {}
    starts = Starts()
    try:
        while waiting or any(worker.job is not None for worker in workers):
            while len(workers) < min(most, len(workers) + len(waiting)):
                gpu = next_gpu(gpus, [worker.gpu for worker in workers]) if gpus else ""
                workers.append(Worker(work, environment_of(gpu, -(-most // len(gpus))) if gpus else None))
            for worker in workers:
                if worker.ready and worker.job is None and waiting:
                    job, tries[worker] = waiting.popleft()
                    worker.give(job)
            wait([worker.connection for worker in workers], LOOK)
            for worker in list(workers):
                job = worker.job
                try:
                    if worker.connection.poll():
                        got, value = worker.take()
                        starts.came_up()
                        if got and faults.found(value, worker.gpu, tries[worker]):
                            workers.remove(worker)
                            worker.end()
                            if tries[worker] < FRESH:
                                waiting.append((job, tries[worker] + 1))
                            else:
                                yield job, value
                        elif got:
                            worker.job = None
                            yield job, value
                    elif job is not None and (error := worker.over(resources)) is not None:
                        workers.remove(worker)
                        worker.end()
                        yield job, error
                except EOFError:
                    workers.remove(worker)
                    how = worker.end()
                    if not worker.ready:
                        starts.died(how)
                    elif job is not None and tries[worker] < resources.tries:
                        waiting.append((job, tries[worker] + 1))
                    elif job is not None:
                        yield job, WorkerDied(tries[worker], how)
                if worker not in workers:
                    tries.pop(worker, None)
            tick()
    finally:
        for worker in workers:
            worker.end()


@contextmanager
def _small_operations() -> Iterator[None]:
    """One thread for torch: a fit's own operations are so small that waking a second one costs more than it saves."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

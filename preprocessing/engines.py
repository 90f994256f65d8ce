"""Where the objects of a build are worked on. An engine only spreads work; that an object is whole or absent is the
business of whoever commits it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from gsmae.errors import GsmaeError

J = TypeVar("J")
R = TypeVar("R")


class WorkerDied(Exception):
    """A worker process ended while it worked on this job alone: killed, out of memory, or crashed."""


def local(work: Callable[[J], R], jobs: Sequence[J], workers: int) -> Iterator[tuple[J, R | Exception]]:
    """Work on this machine, one object per process; yields (job, result or error) as they are done.

    work     a picklable function
    workers  processes, one thread each; 0 works in this process
    A worker that dies takes no other job with it: whatever was in flight is tried once more, alone.
    """
    if workers == 0:
        with _small_operations():
            for job in jobs:
                yield job, _caught(work, job)
        return
    suspects: list[J] = []
    waiting = list(jobs)[::-1]
    while waiting:
        yield from _pool(work, waiting, workers, suspects)
    for job in suspects:
        again: list[J] = []
        yield from _pool(work, [job], 1, again)
        if again:
            yield job, WorkerDied("the worker process died twice on this object (killed, crashed or out of memory)")


ENGINES: dict[str, Callable[..., Iterator[tuple[Any, Any]]]] = {"local": local}


def _pool(work: Callable[[J], R], waiting: list[J], workers: int, suspects: list[J]) -> Iterator[tuple[J, Any]]:
    """Drain `waiting` through one pool; if the pool breaks, what was in flight goes to `suspects`."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=_start_worker)
    running: dict[Future, J] = {}
    try:
        pool.submit(int).result()
    except BrokenProcessPool:
        pool.shutdown()
        raise GsmaeError(
            "worker processes cannot start; a script that builds needs `if __name__ == '__main__':` around it"
        ) from None
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                job = waiting.pop()
                running[pool.submit(_caught, work, job)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()  # a broken pool speaks up here, before the job is taken off the books
                yield running.pop(future), result
    except BrokenProcessPool:
        for future, job in running.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                yield job, future.result()
            else:
                suspects.append(job)
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _caught(work: Callable[[J], R], job: J) -> R | Exception:
    try:
        return work(job)
    except Exception as error:
        return error


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on for the rest of its object."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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


def _start_worker() -> None:
    """One thread per process: objects side by side beat threads inside one, and the bytes do not depend on either."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it ends its workers itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from gsmae.ops.native import library

    torch.set_num_threads(1)
    if library.available():
        library.set_threads(1)

"""Several runs at a time, each in a process of its own; they share the device."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from gsmae.reproduce import Step
from gsmae.training import Interrupted

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds in which a stopped process has to save its state


class _Worker:
    """A process that does steps one after another; `step` is the one it is at."""

    def __init__(self, work: Callable[[Step], str]):
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit a GPU's context, which it cannot use
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, work))
        self.process.start()
        theirs.close()
        self.step: Step | None = None

    def give(self, step: Step) -> None:
        self.step = step
        self.pipe.send(step)

    def answer(self) -> str:
        """Why its step failed, or ""."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):  # killed for want of memory, most likely
            self.process.join()
            return f"its process died (exit code {self.process.exitcode})"


def side_by_side(
    steps: Sequence[Step], work: Callable[[Step], str], jobs: int, seconds: float | None = None
) -> Iterator[tuple[Step, str]]:
    """Do the steps, so many at a time and in their order, but none before the one it begins with; yields each when it
    ends, with the reason if it failed.

    work     does one step, in another process, and returns why it failed, or ""; it can be pickled
    seconds  after which those under way are asked to stop by SIGTERM and no other begins
    A step that begins with one that failed fails for the same reason. Those that were stopped are not yielded.
    """
    end = None if seconds is None else time.monotonic() + seconds
    left, open_, failed = list(steps), {s.digest for s in steps}, dict[str, str]()
    workers: list[_Worker] = []
    try:
        while left or any(w.step for w in workers):
            for step in [s for s in left if s.init and s.init.digest in failed]:
                left.remove(step)
                failed[step.digest] = failed[step.init.digest] if step.init else ""
                yield step, failed[step.digest]
            for step in [s for s in left if not (s.init and s.init.digest in open_)]:
                idle = next((w for w in workers if w.step is None), None)
                if idle is None and len(workers) < jobs:
                    workers.append(idle := _Worker(work))
                if idle is None:
                    break
                left.remove(step)
                idle.give(step)
            at_work: dict[Any, _Worker] = {w.pipe: w for w in workers if w.step}
            if not at_work:
                continue
            ready = wait(at_work, None if end is None else max(0.0, end - time.monotonic()))
            if not ready:
                log.warning("the time is over: %d runs are stopped, %d not begun", len(at_work), len(left))
                return
            for worker in (at_work[pipe] for pipe in ready):
                step, reason = worker.step, worker.answer()
                assert step is not None
                worker.step = None
                if not worker.process.is_alive():
                    workers.remove(worker)
                open_.discard(step.digest)
                if reason:
                    failed[step.digest] = reason
                yield step, reason
    finally:
        _end(workers)


def _serve(pipe: Connection, work: Callable[[Step], str]) -> None:
    """The life of a worker: until it is told to stop, or the one who started it is gone."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname).1s %(name)s: %(message)s")
    while True:
        try:
            step = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if step is None:
            return
        try:
            pipe.send(work(step))
        except (Interrupted, BrokenPipeError):  # a signal asked the run to stop, and it has saved its state
            return


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        if worker.step is None and worker.process.is_alive():
            worker.pipe.send(None)
        else:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(PATIENCE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()

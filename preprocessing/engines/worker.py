"""A process that does one job at a time and is watched while it does: how every engine gets its work done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from .failures import FRESH, Faults, OverLimit, Starts, WorkerDied
from .resources import SHARED_BY, Resources

LOOK = 0.2  # seconds between two looks at a worker's memory and time
PAGE = os.sysconf("SC_PAGE_SIZE")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PRELOADED = ["preprocessing.building.objects", "preprocessing.building.jobs"]


class Worker:
    """The parent's end of a worker process.

    work   a picklable function, sent once
    given  environment variables for it, set before anything of CUDA starts there
    job    what it works on, None while it has nothing to do
    ready  whether the process has come up
    """

    def __init__(self, work: Callable[[Any], Any], given: Mapping[str, str] | None = None):
        # a process that has loaded torch and nothing else is forked from: a new worker is there at once, and they
        # share that memory
        context = multiprocessing.get_context("forkserver")
        safe = sys.version_info >= (3, 11) and bool(os.environ.get("PYTHONSAFEPATH"))  # does not look where we are
        context.set_forkserver_preload(PRELOADED if safe or not hidden() else [])
        self.connection, theirs = context.Pipe()
        passed = ("CUDA_", "ROCR_", "HIP_", SHARED_BY)
        seen = {name: value for name, value in os.environ.items() if name.startswith(passed)} | dict(given or {})
        self.gpu = seen.get("CUDA_VISIBLE_DEVICES", "")
        self.process = context.Process(target=_serve, args=(theirs, work, seen), daemon=True)
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)  # read when its libraries load, which may be before our first line there
        try:
            self.process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        theirs.close()
        self.job: Any = None
        self.ready = False
        self.since = 0.0

    def give(self, job: Any) -> None:
        """Let it work on a job."""
        self.job, self.since = job, time.monotonic()
        with suppress(OSError):  # it is dead; `take` will say so
            self.connection.send(job)

    def take(self) -> tuple[bool, Any]:
        """Whether it has sent a result, and that result; EOFError where it died."""
        try:
            kind, value = self.connection.recv()
        except OSError:
            raise EOFError from None
        self.ready = True
        return kind == "result", value

    def over(self, resources: Resources) -> OverLimit | None:
        """What limit its job is over, if any."""
        seconds = resources.seconds * (len(self.job) if isinstance(self.job, tuple) else 1)
        seconds = min(seconds or resources.longest, resources.longest or seconds)
        if seconds and time.monotonic() - self.since > seconds:
            return OverLimit("timeout", f"timeout: not done after {seconds:g} s")
        if resources.memory and _resident(self.process.pid) > resources.memory:
            return OverLimit("memory", f"memory: the worker holds more than {resources.memory / 2**30:.3g} GB")
        return None

    def end(self) -> str:
        """Kill it, if it still runs; returns how it ended, in words."""
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        self.connection.close()
        self.process.close()
        if code >= 0:
            return f"exit code {code}"
        return signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"


class Seat:
    """One worker at a time, for a process that is itself a worker of somebody else's engine."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.key: Any = None
        self.faults = Faults()

    def do(
        self,
        work: Callable[[Any], Any],
        job: Any,
        resources: Resources,
        key: Any = None,
        given: Mapping[str, str] | None = None,
    ) -> Any:
        """The job's result or error; the worker is kept while `key` (the build, its GPUs) stays the same.

        A job that ends with a fault of the GPU is tried once more, in a fresh process. Raises NoWorkers.
        """
        how, starts, died, faulty = "", Starts(), 0, 0
        if self.worker is not None and key != self.key:
            self.leave()
        while died < resources.tries:
            while True:
                if self.worker is None:
                    self.worker, self.key = Worker(work, given), key
                worker = self.worker
                try:
                    while not worker.ready:
                        worker.take()
                    break
                except EOFError:
                    starts.died(self.leave())
            worker.give(job)
            try:
                value = _watched(worker, resources)
            except EOFError:
                how, died = self.leave(), died + 1
                continue
            faulty += 1
            fault = self.faults.found(value, worker.gpu, faulty)
            if fault or isinstance(value, OverLimit):
                self.leave()
            if not fault or faulty >= FRESH:
                return value
        return WorkerDied(resources.tries, how)

    def leave(self) -> str:
        """End the worker; returns how it ended."""
        worker, self.worker = self.worker, None
        return worker.end() if worker is not None else ""


def hidden() -> bool:
    """Whether the folder that we are in holds another `preprocessing` than this one: a checkout that is not installed.

    Processes that look there first would be of that one, and find no compiled kernels.
    """
    there = Path("preprocessing")
    return there.is_dir() and there.resolve() != Path(__file__).resolve().parents[1]


def _watched(worker: Worker, resources: Resources) -> Any:
    """The result of the worker's job, or the limit that it is over; EOFError where the worker died."""
    while True:
        if worker.connection.poll(LOOK):
            got, value = worker.take()
            if got:
                return value
        elif (error := worker.over(resources)) is not None:
            return error


def caught(work: Callable[[Any], Any], job: Any) -> Any:
    """The job's result, or the exception that it raised."""
    try:
        return work(job)
    except Exception as error:
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))  # type: ignore[attr-defined]
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error


def _serve(connection: Any, work: Callable[[Any], Any], seen: dict[str, str]) -> None:
    """What a worker process does: one thread, the GPUs that its parent sees, jobs until its parent is gone."""
    os.environ.update(seen)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):  # Slurm sends the last two to a whole task
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        connection.send(("ready", None))
        while True:
            connection.send(("result", caught(work, connection.recv())))
    except (EOFError, OSError):
        os._exit(0)


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on for the rest of its object."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _resident(pid: int | None) -> int:
    """Bytes of memory that a process holds now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError, ValueError):
        return 0

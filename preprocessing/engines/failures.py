"""How a job can end without a result, and when a machine is given up: what every engine counts."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

from gsmae.errors import GsmaeError

from ..faults import is_device_fault

FRESH = 2  # processes in which a job is tried that ends with a fault of the GPU


class WorkerDied(GsmaeError):
    """The worker process ended while it worked on this job: killed, out of memory, or crashed."""

    def __init__(self, tries: int, what: str):
        self.tries, self.what = tries, what
        super().__init__(f"the worker process died {'each time of' if tries > 1 else 'on'} {tries} ({what})")

    def __reduce__(self):
        return type(self), (self.tries, self.what)


class OverLimit(GsmaeError):
    """A worker was ended because its job was over a limit: `kind` is "timeout" or "memory"."""

    def __init__(self, kind: str, reason: str):
        self.kind = kind
        super().__init__(reason)

    def __reduce__(self):
        return type(self), (self.kind, str(self))


class NoWorkers(GsmaeError):
    """Worker processes cannot be started at all, or cannot work on this machine."""


class Starts:
    """Counts workers that died before they came up, and gives up after five in a row."""

    def __init__(self) -> None:
        self.failed = 0

    def came_up(self) -> None:
        self.failed = 0

    def died(self, how: str) -> None:
        self.failed += 1
        if self.failed == 5 or how.startswith("exit code"):
            guard = "a script that builds needs `if __name__ == '__main__':` around it"
            raise NoWorkers(f"worker processes cannot start ({how}); {guard}")


class Faults:
    """Counts jobs in a row that end with a fault of a GPU, by GPU, and gives up after five: it is not the jobs."""

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()

    def found(self, value: Any, gpu: str, tries: int) -> bool:
        """Whether a job's result, at its `tries`th time, is a fault of the GPU, so that its process must be replaced.

        Raises NoWorkers, naming this host, where one job after the other ends so.
        """
        if not isinstance(value, Exception) or not is_device_fault(value):
            self.failed[gpu] = 0
            return False
        self.failed[gpu] += tries == 1  # a job that brings it about itself is one, however often it is tried
        if self.failed[gpu] >= 5:
            where = f"{socket.gethostname()}, GPU {gpu}" if gpu else socket.gethostname()
            lines = str(value).splitlines() or [type(value).__name__]
            raise NoWorkers(
                f"{where}: {self.failed[gpu]} jobs in a row failed there ({lines[0]}); mend it, or leave it out"
            )
        return True

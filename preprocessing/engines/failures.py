"""How a job can end without a result, and when a machine is given up: what every engine counts."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from gsmae.errors import GsmaeError

from ..faults import is_device_fault

log = logging.getLogger(__name__)

FRESH = 2  # processes in which a job is tried that ends with a fault of the GPU
ROW = 5  # jobs in a row with such a fault: it is not the jobs


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
        if not is_fault(value):
            self.failed[gpu] = 0
            return False
        self.failed[gpu] += tries == 1  # a job that brings it about itself is one, however often it is tried
        if self.failed[gpu] >= ROW:
            where = f"{socket.gethostname()}, GPU {gpu}" if gpu else socket.gethostname()
            count = self.failed[gpu]
            raise NoWorkers(f"{where}: {count} jobs in a row failed there ({line(value)}); mend it, or leave it out")
        return True


class Nodes:
    """Which nodes of a cluster are given no more jobs: their workers cannot work, or their GPU fails again and again.

    left_out  their names, each with why
    """

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}
        self._failed: Counter[str] = Counter()

    def elsewhere(
        self, node: str, value: Any, before: Collection[str], able: Callable[[], Collection[str]] | None = None
    ) -> bool:
        """Whether another node is to try a job that ended with `value` on this one.

        before  nodes that have failed under it already. A fault of the GPU is the job's own when a second node meets
                it; what a node does that is left out proves nothing, but the third is the last.
        able    tells all nodes there are; unknown where None
        Raises NoWorkers where no node is left that can work.
        """
        useless = isinstance(value, NoWorkers)
        if not useless and not is_fault(value):
            self._failed[node] = 0
            return False
        self._failed[node] += not useless
        if node not in self.left_out and (useless or self._failed[node] >= ROW):
            self.left_out[node] = line(value)
            log.warning("node %s is given no more jobs: %s", node, line(value))
        wanted = len(before) < (2 if node in self.left_out else 1)
        if able is not None:
            there = set(able()) - self.left_out.keys()
            if not there:
                raise value if useless else NoWorkers(f"no node is left that can work: {line(value)}")
            wanted = wanted and bool(there - set(before) - {node})
        if useless and not wanted:
            raise value
        return wanted


def is_fault(value: Any) -> bool:
    """Whether a job's result is a fault of the GPU."""
    return isinstance(value, Exception) and is_device_fault(value)


def line(error: object) -> str:
    """The first line of an error that says something."""
    return next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)

"""What `squeue` says of our tasks."""

from __future__ import annotations

import logging
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from gsmae.errors import GsmaeError

log = logging.getLogger(__name__)

UNSOLVABLE = re.compile(  # reasons of a pending task that no waiting changes, as `squeue` writes them
    "held|Held|BadConstraints|Invalid(Account|QOS)|DependencyNeverSatisfied|Partition(Node|Time)Limit|PartitionInactive"
    "|PartitionDown|(QOS|Assoc)Max\\w+Per(Job|Node)|AccountNotAllowed|QOSNotAllowed|MaxMemPerLimit"
)
OVER = {"CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE",
        "BOOT_FAIL", "REVOKED"}  # fmt: skip


class Queue:
    """Which tasks have ended, by `squeue`; submitit would ask `sacct`, which many clusters do not have.

    patience  as `on_slurm`
    """

    def __init__(self, folder: Path, patience: float):
        self.folder, self.patience = folder, patience
        self.absent: dict[str, float] = {}  # task -> when it was first found gone
        self.cancelled: set[str] = set()
        self.warned: set[str] = set()

    def ended(self, tasks: list[Any]) -> list[Any]:
        """Tasks with a result, and those that have been gone without one for long enough.

        Warns once of each reason for which a task will not start; GsmaeError where all tasks were cancelled.
        """
        alive = self._alive(tasks)
        list(self.folder.iterdir())  # a network file system's client then looks for what it believed was not there
        done = [task for task in tasks if task.paths.result_pickle.exists()]
        now = time.monotonic()
        gone = {task.job_id for task in tasks if task not in done and task.job_id not in alive}
        self.absent = {name: self.absent.get(name, now) for name in gone}
        dead = [task for task in tasks if task.job_id in gone and now - self.absent[task.job_id] >= self.patience]
        if dead and not done and all(task.job_id in self.cancelled for task in tasks):
            which = ", ".join(sorted({task.job_id.partition("_")[0] for task in tasks}))
            raise GsmaeError(f"the tasks were cancelled (scancel of {which}): run the same command to go on")
        return done + dead

    def _alive(self, tasks: list[Any]) -> set[str]:
        """Names of tasks that wait or run; all of them where Slurm does not answer."""
        names = {task.job_id for task in tasks}
        command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%F_%K|%T|%r", "--me"]
        here = subprocess.run(command, capture_output=True, text=True)
        if here.returncode:
            return names
        alive = set()
        for line in here.stdout.splitlines():
            one, element, state, reason = (*line.strip().split("|", 3), "", "", "")[:4]
            ours = names & {one, element}
            if state == "CANCELLED":
                self.cancelled |= ours
            if state in OVER:
                continue
            alive |= ours
            if ours and state == "PENDING" and UNSOLVABLE.search(reason) and reason not in self.warned:
                self.warned.add(reason)
                log.warning("Slurm task %s waits, and will not start by itself: %s", min(ours), reason)
        return alive

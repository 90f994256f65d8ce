"""How long each stage of an object takes, and how much memory."""

from __future__ import annotations

import resource
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import ledgers, notes


class Watch:
    """The time that each stage of one object takes, and the most memory.

    device  where the object is fitted: what is told of the machine is this
    token   of the build; where another has taken over the folder, no further stage is entered, and so nothing replaced
    """

    def __init__(self, out: Path, uid: str, token: str = "", device: str = "cpu"):
        self.out, self.uid, self.token, self.stage = out, uid, token, ""
        self.device = device
        self.begun, self.since = time.time(), time.monotonic()
        self.start = self.since
        self.stages: dict[str, float] = {}
        _forget_peak()

    def enter(self, stage: str) -> None:
        """The next stage begins; raises Superseded where the folder belongs to a later build."""
        notes.check(self.out, self.token)
        self._close()
        self.stage = stage
        notes.note(self.out, self.uid, stage, self.begun, ledgers.machine(self.device))

    def run(self) -> dict[str, Any]:
        """Seconds by stage and in all, machine, peak memory in bytes, and when it ended."""
        self._close()
        return {
            "seconds": round(time.monotonic() - self.start, 2),
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "machine": ledgers.machine(self.device), "host": socket.gethostname(), "peak_memory": _peak(),
            "finished": round(time.time(), 3),
        }  # fmt: skip

    def _close(self) -> None:
        now = time.monotonic()
        if self.stage:
            self.stages[self.stage] = self.stages.get(self.stage, 0.0) + now - self.since
        self.since = now


def _forget_peak() -> None:
    with suppress(OSError):  # the peak is then that of the process
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Most bytes of memory that this process held since `_forget_peak`."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

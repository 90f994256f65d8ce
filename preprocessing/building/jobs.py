"""What a worker does: objects from mesh to committed record, whatever happens to some of them."""

from __future__ import annotations

import hashlib
import resource
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..sources import MeshItem
from . import ledgers, notes
from .records import Order, commit, commit_failure, done, is_charged, settled


def build_objects(items: tuple[MeshItem, ...], order: Order) -> list[dict[str, Any]]:
    """One job: the records of these objects, all committed when it returns.

    Raises as `build_object`; an OSError says in `host` where it was.
    """
    try:
        if order.launch and order.make is None:
            from .batches import build_batch  # torch and the renderers load in the worker

            return build_batch(items, order)
        return [build_object(item, order) for item in items]
    except OSError as error:
        error.host = socket.gethostname()  # type: ignore[attr-defined]
        raise


def settle(items: Sequence[MeshItem], result: Any, order: Order) -> Any:
    """What came of a job: where one object alone is to blame for its error, the committed record of that; else itself.

    Raises as `commit_failure`.
    """
    if not isinstance(result, Exception) or isinstance(result, OSError | notes.Superseded) or len(items) > 1:
        return result
    heard = notes.last_heard(order.out, items[0].uid)  # this process may be on another machine than the worker was
    run = {"machine": heard.get("machine", ""), "host": heard.get("host", ""), "finished": round(time.time(), 3)}
    return [commit_failure(order, items[0], heard.get("stage", "process"), result, run)]


def build_object(item: MeshItem, order: Order) -> dict[str, Any]:
    """One object from mesh to committed record; a failure is a record too, with stage and reason.

    Raises OSError where the folder cannot be written, Superseded where it belongs to a later build.
    """
    notes.check(order.out, order.token)
    before = settled(order, item)
    if before is not None:  # by a worker that was killed before it could tell
        return before
    watch = Watch(order.out, item.uid, order.token)
    try:
        found = item.path.stat()
        watch.enter("load")
        make = order.make
        if make is None:
            from .objects import make  # torch and the renderers load in the worker, not in the parent's start
        patterns, seed = order.parts.get(item.category, {}), object_seed(order.seed, item.uid)
        made = make(item, order.out, order.config, patterns, seed, watch.enter, order.limits.mesh)
    except Exception as error:
        notes.check(order.out, order.token)  # a later build may have swept away what it was writing
        if not is_charged(error, watch.stage):
            raise
        return commit_failure(order, item, watch.stage, error, watch.run())
    notes.check(order.out, order.token)
    return commit(order, item, done(order, item, made, found, watch.run()))


def object_seed(seed: int, uid: str) -> int:
    """A seed of its own for each object, the same wherever and in whichever order it is built."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{uid}".encode()).digest()[:4], "big")


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

"""What a build cost: one line per committed object in the ledger of the worker that made it.

Ledgers are for people and plans: a line may be missing or torn after a kill, the records are the truth, and
`gsmae gc` writes the ledgers again from them.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = "ledgers"


def append(out: Path, entry: dict[str, Any]) -> None:
    """Add a line to this process's own ledger, in one write."""
    path = out / FOLDER / f"{whoami()}.jsonl"
    data = (json.dumps(entry) + "\n").encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def line(record: dict[str, Any], mtime_ns: int) -> dict[str, Any]:
    """A record's line: what it took, and the time stamp of the record's file, by which an outdated line is told."""
    run = record.get("run") or {}
    return {
        "uid": record["uid"], "status": record["status"], "failure": record.get("failure", ""),
        "stage": record["stage"], "reason": record["reason"], "mesh": record["mesh"],
        "attempts": record.get("attempts", 0), "seconds": run.get("seconds", record["seconds"]),
        "stages": run.get("stages", {}), "machine": run.get("machine", ""), "host": run.get("host", ""),
        "peak_memory": run.get("peak_memory", 0), "finished": run.get("finished", 0.0),
        "gaussians": record["gaussians"], "psnr": record["psnr"], "bytes": record["bytes"], "record_mtime_ns": mtime_ns,
    }  # fmt: skip


def read(out: Path) -> Iterator[dict[str, Any]]:
    """All whole lines of all ledgers."""
    for path in sorted((out / FOLDER).glob("*.jsonl")):
        for text in path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(text)
            except ValueError:  # the line that a kill tore
                continue
            if isinstance(entry, dict) and {"uid", "status", "record_mtime_ns"} <= entry.keys():
                yield entry


class Follower:
    """Reads what is added to the ledgers of a build, a piece at a time."""

    def __init__(self, out: Path):
        self.folder, self.read = out / FOLDER, {}
        self.look()

    def look(self) -> list[dict[str, Any]]:
        """The whole lines that have come since the last look."""
        found = []
        for path in self.folder.glob("*.jsonl"):
            if path.stat().st_size == self.read.get(path, 0):  # of thousands of workers, few have told something
                continue
            with path.open("rb") as file:
                file.seek(self.read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self.read[path] = self.read.get(path, 0) + len(whole)
            for text in whole.splitlines():
                try:
                    found.append(json.loads(text))
                except ValueError:
                    continue
        return found


def whoami() -> str:
    """A name that no other process of any machine has: host, process, and when it began."""
    return _whoami(os.getpid())


@cache
def _whoami(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}-{_began(pid) or time.time_ns()}"


def _began(pid: int) -> int | None:
    """Clock ticks after the start of the machine at which a process began, None where it does not run."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else int(rest[18])
    except (OSError, ValueError, IndexError):
        return None


def lives(name: str) -> bool | None:
    """Whether the process of that name runs; None where it is, or was, on another machine."""
    host, pid, began = name.rsplit("-", 2)
    if host != socket.gethostname():
        return None
    return str(_began(int(pid))) == began


@cache
def machine(device: str = "cpu") -> str:
    """The type of the machine that works, for comparing times: the GPU's name, or the processor's."""
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else "unknown processor"

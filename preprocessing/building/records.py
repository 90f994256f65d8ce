"""The record of an object: what it says, when it counts, how it is committed. The file is the truth."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsmae.errors import GsmaeError, InputError
from gsmae.files import read_json, sha256, write_aside, write_json

from ..faults import is_device_fault, is_out_of_memory
from ..profiles import BuildConfig
from ..sources import MeshItem, Skipped
from . import ledgers, notes
from .limits import ObjectLimits

log = logging.getLogger(__name__)

SCHEMA = 1
MAX_TRIES = 3  # how often an object is tried before it is left alone
Parts = dict[str, dict[str, list[str]]]  # category -> part -> patterns of material and group names
NOT_THE_OBJECTS_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE}


@dataclass(frozen=True)
class Order:
    """What every worker of one build is told.

    identity  digest of everything that decides what the splats look like
    token     of the build that holds the folder; a worker of an earlier one stops when it finds another
    make      in place of `objects.make`; for tests and trials
    device    "cpu" or "cuda"
    launch    objects that are fitted at once; 0 = one by one, by `objects.make`
    kernels   a name in `gsmae.ops.batches.BACKENDS`, or "auto"
    spent     uid -> tries that this build has spent on it already, in batches whose worker died
    """

    out: Path
    config: BuildConfig
    parts: Parts = field(default_factory=dict)
    identity: str = ""
    seed: int = 0
    token: str = ""
    limits: ObjectLimits = ObjectLimits()
    make: Callable[..., dict[str, Any]] | None = None
    device: str = "cpu"
    launch: int = 0
    kernels: str = "auto"
    spent: dict[str, int] = field(default_factory=dict)

    def seed_of(self, uid: str) -> int:
        """A seed of its own for each object, the same wherever and in whichever order it is built."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{uid}".encode()).digest()[:4], "big")


def path_of(out: Path, uid: str) -> Path:
    """Where an object's record lies."""
    return out / "records" / f"{uid}.json"


def finished(order: Order, item: MeshItem) -> dict[str, Any] | None:
    """The record of an object that need not be built again, or None.

    It counts when it was made with the same configuration from the same mesh file and its splat is there in full
    length; `gsmae check` compares the splat's hash. A failure counts until the mesh changes.
    """
    path = path_of(order.out, item.uid)
    if not path.exists():
        return None
    try:
        record = read_json(path)
        if record["config_hash"] != order.identity:
            return None
        if not _same_mesh(item, record):
            return None
        if record["status"] == "failed":
            return record
        splat = order.out / "splats" / f"{item.uid}.ply"
        return record if splat.stat().st_size == record["bytes"] else None
    except (InputError, KeyError, TypeError, OSError):
        return None


def settled(order: Order, item: MeshItem) -> dict[str, Any] | None:
    """The record of an object that this very build has no more to do with, or None: done, or failed under its token.

    What asks: a job that is repeated, because its worker died or its task was requeued, tries no failed object twice.
    """
    record = finished(order, item)
    if record is None or record["status"] == "done":
        return record
    return record if order.token and record.get("run", {}).get("token") == order.token else None


def tries(record: dict[str, Any] | None) -> int:
    """How often an object has failed."""
    return 0 if record is None or record["status"] != "failed" else int(record.get("attempts", 1))


def fault(record: dict[str, Any]) -> str:
    """Kind, stage and reason of a failure, without the file's own name, so that equal failures can be counted."""
    reason = record["reason"].removeprefix(f"{record['mesh']}: ")
    kind = record.get("failure", "")
    told = kind in ("", "input", "error") or reason.startswith(kind)
    return f"{record['stage']}: {reason}" if told else f"{kind}: {record['stage']}: {reason}"


def blank(order: Order, item: MeshItem) -> dict[str, Any]:
    """A record that says nothing yet."""
    return {
        "schema": SCHEMA, "uid": item.uid, "category": item.category, "split": item.split, "status": "failed",
        "reason": "", "stage": "", "mesh": str(item.path), "mesh_sha256": "", "mesh_bytes": 0, "mesh_mtime_ns": 0,
        "mesh_to_splat": None,
        "gaussians": 0, "psnr": None, "ssim": None, "psnr_val": None, "iterations": 0, "seconds": 0.0,
        "seed": order.seed, "config_hash": order.identity, "sha256": "", "bytes": 0, "part_names": [], "warnings": [],
    }  # fmt: skip


def done(
    order: Order, item: MeshItem, made: dict[str, Any], found: os.stat_result, run: dict[str, Any]
) -> dict[str, Any]:
    """The record of a splat; `made` is what `objects.make` tells, `found` the mesh file as it was when it was read."""
    return {
        **blank(order, item), "status": "done", **made, "mesh_bytes": found.st_size,
        "mesh_mtime_ns": found.st_mtime_ns, "seconds": run["seconds"], "run": run,
    }  # fmt: skip


def is_charged(error: Exception, stage: str) -> bool:
    """Whether an error is a failure of the object in hand, and not of the folder, the machine or its GPU.

    What cannot be written is the folder's fault; what cannot be read may be the object's.
    """
    if isinstance(error, OSError):
        return error.errno not in NOT_THE_OBJECTS_FAULT and stage != "write"
    return not is_device_fault(error)


def commit(order: Order, item: MeshItem, record: dict[str, Any]) -> dict[str, Any]:
    """Write a record, which makes its object exist, then tell this worker's ledger."""
    path = path_of(order.out, item.uid)
    write_json(path, record)
    if record["status"] == "done":
        (order.out / "quarantine" / f"{item.uid}.txt").unlink(missing_ok=True)
    ledgers.append(order.out, ledgers.line(record, path.stat().st_mtime_ns))
    return record


def commit_failure(
    order: Order, item: MeshItem, stage: str, error: Exception, run: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A failed object's record, with its kind, stage and reason; everything known about it lies in `quarantine`.

    Returns the record that is there where this build has settled the object before. Raises Superseded where the folder
    belongs to a later build: its error may be that its files were swept away.
    """
    notes.check(order.out, order.token)
    before = finished(order, item)
    if before is not None and before == settled(order, item):
        return before  # by another process, in the meantime, or by one that was killed before it could tell
    known = isinstance(error, GsmaeError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    spent = int(getattr(error, "tries", 1))
    record = {
        **blank(order, item), "reason": reason, "stage": stage, "failure": _kind(error),
        "attempts": tries(before) + spent + order.spent.get(item.uid, 0), "run": {**(run or {}), "token": order.token},
    }  # fmt: skip
    trace = "".join(traceback.format_exception(error))
    if not known:
        record["traceback"] = trace
    if item.path.is_file():
        found = item.path.stat()
        record |= {"mesh_sha256": sha256(item.path), "mesh_bytes": found.st_size, "mesh_mtime_ns": found.st_mtime_ns}
    for kind, suffix in (("splats", ".ply"), ("points", ".npz")):
        (order.out / kind / f"{item.uid}{suffix}").unlink(missing_ok=True)
    with write_aside(order.out / "quarantine" / f"{item.uid}.txt") as path:
        told = {"object": item.uid, "mesh": item.path, "kind": record["failure"], "stage": stage, "reason": reason,
                "attempts": record["attempts"], "machine": (run or {}).get("machine", "")}  # fmt: skip
        path.write_text("".join(f"{k}: {v}\n" for k, v in told.items()) + f"\n{trace}", encoding="utf-8")
    return commit(order, item, record)


def commit_stray(order: Order, stray: Skipped, root: Path, taken: set[str]) -> dict[str, Any]:
    """A failed record for something in the collection that no source can read."""
    inside = stray.path.relative_to(root)
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in "_".join(inside.parts[1:]) or inside.name)
    category = inside.parts[0] if len(inside.parts) > 1 else ""
    uid = f"{category or 'skipped'}/{name}"
    # its name may be that of an object beside it: a folder of textures, for instance
    item = MeshItem(f"{uid}~" if uid in taken else uid, stray.path, category, "")
    record = {**blank(order, item), "stage": "source", "reason": f"{stray.path}: {stray.reason}"}
    log.warning("%s", record["reason"])
    write_json(path_of(order.out, item.uid), record)
    return record


def _kind(error: Exception) -> str:
    """One word for it: timeout, memory, oom, device, died, numeric, input; error where nobody foresaw it."""
    if hasattr(error, "kind"):
        return str(error.kind)  # type: ignore[attr-defined]
    if is_out_of_memory(error):
        return "oom"
    if is_device_fault(error):
        return "device"
    kinds = {"WorkerDied": "died", "OutOfMemory": "oom", "NumericError": "numeric"}
    return kinds.get(type(error).__name__, "input" if isinstance(error, GsmaeError) else "error")


def _same_mesh(item: MeshItem, record: dict[str, Any]) -> bool:
    """Whether the mesh file is the recorded one: by size and time, and by hash where only the time differs."""
    if not item.path.is_file():
        return record["mesh_bytes"] == 0
    found = item.path.stat()
    if found.st_size != record["mesh_bytes"]:
        return False
    return found.st_mtime_ns == record["mesh_mtime_ns"] or sha256(item.path) == record["mesh_sha256"]

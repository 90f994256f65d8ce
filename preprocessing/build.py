"""A collection of meshes -> a folder of splats, one record per object, whatever happens to some of them."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import logging
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gsmae.config import digest
from gsmae.errors import GsmaeError, InputError
from gsmae.files import read_json, sha256, sweep, write_json
from gsmae.locks import only_writer
from gsmae.progress import bar

from .engines import ENGINES
from .profiles import BuildConfig
from .sources import SOURCES, MeshItem, Skipped, detect, skipped

log = logging.getLogger(__name__)

SCHEMA = 1
VERSION = 1  # raise when the same configuration would give other splats
NOT_THE_OBJECTS_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE}
FRAME = "z-up: an OBJ's (x, y, z) is (x, -z, y) here, as in the released splats"
Parts = dict[str, dict[str, list[str]]]  # category -> part -> patterns of material and group names


@dataclass(frozen=True)
class BuildReport:
    """What a build ended with; `failures` counts the failed objects by stage and reason."""

    out: str
    objects: int
    done: int
    failed: int
    already: int
    seconds: float
    gaussians: int
    psnr: float
    failures: dict[str, int]


def build(
    root: str | Path,
    out: str | Path,
    config: BuildConfig,
    *,
    source: str = "auto",
    parts: Parts | None = None,
    engine: str = "local",
    workers: int = 1,
    limit: int = 0,
    seed: int = 0,
    retry: bool = False,
) -> BuildReport:
    """Build every object of `root` that is not built yet; safe to interrupt and to run again.

    root     a ShapeNet or ModelNet tree, or any folder of meshes by category
    limit    only the first so many objects, 0 = all
    retry    also objects that failed before
    Raises InputError where nothing can be built, or `out` holds a build of another configuration.
    """
    root, out = Path(root), Path(out)
    start = time.monotonic()
    if config.surface_distance and importlib.util.find_spec("open3d") is None:
        raise GsmaeError("surface distances need Open3D: pip install 'gsmae[full]'")
    name = detect(root) if source == "auto" else source
    items = list(SOURCES[name](root))
    if limit:
        items = items[:limit]
    identity = digest(config, {"parts": parts or {}, "seed": seed, "version": VERSION})
    with _only_builder(out):
        _open(out, identity, config, parts or {}, name, root, seed)
        taken = {item.uid for item in items}
        strays = [] if limit else [_commit_stray(out, s, root, identity, seed, taken) for s in skipped(root, name)]
        old = {item.uid: finished(out, item, identity) for item in items}
        todo = [i for i in items if (r := old[i.uid]) is None or (retry and r["status"] == "failed")]
        records = {uid: record for uid, record in old.items() if record is not None}
        already = len(items) - len(todo)
        shown = bar("build", "object", total=len(items), initial=already, smoothing=0.05)
        failed = sum(r["status"] == "failed" for r in records.values())
        work = partial(build_object, out=out, config=config, parts=parts or {}, identity=identity, seed=seed)
        for item, result in ENGINES[engine](work, todo, workers):
            if isinstance(result, OSError) and result.errno in NOT_THE_OBJECTS_FAULT:
                raise InputError(out, f"the build stopped: {result.strerror}", "run the same command when it is mended")
            if isinstance(result, Exception):
                result = _commit_failure(out, item, identity, seed, "process", result)
            records[item.uid] = result
            shown.update()
            failed += result["status"] == "failed"
            shown.set_postfix_str(f"{item.uid}{f', {failed} failed' if failed else ''}", refresh=False)
        shown.close()
    ours = [records[item.uid] for item in items] + strays
    good = [r for r in ours if r["status"] == "done"]
    return BuildReport(
        out=str(out),
        objects=len(ours),
        done=len(good),
        failed=len(ours) - len(good),
        already=already,
        seconds=round(time.monotonic() - start, 1),
        gaussians=sum(r["gaussians"] for r in good),
        psnr=round(sum(r["psnr"] for r in good) / len(good), 2) if good else 0.0,
        failures=dict(Counter(_cause(r) for r in ours if r["status"] == "failed").most_common()),
    )


def build_object(
    item: MeshItem, out: Path, config: BuildConfig, parts: Parts, identity: str, seed: int
) -> dict[str, Any]:
    """One object from mesh to committed record; a failure is a record too, with stage and reason."""
    from .objects import make  # torch and the renderers load in the worker, not in the parent's start

    stage = ""

    def entered(name: str) -> None:
        nonlocal stage
        stage = name

    start = time.monotonic()
    try:
        found = item.path.stat()
        made = make(item, out, config, parts.get(item.category, {}), object_seed(seed, item.uid), entered)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NOT_THE_OBJECTS_FAULT:
            raise
        return _commit_failure(out, item, identity, seed, stage, error)
    mesh = {"mesh_bytes": found.st_size, "mesh_mtime_ns": found.st_mtime_ns}
    record = {
        **_blank(item, identity, seed),
        "status": "done",
        **made,
        **mesh,
        "seconds": round(time.monotonic() - start, 2),
    }
    write_json(_record(out, item), record)
    return record


def finished(out: Path, item: MeshItem, identity: str) -> dict[str, Any] | None:
    """The record of an object that need not be built again, or None.

    It counts when it was made with the same configuration from the same mesh file and its splat is there in full
    length; `gsmae check` compares the splat's hash. A failure counts until the mesh changes.
    """
    path = _record(out, item)
    if not path.exists():
        return None
    try:
        record = read_json(path)
        if record["config_hash"] != identity:
            return None
        if not _same_mesh(item, record):
            return None
        if record["status"] == "failed":
            return record
        return record if (out / "splats" / f"{item.uid}.ply").stat().st_size == record["bytes"] else None
    except (InputError, KeyError, TypeError, OSError):
        return None


def _cause(record: dict[str, Any]) -> str:
    """Stage and reason without the file's own name, so that equal failures can be counted."""
    return f"{record['stage']}: {record['reason'].removeprefix(record['mesh'] + ': ')}"


def _same_mesh(item: MeshItem, record: dict[str, Any]) -> bool:
    """Whether the mesh file is the recorded one: by size and time, and by hash where only the time differs."""
    if not item.path.is_file():
        return record["mesh_bytes"] == 0
    found = item.path.stat()
    if found.st_size != record["mesh_bytes"]:
        return False
    return found.st_mtime_ns == record["mesh_mtime_ns"] or sha256(item.path) == record["mesh_sha256"]


def object_seed(seed: int, uid: str) -> int:
    """A seed of its own for each object, the same wherever and in whichever order it is built."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{uid}".encode()).digest()[:4], "big")


def _blank(item: MeshItem, identity: str, seed: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA, "uid": item.uid, "category": item.category, "split": item.split, "status": "failed",
        "reason": "", "stage": "", "mesh": str(item.path), "mesh_sha256": "", "mesh_bytes": 0, "mesh_mtime_ns": 0,
        "mesh_to_splat": None,
        "gaussians": 0, "psnr": None, "ssim": None, "psnr_val": None, "iterations": 0, "seconds": 0.0, "seed": seed,
        "config_hash": identity, "sha256": "", "bytes": 0, "part_names": [], "warnings": [],
    }  # fmt: skip


def _commit_failure(
    out: Path, item: MeshItem, identity: str, seed: int, stage: str, error: Exception
) -> dict[str, Any]:
    done = finished(out, item, identity)
    if done is not None and done["status"] == "done":
        return done  # by another process, in the meantime
    known = isinstance(error, GsmaeError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    record = {**_blank(item, identity, seed), "reason": reason, "stage": stage}
    if not known:
        record["traceback"] = "".join(traceback.format_exception(error))
    if item.path.is_file():
        found = item.path.stat()
        record |= {"mesh_sha256": sha256(item.path), "mesh_bytes": found.st_size, "mesh_mtime_ns": found.st_mtime_ns}
    (out / "splats" / f"{item.uid}.ply").unlink(missing_ok=True)
    write_json(_record(out, item), record)
    return record


def _commit_stray(out: Path, stray: Skipped, root: Path, identity: str, seed: int, taken: set[str]) -> dict[str, Any]:
    """A failed record for something in the collection that no source can read."""
    inside = stray.path.relative_to(root)
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in "_".join(inside.parts[1:]) or inside.name)
    category = inside.parts[0] if len(inside.parts) > 1 else ""
    uid = f"{category or 'skipped'}/{name}"
    # its name may be that of an object beside it: a folder of textures, for instance
    item = MeshItem(f"{uid}~" if uid in taken else uid, stray.path, category, "")
    record = {**_blank(item, identity, seed), "stage": "source", "reason": f"{stray.path}: {stray.reason}"}
    log.warning("%s", record["reason"])
    write_json(_record(out, item), record)
    return record


def _record(out: Path, item: MeshItem) -> Path:
    return out / "records" / f"{item.uid}.json"


def _open(out: Path, identity: str, config: BuildConfig, parts: Parts, source: str, root: Path, seed: int) -> None:
    """Write build.json, or find that this folder belongs to another configuration."""
    path = out / "build.json"
    if path.exists():
        before = read_json(path)
        if before.get("config_hash") != identity:
            raise InputError(
                out,
                f"holds a build with another configuration ({before.get('config_hash')}, now {identity})",
                "choose another --out, or remove this folder",
            )
    sweep(out)
    write_json(
        path,
        {"schema": SCHEMA, "frame": FRAME, "source": source, "root": str(root.resolve()), "seed": seed,
         "config_hash": identity, "config": config.model_dump(mode="json"), "part_patterns": parts},
    )  # fmt: skip
    if parts:
        write_json(out / "parts.json", {category: list(names) for category, names in sorted(parts.items())})


@contextmanager
def _only_builder(out: Path) -> Iterator[None]:
    """Refuse a second builder on the same folder, and a folder that cannot be written."""
    with ExitStack() as held:
        try:
            held.enter_context(only_writer(out, "build", keep=True))
        except OSError as error:
            raise InputError(out, f"cannot be written: {error.strerror}") from None
        yield

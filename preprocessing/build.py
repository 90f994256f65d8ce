"""A collection of meshes -> a folder of splats, one record per object, whatever happens to some of them."""

from __future__ import annotations

import importlib.util
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from gsmae.config import digest
from gsmae.errors import GsmaeError, InputError
from gsmae.files import read_json, sweep, write_json
from gsmae.locks import only_writer
from gsmae.progress import bar

from .building import ledgers, notes
from .building.jobs import build_objects
from .building.limits import ObjectLimits
from .building.records import MAX_TRIES, SCHEMA, Order, Parts, commit_failure, commit_stray, fault, finished, tries
from .engines import ENGINES, Resources
from .profiles import BuildConfig
from .sources import SOURCES, MeshItem, detect, skipped

VERSION = 1  # raise when the same configuration would give other splats
FRAME = "z-up: an OBJ's (x, y, z) is (x, -z, y) here, as in the released splats"


@dataclass(frozen=True)
class BuildReport:
    """What a build ended with.

    already   objects that were done or failed before and were not touched
    given_up  of the failed ones, those that have been tried as often as anything is
    failures  the failed objects, counted by stage and reason
    """

    out: str
    objects: int
    done: int
    failed: int
    already: int
    given_up: int
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
    workers: int | None = None,
    resources: Resources | None = None,
    limits: ObjectLimits | None = None,
    limit: int = 0,
    seed: int = 0,
    retry: bool = False,
    failed: str = "",
    anyway: bool = False,
    missing: bool = True,
    batch: int = 1,
    device: str = "cpu",
    launch: int = 0,
    kernels: str = "auto",
    make: Callable[..., dict[str, Any]] | None = None,
) -> BuildReport:
    """Build every object of `root` that is not built yet; safe to interrupt and to run again.

    root       a ShapeNet or ModelNet tree, or any folder of meshes by category
    resources  what an engine may use; `workers`, jobs side by side, is short for the commonest of it
    limits     of one object
    limit      only the first so many objects, 0 = all
    retry      also objects that failed before, if kind, stage or reason match the expression `failed`
    anyway     even those that have been tried MAX_TRIES times
    missing    false: nothing but what is tried again
    batch      objects in one job
    device     "cpu" or "cuda"
    launch     objects that are fitted at once, as memory allows; 0 = one by one. It is then the batch, too
    kernels    that fit many at once: a name in `gsmae.ops.batches.BACKENDS`, or "auto"
    make       in place of `objects.make`; for tests and trials
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
    identity = identity_of(config, parts or {}, seed)
    limits = limits or ObjectLimits()
    pattern = re.compile(failed)
    with _only_builder(out):
        _open(out, identity, config, parts or {}, name, root, seed)
        batch = launch or batch
        if launch and kernels == "gsplat" and engine == "local":
            # compiles for many minutes: once, before every worker would begin to
            import_module("gsmae.ops.gsplat").prepare()
        order = Order(out, config, parts or {}, identity, seed, uuid4().hex, limits, make, device, launch, kernels)
        taken = {item.uid for item in items}
        sums = _Sums()
        for stray in [] if limit else skipped(root, name):
            sums.add(commit_stray(order, stray, root, taken))
        todo, strays = [], sums.failed
        for item in items:
            record = finished(order, item)
            if record is None:
                todo += [item] if missing else []
            elif retry and _again(record, pattern, anyway):
                todo.append(item)
            else:
                sums.add(record)
        already = sums.done + sums.failed - strays
        given = resources or Resources()
        wanted = {"seconds": limits.seconds * batch, "memory": limits.memory * 2**30}
        given = given.model_copy(update=wanted | ({} if workers is None else {"workers": workers}))
        notes.announce(out, order.token, engine=engine, objects=already + len(todo), todo=len(todo))
        try:
            for record in _worked(engine, order, todo, given, batch, already, sums):
                sums.add(record)
        finally:
            notes.leave(out)
    return BuildReport(
        out=str(out),
        objects=sums.done + sums.failed,
        done=sums.done,
        failed=sums.failed,
        already=already,
        given_up=sums.given_up,
        seconds=round(time.monotonic() - start, 1),
        gaussians=sums.gaussians,
        psnr=round(sums.psnr / sums.done, 2) if sums.done else 0.0,
        failures=dict(sums.failures.most_common()),
    )


def identity_of(config: BuildConfig, parts: Parts, seed: int) -> str:
    """Digest of everything that decides what the splats of a build look like."""
    return digest(config, {"parts": parts, "seed": seed, "version": VERSION})


class _Sums:
    """What is told about a build, without keeping its records."""

    def __init__(self) -> None:
        self.done = self.failed = self.given_up = self.gaussians = 0
        self.psnr = 0.0
        self.failures: Counter[str] = Counter()

    def add(self, record: dict[str, Any]) -> None:
        if record["status"] == "done":
            self.done += 1
            self.gaussians += record["gaussians"]
            self.psnr += record["psnr"]
        else:
            self.failed += 1
            self.given_up += tries(record) >= MAX_TRIES
            self.failures[fault(record)] += 1


def _worked(
    engine: str, order: Order, todo: list[MeshItem], resources: Resources, batch: int, already: int, sums: _Sums
) -> Iterator[dict[str, Any]]:
    """The records of the objects as the engine gets them done, with a bar."""
    shown = bar("build", "object", total=already + len(todo), initial=already, smoothing=0.05)
    follower, seen = ledgers.Follower(order.out), 0

    def tick() -> None:  # a Slurm task tells nothing until it ends, but its workers' ledgers do
        nonlocal seen
        if engine == "slurm":
            seen += len(follower.look())
            shown.update(max(0, already + seen - shown.n))

    more = {"folder": order.out / "slurm"} if engine == "slurm" else {}
    work = partial(build_objects, order=order)
    left = [tuple(todo[i : i + batch]) for i in range(0, len(todo), batch)]
    ended = 0
    try:
        while left:
            jobs, left = left, []
            for job, result in ENGINES[engine](work, jobs, resources, tick, **more):
                if isinstance(result, notes.Superseded):
                    raise InputError(order.out, "another build has taken over this folder", "stop it, or wait for it")
                if isinstance(result, OSError):
                    raise result
                if isinstance(result, Exception) and len(job) > 1:
                    left += [(item,) for item in job]  # one of them is at fault; alone, it takes no other with it
                    continue
                if isinstance(result, Exception):
                    stage = notes.last_stage(order.out, job[0].uid) or "process"
                    result = [commit_failure(order, job[0], stage, result, {"machine": ledgers.machine()})]
                for record in result:
                    ended += 1
                    yield record
                    shown.update(max(0, already + ended - shown.n))
                    told = f", {sums.failed} failed" if sums.failed else ""
                    shown.set_postfix_str(f"{record['uid']}{told}", refresh=False)
    finally:
        shown.close()


def _again(record: dict[str, Any], pattern: re.Pattern[str], anyway: bool) -> bool:
    """Whether an object is to be tried again."""
    told = f"{record.get('failure', '')}: {record['stage']}: {record['reason']}"
    return record["status"] == "failed" and bool(pattern.search(told)) and (anyway or tries(record) < MAX_TRIES)


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
    """Refuse a second builder on the same folder, and say which file could not be read or written."""
    with ExitStack() as held:
        try:
            held.enter_context(only_writer(out, "build", keep=True))
        except OSError as error:
            raise InputError(out, f"cannot be written: {error.strerror}") from None
        try:
            yield
        except OSError as error:
            cause = f"the build stopped: {error.strerror or error}"
            raise InputError(error.filename or out, cause, "run the same command when it is mended") from error

"""A collection of meshes -> a folder of splats, one record per object, whatever happens to some of them."""

from __future__ import annotations

import importlib.util
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from gsmae.config import digest
from gsmae.errors import GsmaeError, InputError
from gsmae.files import read_json, sweep, write_json
from gsmae.locks import only_writer

from .building import notes
from .building.limits import ObjectLimits
from .building.records import MAX_TRIES, SCHEMA, Order, Parts, commit_stray, fault, finished, tries
from .building.rounds import worked
from .engines import Resources
from .profiles import BuildConfig
from .sources import SOURCES, detect, skipped

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
    if engine != "local":  # its workers may begin in another folder
        root, out = root.absolute(), out.absolute()
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
    batch = launch or batch
    order = Order(out, config, parts or {}, identity, seed, uuid4().hex, limits, make, device, launch, kernels)
    with _only_builder(out), _in_charge(order, engine):
        _open(order, name, root)
        if launch and kernels == "gsplat" and engine == "local":
            # compiles for many minutes: once, before every worker would begin to
            import_module("gsmae.ops.gsplat").prepare()
        taken = {item.uid for item in items}
        sums = _Sums()
        for stray in [] if limit else skipped(root, name):
            sums.add(commit_stray(order, stray, root, taken))
        todo, tried, strays = [], {}, sums.failed
        for item in items:
            record = finished(order, item)
            if record is None:
                todo += [item] if missing else []
            elif retry and _again(record, pattern, anyway):
                todo.append(item)
                tried[item.uid] = tries(record)
            else:
                sums.add(record)
        already = sums.done + sums.failed - strays
        given = resources or Resources()
        wanted = {"device": device, "seconds": limits.seconds, "memory": limits.memory * 2**30}
        given = given.model_copy(update=wanted | ({} if workers is None else {"workers": workers}))
        notes.announce(out, order.token, engine=engine, objects=already + len(todo), todo=len(todo))

        def told() -> str:
            return f", {sums.failed} failed" if sums.failed else ""

        for record in worked(engine, order, todo, given, batch=batch, tried=tried, already=already, told=told):
            sums.add(record)
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


def _again(record: dict[str, Any], pattern: re.Pattern[str], anyway: bool) -> bool:
    """Whether an object is to be tried again."""
    told = f"{record.get('failure', '')}: {record['stage']}: {record['reason']}"
    return record["status"] == "failed" and bool(pattern.search(told)) and (anyway or tries(record) < MAX_TRIES)


@contextmanager
def _in_charge(order: Order, engine: str) -> Iterator[None]:
    """Take over a folder, unless it belongs to another configuration: before anything is changed in it."""
    path = order.out / "build.json"
    before = read_json(path).get("config_hash") if path.exists() else order.identity
    if before != order.identity:
        raise InputError(
            order.out,
            f"holds a build with another configuration ({before}, now {order.identity})",
            "choose another --out, or remove this folder",
        )
    notes.announce(order.out, order.token, engine=engine)
    try:
        yield
    finally:
        notes.leave(order.out)


def _open(order: Order, source: str, root: Path) -> None:
    """Remove what a killed build left, and say in build.json what this one makes."""
    sweep(order.out)
    write_json(
        order.out / "build.json",
        {"schema": SCHEMA, "frame": FRAME, "source": source, "root": str(root.resolve()), "seed": order.seed,
         "config_hash": order.identity, "config": order.config.model_dump(mode="json"), "part_patterns": order.parts},
    )  # fmt: skip
    if order.parts:
        write_json(order.out / "parts.json", {category: list(names) for category, names in sorted(order.parts.items())})


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
            where = f" on {error.host}" if hasattr(error, "host") else ""  # type: ignore[attr-defined]
            cause = f"the build stopped{where}: {error.strerror or error}"
            raise InputError(error.filename or out, cause, "run the same command when it is mended") from error

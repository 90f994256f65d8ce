"""Splats to shards: `pack` writes an immutable folder once, `verify` checks every byte of it."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from gsmae import __version__
from gsmae.errors import InputError
from gsmae.files import TEMPORARY, sha256, sweep, write_aside, write_json
from gsmae.gaussians import Gaussians
from gsmae.locks import LOCK, only_writer
from gsmae.ply import read_ply_bytes
from gsmae.progress import bar

from . import draws
from .checks import check, verify
from .manifest import Build, read_build
from .packs import INDEX, PACK, SHARD, Failure, PackInfo, index_row, read_pack, write_index
from .plans import Item, Plan, plan_pack, shard_inputs
from .shardfile import Head, Packed, Shard, quantized, write_shard
from .usable import STAGE, usable, without_bad_rows

__all__ = ["PackReport", "check", "pack", "raw_rows", "verify"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackReport:
    """What a call of `pack` did and what the pack holds.

    already         True when the folder held this very pack and nothing was done
    reused          shards taken over from an interrupted run
    splits          objects of each split; `carved` of them were moved from train to val, `assigned` had no split
    failed          objects that the builds could not fit, by stage and reason in `failures`; counted, not packed
    unusable        objects of which no Gaussian could be kept (`bad_rows`), also counted in `failed`
    dropped         Gaussians left out for want of finite values, of `dropped_from` objects; pack.json has each object's
    below_psnr      objects left out by `min_psnr`
    without_points  objects without surface samples
    leaks           meshes that occur in more than one split
    """

    out: str
    objects: int
    gaussians: int
    points: int
    classes: int
    parts: int
    shards: int
    bytes: int
    already: bool
    reused: int
    splits: dict[str, int]
    carved: int
    assigned: int
    failed: int
    failures: dict[str, int]
    unusable: int
    dropped: int
    dropped_from: int
    below_psnr: int
    without_points: int
    leaks: int


def pack(
    builds: Sequence[str | Path | Build] | str | Path | Build,
    out: str | Path,
    *,
    objects_per_shard: int = 512,
    quantize: Literal["u16"] | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    min_psnr: float | None = None,
    bad_rows: Literal["refuse", "drop"] = "refuse",
    progress: bool = False,
) -> PackReport:
    """Pack the finished objects of one or several builds into immutable HDF5 shards.

    The rows of every object are brought into one random order that depends on (seed, uid) alone. A run of consecutive
    rows of a shuffled object is then a uniform sample of it without replacement, and costs one read. Equal input gives
    equal bytes (with the same versions of h5py and pyarrow). The folder is a pack once pack.json is there: a killed run
    leaves none, and the same call finishes it, taking whole shards over; the same call on a finished pack does nothing.

    builds             build folders, or `Build`s as `data.released` makes them
    objects_per_shard  one shard is held in memory while it is written (230 MB for 512 objects of 8,000 Gaussians)
    quantize           "u16": 2 bytes a value between the object's minimum and maximum (error at most 1/131070 of that
                       range, 28 bytes a Gaussian of SH degree 0) instead of float32
    val_fraction       share of train moved to val where no val exists; see `data.splits.assign`
    min_psnr           leave out objects fitted worse, or of unknown quality
    bad_rows           Gaussians with NaN, infinite or absurd values (see `data.usable`): "refuse" the splat, or "drop"
                       and count them. A splat without any other is then a failed object. Reads every splat twice. Where
                       there are none, both give the same bytes

    Raises InputError: not a build, nothing to pack, one uid twice, part names that disagree, a splat that differs from
    its record or is broken, a folder that holds something else, a full or failing disk.
    """
    if objects_per_shard < 1:
        raise ValueError(f"objects_per_shard is {objects_per_shard}, expected at least 1")
    if quantize not in (None, "u16"):
        raise ValueError(f"quantize is {quantize!r}, expected 'u16' or None")
    if bad_rows not in ("refuse", "drop"):
        raise ValueError(f"bad_rows is {bad_rows!r}, expected 'refuse' or 'drop'")
    out = Path(out)
    sources = [builds] if isinstance(builds, (str, Path, Build)) else list(builds)
    loaded = [b if isinstance(b, Build) else read_build(b) for b in sources]
    options = {
        "objects_per_shard": objects_per_shard,
        "quantize": quantize or "",
        "seed": seed,
        "val_fraction": val_fraction,
        "min_psnr": min_psnr,
    }
    dropped: dict[str, int] = {}
    if bad_rows == "drop":
        loaded, dropped = without_bad_rows(loaded, progress=progress)
    plan = plan_pack(loaded, options, dropped)
    for leak in plan.leaks[:5]:
        log.warning("one mesh in the splits %s: %s", " and ".join(leak.splits), ", ".join(leak.uids))
    if (out / PACK).exists():
        return _already(out, plan)
    if out.exists() and not out.is_dir():
        raise InputError(out, "is a file", "name a folder")
    try:
        with only_writer(out, "pack"):
            if (out / PACK).exists():  # another one has just finished it
                return _already(out, plan)
            return _pack(out, plan, loaded, options, progress)
    except OSError as error:
        cure = "see that it is writable and has room, and run the same command again"
        cause = f"reading or writing failed: {error.strerror or error}"
        raise InputError(error.filename or out, cause, cure) from error


def raw_rows(gaussians: Gaussians) -> np.ndarray:
    """The raw values of a splat as one matrix in the column order of `shardfile.column_names`: [N, C] float32."""
    g = gaussians
    parts = [g.means, g.quats, g.log_scales, g.logit_opacities[:, None], g.sh.flatten(1)]
    return np.concatenate([p.detach().cpu().numpy() for p in parts], axis=1).astype(np.float32, copy=False)


def _pack(out: Path, plan: Plan, builds: list[Build], options: dict, progress: bool) -> PackReport:
    """Write shards, index and pack.json, in this order."""
    _prepare(out)
    objects_per_shard = options["objects_per_shard"]
    chunks = [plan.items[k : k + objects_per_shard] for k in range(0, len(plan.items), objects_per_shard)]
    shards, rows, reused, without = [], [], 0, 0
    with bar("pack", "object", total=len(plan.items), disable=not progress) as shown:
        for number, items in enumerate(chunks):
            file = out / SHARD.format(number)
            shard = _taken_over(file, shard_inputs(plan, items, options))
            reused += shard is not None
            if shard is None:
                shard = _write(file, plan, items, options, shown)
            else:
                shown.update(len(items))
            for row, item in enumerate(items):
                rows.append(index_row(shard, number, row, item.source, item.record.psnr))
                without += rows[-1]["points"] == 0
            counts = {"objects": len(items), "gaussians": int(shard.offsets[-1])}
            shards.append({"file": file.name, "sha256": sha256(file), "bytes": file.stat().st_size, **counts})
    for file in out.glob("shard_*.h5"):  # of an interrupted pack with other options
        if file.name not in {s["file"] for s in shards}:
            file.unlink()
    index = write_index(out / INDEX, rows)
    rule = {kind: list(plan.assignment.sources.values()).count(kind) for kind in ("official", "carved", "assigned")}
    info = PackInfo.model_validate(
        {
            "schema": 1,
            "generator": f"gsmae {__version__}",
            **{k: options[k] for k in ("seed", "quantize", "objects_per_shard", "min_psnr")},
            "config_hash": plan.config_hash,
            "inputs": plan.inputs,
            "sources": [
                {"layout": b.layout, "config_hash": b.config_hash, "seed": b.seed, "objects": len(b.done)}
                for b in sorted(builds, key=lambda b: (b.config_hash, b.seed, len(b.done)))
            ],
            "class_names": plan.class_names,
            "part_names": plan.part_names,
            "objects": len(rows),
            "gaussians": sum(s["gaussians"] for s in shards),
            "points": sum(r["points"] for r in rows),
            "splits": plan.assignment.counts(),
            "split_rule": {"seed": options["seed"], "val_fraction": options["val_fraction"], **rule},
            "below_psnr": plan.below,
            "without_points": without,
            "leaks": len(plan.leaks),
            "failed": [Failure(uid=r.uid, stage=r.stage or "", reason=r.reason or "") for r in plan.failed],
            "dropped": plan.dropped,
            "index": index,
            "shards": shards,
        }
    )
    write_json(out / PACK, info.model_dump(mode="json", by_alias=True))
    return _report(out, info, already=False, reused=reused)


def _already(out: Path, plan: Plan) -> PackReport:
    """The report of a pack that is there, if it is the one that was asked for."""
    info = read_pack(out)
    if info.inputs != plan.inputs:
        raise InputError(out, "holds a pack of other objects or options", "name another folder, or delete this one")
    return _report(out, info, already=True, reused=0)


def _report(out: Path, info: PackInfo, *, already: bool, reused: int) -> PackReport:
    return PackReport(
        out=str(out),
        objects=info.objects,
        gaussians=info.gaussians,
        points=info.points,
        classes=len(info.class_names),
        parts=sum(len(names) for names in info.part_names.values()),
        shards=len(info.shards),
        bytes=sum(s.bytes for s in info.shards),
        already=already,
        reused=reused,
        splits={str(k): v for k, v in info.splits.items()},
        carved=info.split_rule.carved,
        assigned=info.split_rule.assigned,
        failed=len(info.failed),
        failures=dict(Counter(f"{f.stage}: {f.reason}" for f in info.failed)),
        unusable=sum(f.stage == STAGE for f in info.failed),
        dropped=sum(info.dropped.values()),
        dropped_from=len(info.dropped),
        below_psnr=info.below_psnr,
        without_points=info.without_points,
        leaks=info.leaks,
    )


def _prepare(out: Path) -> None:
    """Refuse a folder with foreign files; sweep what killed writers left."""
    for path in sorted(out.iterdir()):
        ours = path.name.startswith(TEMPORARY) or path.match("shard_*.h5") or path.name in (INDEX, LOCK)
        if not ours:
            raise InputError(out, f"is not empty: it holds '{path.name}'", "name an empty or new folder")
    sweep(out)


def _taken_over(file: Path, inputs: str) -> Shard | None:
    """A whole shard that an interrupted run made from the same input, or None."""
    if not file.is_file():
        return None
    try:
        shard = Shard(file)
    except InputError:
        return None
    return shard if shard.head.inputs == inputs else None


def _write(file: Path, plan: Plan, items: Sequence[Item], options: dict, shown: tqdm) -> Shard:
    """Write one shard aside, read it back, compare, and give it its name."""
    objects = []
    for item in items:
        objects.append(_packed(item, plan, options))
        shown.update()
    head = Head(
        config_hash=plan.config_hash,
        seed=options["seed"],
        class_names=plan.class_names,
        part_names=plan.part_names,
        degree=max(o.degree for o in objects),
        quantize=options["quantize"],
        inputs=shard_inputs(plan, items, options),
        generator=f"gsmae {__version__}",
    )
    with write_aside(file) as temporary:
        write_shard(temporary, objects, head)
        written = Shard(temporary)
        for i, o in enumerate(objects):
            same = written.uids[i] == o.uid and written.sha256[i] == o.sha256
            same = same and np.array_equal(written.stored(i)[0][:, : o.rows.shape[1]], o.rows)
            points = written.points(i)
            if not same or any(not np.array_equal(points[name], values) for name, values in o.points.items()):
                raise InputError(file, f"'{o.uid}' reads back differently", "the disk is faulty or full; try another")
    return Shard(file)


def _packed(item: Item, plan: Plan, options: dict) -> Packed:
    """Read one object, check it against its record, and bring its rows into their random order."""
    record, uid, seed = item.record, item.record.uid, options["seed"]
    content = item.splat.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != item.sha256:
        cause = f"differs from its record (sha256 {digest[:12]}, recorded {item.sha256[:12]})"
        raise InputError(str(item.splat), cause, "delete its record and run `gsmae build` again")
    gaussians = read_ply_bytes(content, item.splat, finite=not item.dropped)
    if record.gaussians is not None and record.gaussians != len(gaussians):
        cause = f"has {len(gaussians)} Gaussians, its record says {record.gaussians}"
        raise InputError(str(item.splat), cause, "delete its record and run `gsmae build` again")
    good = usable(gaussians)
    if len(good) - int(good.sum()) != item.dropped:
        cause = f"{len(good) - int(good.sum())} of {len(good)} Gaussians are too far away or too large to compute with"
        raise InputError(str(item.splat), cause, "remove those rows, as `gsmae pack --bad-rows drop` does")
    rows = raw_rows(gaussians[good] if item.dropped else gaussians)
    rows = rows[draws.permutation(len(rows), draws.key(seed, "rows", uid))]
    low = high = None
    if options["quantize"]:
        rows, low, high = quantized(rows)
    points = {}
    if item.points is not None:
        points = item.points.read(len(plan.part_names.get(record.category, ())))
        order = draws.permutation(len(points["points"]), draws.key(seed, "points", uid))
        points = {name: values[order] for name, values in points.items()}
    category = record.category
    return Packed(uid, category, item.split, item.label, digest, gaussians.degree, rows, low, high, points)

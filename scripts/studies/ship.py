"""A study's packs made small enough to be sent to another machine, and packs again there.

    python scripts/studies/ship.py reduce PACK FILE.npz [--rows 2048] [--no-parts]
    python scripts/studies/ship.py expand FILE.npz PACK
    python scripts/studies/ship.py compare PACK EXPANDED        value by value; an error where one is too far off

Of each object the first ROWS rows are kept (rows lie in random order, so they are a uniform sample), positions with 16
bits a value and the other columns with 8 between the object's minimum and maximum; quaternions are normalised before.
A column that never changes costs nothing. Surface points and their parts are kept of objects of classes with
parts, with 16 bits a value; normals and colours are not. Degree 0 only. Objects, splits and labels are those of PACK.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from data.packs import (
    INDEX,
    PACK,
    SHARD,
    IndexEntry,
    PackInfo,
    ShardEntry,
    index_row,
    read_index,
    read_pack,
    write_index,
)
from data.shardfile import Head, Packed, Shard, write_shard
from gsmae.config import digest
from gsmae.files import sha256, write_aside, write_json

TYPES = {"uid": "U", "sha256": "U", "split_source": "U", "category": "U", "label": "i8", "split": "U", "psnr": "f8"}
COLUMNS = 14  # x y z, rot wxyz, log scales, logit opacity, sh of degree 0
QUATS = slice(3, 7)


def squeezed(values: np.ndarray, kind: str, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[n, C] between low and high [C] as unsigned integers."""
    span = np.where(high > low, high.astype(np.float64) - low, 1)
    return np.rint((values - low.astype(np.float64)) / span * np.iinfo(kind).max).astype(kind)


def spread(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The inverse, float32."""
    return (low + values * ((high.astype(np.float64) - low) / np.iinfo(values.dtype).max)).astype(np.float32)


def reduce(pack: Path, out: Path, rows: int, parts_too: bool) -> None:
    info = read_pack(pack)
    if not parts_too:
        info = info.model_copy(update={"part_names": {}})
    index = read_index(pack, info)
    shards = [Shard(pack / entry.file) for entry in info.shards]
    if any(shard.head.degree for shard in shards):
        raise SystemExit(f"{pack}: SH degree 0 only")
    fine, coarse, ranges, points, limits, parts, counts, point_counts = [], [], [], [], [], [], [], []
    for number, row, category in zip(index.shard, index.row, index.category, strict=True):
        values = shards[number].rows(int(row), 0, rows)
        values[:, QUATS] /= np.linalg.norm(values[:, QUATS], axis=1, keepdims=True)
        low, high = values.min(axis=0), values.max(axis=0)
        fine.append(squeezed(values[:, :3], "u2", low[:3], high[:3]))
        coarse.append(squeezed(values[:, 3:], "u1", low[3:], high[3:]))
        ranges.append(np.stack([low, high]))
        counts.append(len(values))
        surface = shards[number].points(int(row)) if info.part_names.get(category) else None
        point_counts.append(len(surface["points"]) if surface else 0)
        if surface and len(surface["points"]):
            box = np.stack([surface["points"].min(axis=0), surface["points"].max(axis=0)])
            points.append(squeezed(surface["points"], "u2", *box))
            parts.append(surface["point_parts"].astype("i1"))
            limits.append(box)
    coarse = np.concatenate(coarse)
    varied = [k for k in range(coarse.shape[1]) if (coarse[:, k] != coarse[0, k]).any()]
    meta = {
        "info": info.model_dump(mode="json", by_alias=True),
        "rows": rows,
        "constant": coarse[0].tolist(),
        "varied": varied,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out, meta=np.array(json.dumps(meta)), fine=np.concatenate(fine).T, coarse=coarse[:, varied].T,
        ranges=np.stack(ranges), counts=np.array(counts), point_counts=np.array(point_counts),
        points=np.concatenate(points or [np.zeros((0, 3), "u2")]).T, parts=np.concatenate(parts or [np.zeros(0, "i1")]),
        limits=np.array(limits, dtype=np.float32).reshape(-1, 2, 3),
        **{f"index_{name}": getattr(index, name).astype(kind) for name, kind in TYPES.items()},
    )  # fmt: skip
    print(f"{out}: {len(counts):,} objects, {sum(counts):,} rows, {out.stat().st_size / 2**20:.1f} MiB")


def expand(file: Path, out: Path) -> None:
    with np.load(file, allow_pickle=False) as stored:
        values = {name: stored[name] for name in stored.files}
    meta = json.loads(str(values["meta"]))
    info = PackInfo.model_validate(meta["info"])
    inputs = digest({"inputs": info.inputs, "rows": meta["rows"], "shipped": 1})
    coarse = np.empty((values["fine"].shape[1], COLUMNS - 3), dtype=np.uint8)
    coarse[:] = meta["constant"]
    coarse[:, meta["varied"]] = values["coarse"].T
    firsts = np.concatenate([[0], np.cumsum(values["counts"])])
    point_firsts = np.concatenate([[0], np.cumsum(values["point_counts"])])
    ranges, found, number = values["ranges"], [], 0
    for k in range(len(values["counts"])):
        mine, (low, high) = slice(firsts[k], firsts[k + 1]), ranges[k]
        rows = np.empty((mine.stop - mine.start, COLUMNS), dtype=np.float32)
        rows[:, :3] = spread(values["fine"].T[mine], low[:3], high[:3])
        rows[:, 3:] = spread(coarse[mine], low[3:], high[3:])
        points = {}
        if values["point_counts"][k]:
            there = slice(point_firsts[k], point_firsts[k + 1])
            points["points"] = spread(values["points"].T[there], *values["limits"][number])
            points["point_normals"] = np.zeros_like(points["points"])
            points["point_colors"] = np.zeros(points["points"].shape, dtype=np.uint8)
            points["point_parts"] = values["parts"][there].astype(np.int16)
            number += 1
        uid, category, split, sha = (str(values[f"index_{n}"][k]) for n in ("uid", "category", "split", "sha256"))
        found.append(Packed(uid, category, split, int(values["index_label"][k]), sha, 0, rows, points=points))
    head = Head(
        config_hash=info.config_hash, seed=info.seed, class_names=info.class_names, part_names=info.part_names,
        degree=0, quantize="", inputs=inputs, generator=info.generator,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with write_aside(out / SHARD.format(0)) as temporary:
        write_shard(temporary, found, head)
    shard = Shard(out / SHARD.format(0))
    psnr = [None if np.isnan(p) else float(p) for p in values["index_psnr"]]
    entries = [
        index_row(shard, 0, k, str(values["index_split_source"][k]), psnr[k]) for k in range(len(found))
    ]  # fmt: skip
    write_index(out / INDEX, entries)
    gaussians, points = int(values["counts"].sum()), int(values["point_counts"].sum())
    files = [out / INDEX, shard.path]
    sizes = [{"file": f.name, "sha256": sha256(f), "bytes": f.stat().st_size} for f in files]
    made = info.model_copy(update={
        "inputs": inputs, "gaussians": gaussians, "points": points, "objects_per_shard": len(found), "quantize": "",
        "without_points": int((values["point_counts"] == 0).sum()), "index": IndexEntry(**sizes[0]),
        "shards": (ShardEntry(**sizes[1], objects=len(found), gaussians=gaussians),),
    })  # fmt: skip
    write_json(out / PACK, made.model_dump(mode="json", by_alias=True))
    print(f"{out}: {len(found):,} objects, {gaussians:,} rows, {points:,} surface points")


def compare(pack: Path, expanded: Path) -> None:
    """Refuse an expanded pack that differs from what it was made of by more than half a step of its integers."""
    infos = [read_pack(path) for path in (pack, expanded)]
    theirs, ours = (read_index(path, info) for path, info in zip((pack, expanded), infos, strict=True))
    for name in TYPES:
        if name not in ("sha256", "psnr") and list(getattr(theirs, name)) != list(getattr(ours, name)):
            raise SystemExit(f"{expanded}: column {name} of the index is not that of {pack}")
    shards = [[Shard(p / e.file) for e in i.shards] for p, i in zip((pack, expanded), infos, strict=True)]
    steps = np.r_[np.full(3, np.iinfo("u2").max), np.full(COLUMNS - 3, np.iinfo("u1").max)]
    worst, rows, surface = np.zeros(COLUMNS), 0, 0
    for k, uid in enumerate(ours.uid):
        made = shards[1][int(ours.shard[k])].rows(int(ours.row[k]), 0, int(ours.gaussians[k]))
        was = shards[0][int(theirs.shard[k])].rows(int(theirs.row[k]), 0, len(made))
        was[:, QUATS] /= np.linalg.norm(was[:, QUATS], axis=1, keepdims=True)
        span = np.ptp(was, axis=0).astype(np.float64)
        off = np.abs(made - was) / np.maximum(span / steps, 1e-6)  # rounding of float32 counts as no step
        worst, rows = np.maximum(worst, off.max(axis=0)), rows + len(made)
        if infos[1].part_names.get(ours.category[k]):
            old, new = (s[int(i.shard[k])].points(int(i.row[k])) for s, i in zip(shards, (theirs, ours), strict=True))
            same = (old["point_parts"] == new["point_parts"]).all()
            bound = np.ptp(old["points"], axis=0) / np.iinfo("u2").max * 0.51 + 1e-6
            if not same or (np.abs(old["points"] - new["points"]) > bound).any():
                raise SystemExit(f"{expanded}: {uid}: surface points or parts differ")
            surface += len(new["points"])
    if worst.max() > 0.51:
        raise SystemExit(f"{expanded}: values differ by up to {worst.max():.2f} steps: {worst.round(2).tolist()}")
    print(f"{expanded}: {len(ours.uid):,} objects, {rows:,} rows, {surface:,} surface points as in {pack}, "
          f"to {worst.max():.3f} steps")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    smaller = verbs.add_parser("reduce")
    smaller.add_argument("source", type=Path)
    smaller.add_argument("out", type=Path)
    smaller.add_argument("--rows", type=int, default=2048)
    smaller.add_argument("--no-parts", action="store_true", help="leave out the surface points and part names")
    larger = verbs.add_parser("expand")
    larger.add_argument("source", type=Path)
    larger.add_argument("out", type=Path)
    both = verbs.add_parser("compare")
    both.add_argument("source", type=Path)
    both.add_argument("out", type=Path)
    a = parser.parse_args()
    if a.verb == "reduce":
        reduce(a.source, a.out, a.rows, not a.no_parts)
    elif a.verb == "compare":
        compare(a.source, a.out)
    else:
        expand(a.source, a.out)


if __name__ == "__main__":
    main()

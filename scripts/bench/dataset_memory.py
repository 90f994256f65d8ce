"""Memory of a loader that reads from shards, as the dataset grows, and the time to open a large index.

    python scripts/bench/dataset_memory.py BUILD [--objects 500 5000 50000] [--gaussians 500] [--cache 128]
                                           [--workers 0] [--index 200000] [--rounds 9] [--keep FOLDER]

The splats of a build, some of their Gaussians each, are packed under as many names as asked for: 50,000 objects of 500
are 1.4 GB below the temporary folder. A process of its own (one thread) opens each pack and serves three epochs of
shuffled batches of 128 x 256 without keeping any splat; it says its resident size after its imports, with the dataset
open, and after every epoch. Anonymous memory is its own; the rest is mapped files: libraries, and no shard.

The index is that of a pack without its shards. It is opened in a fresh process each time: the first opening, with the
imports that come with it, and a second one.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from data.datasets import SplatDataset
from data.manifest import Build, record_of
from data.packs import INDEX, PACK, SHARD, PackInfo, read_pack, write_index
from data.shards import pack
from data.streams import batches
from gsmae.features import FeatureSpec
from gsmae.files import sha256, write_json
from gsmae.ply import read_ply, write_ply

MIB = 1024
BATCH, WINDOW = 128, 256


def status() -> dict[str, float]:
    """Resident memory of this process in MiB: all of it, its own, mapped files; and its largest so far."""
    names = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "files", "VmHWM": "peak"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {names[w[0][:-1]]: int(w[1]) / MIB for w in lines if w and w[0][:-1] in names}


def serve(folder: Path, cache: int, workers: int) -> dict:
    """What one process needs for three epochs."""
    torch.set_num_threads(1)
    found = {"imports": status()}
    dataset = SplatDataset(folder, cache=cache)
    stream = batches(
        dataset, FeatureSpec(), batch_size=BATCH, gaussians=WINDOW, resident=False, workers=workers, drop_last=False
    )
    found["open"] = status()
    times = []
    for epoch in range(3):
        clock = time.process_time()
        for batch in stream.epoch(epoch):
            assert torch.isfinite(batch.points).all()
        times.append((time.process_time() - clock) / len(stream) * 1000)
        found[f"epoch {epoch + 1}"] = status()
    descriptors = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return {
        "memory": found,
        "ms": times,
        "open_files": sum(name.startswith(str(folder.resolve())) for name in descriptors),
        "mapped": str(folder.resolve()) in Path("/proc/self/maps").read_text(),
    }


def opened(folder: Path) -> dict:
    """Seconds to open an index, the first and the second time in a process."""
    torch.set_num_threads(1)
    out = []
    for split in ("train", "train", None):
        clock, cpu = time.perf_counter(), time.process_time()
        dataset = SplatDataset(folder, split)
        out.append((time.perf_counter() - clock, time.process_time() - cpu, len(dataset)))
        del dataset
    return {"times": out}


def fresh(*arguments: object) -> dict:
    """This script in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def thin(build: Path, folder: Path, gaussians: int) -> list[Path]:
    """The splats of a build with at most so many Gaussians."""
    out = []
    for file in sorted((build / "splats").glob("*/*.ply")):
        splat = read_ply(file)
        chosen = torch.randperm(len(splat), generator=torch.Generator().manual_seed(0))[:gaussians]
        out.append(folder / file.parent.name / file.name)
        write_ply(out[-1], splat[chosen])
    return out


def repeated(files: list[Path], objects: int) -> Build:
    """So many names for the same splats, as a build."""
    records, places = [], {}
    known = [record_of(file, f"{file.parent.name}/{file.stem}", "train") for file in files]
    for i in range(objects):
        record = known[i % len(known)]
        uid = f"{record.uid}_{i:06d}"
        records.append(record.model_copy(update={"uid": uid}))
        places[uid] = files[i % len(files)]
    return Build(files[0].parent, "repeated", 0, "z-up", tuple(sorted(records, key=lambda r: r.uid)), {}, "f", places)


def large_index(like: Path, folder: Path, objects: int) -> None:
    """The index of a pack of so many objects in 55 classes, without its shards."""
    info, names, rows, size = read_pack(like), [f"{i:08d}" for i in range(55)], [], 512
    for i in range(objects):
        label, name = i * len(names) // objects, hashlib.sha256(str(i).encode()).hexdigest()
        split = ("train", "val", "test")[0 if i % 10 < 8 else 1 + i % 2]
        row = {"uid": f"{names[label]}/{name[:32]}", "category": names[label], "label": label, "split": split}
        row |= {"split_source": "official", "shard": i // size, "row": i % size, "start": 8000 * (i % size)}
        row |= {"stop": 8000 * (i % size + 1), "gaussians": 8000, "degree": 0, "points": 0, "psnr": 30 + i % 7}
        rows.append({**row, "sha256": name})
    write_index(folder / INDEX, rows)
    entry = info.shards[0].model_dump()
    values = info.model_dump(mode="json", by_alias=True)
    values |= {"class_names": names, "part_names": {}, "objects": objects, "gaussians": 8000 * objects, "points": 0}
    values |= {"splits": {s: sum(r["split"] == s for r in rows) for s in ("train", "val", "test")}}
    values |= {"shards": [{**entry, "file": SHARD.format(k)} for k in range(-(-objects // size))]}
    values["index"] |= {"sha256": sha256(folder / INDEX), "bytes": (folder / INDEX).stat().st_size}
    write_json(folder / PACK, PackInfo.model_validate(values).model_dump(mode="json", by_alias=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--objects", type=int, nargs="+", default=[500, 5000, 50000])
    parser.add_argument("--gaussians", type=int, default=500)
    parser.add_argument("--cache", type=int, nargs="+", default=[128])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--index", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep", type=Path, help="leave the packs here, and take over those that are there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve or options.open:
        print(
            json.dumps(
                opened(options.build) if options.open else serve(options.build, options.cache[0], options.workers)
            )
        )
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        files = thin(options.build, Path(name) / "thin", options.gaussians)
        print("| objects | shards | MB on disk | cache | imports | open | epoch 1 | epoch 2 | epoch 3 | own, after "
              "imports and at the end | open shards | CPU ms a batch, epochs 1 and 3 |")  # fmt: skip
        print("|" + " ---: |" * 12)
        for objects in options.objects:
            report = pack(repeated(files, objects), folder / f"pack{objects}", val_fraction=0)
            for cache in options.cache:
                got = fresh(folder / f"pack{objects}", "--serve", "--cache", cache, "--workers", options.workers)
                memory = got["memory"]
                assert not got["mapped"], "a shard is mapped"
                cells = [f"{objects:,}", report.shards, f"{report.bytes / 1e6:.0f}", cache]
                cells += [f"{memory[k]['resident']:.0f}" for k in memory]
                cells += [f"{memory['imports']['own']:.0f}, {memory['epoch 3']['own']:.0f}", got["open_files"]]
                print("|", " | ".join(map(str, [*cells, f"{got['ms'][0]:.1f}, {got['ms'][2]:.1f}"])), "|", flush=True)
        print("\nResident MiB.\n")
        if options.index:
            (Path(name) / "index").mkdir()
            large_index(folder / f"pack{options.objects[0]}", Path(name) / "index", options.index)
            rounds = [fresh(Path(name) / "index", "--open")["times"] for _ in range(options.rounds)]
            size = (Path(name) / "index" / INDEX).stat().st_size
            print(f"Index of {options.index:,} objects, {size / 1e6:.0f} MB, {options.rounds} processes:\n")
            print("| opening | objects | wall s, median (min to max) | CPU s |\n| --- | --- | --- | --- |")
            for k, what in enumerate(("first of a process, a split", "second, the same", "all splits")):
                wall, cpu = ([r[k][column] for r in rounds] for column in (0, 1))
                print(f"| {what} | {rounds[0][k][2]:,} | {statistics.median(wall):.2f} "
                      f"({min(wall):.2f} to {max(wall):.2f}) | {statistics.median(cpu):.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()

"""Kills the packer again and again at random moments and reads everything that it has published so far.

    python scripts/reliability/kill_packer.py [--kills 200] [--objects 120] [--gaussians 500] [--shard 4] [--seed 0]

Small seeded splats are packed by a process that is sent SIGKILL after a random time; the next one goes on in the same
folder, until one finishes, and the folder is emptied. After every kill each shard that has its name must open, every
row of it must be read, and its bytes must be those of a pack that nobody disturbed; a folder with a pack.json must be
that pack whole. Exit code 1 where something is not. What this does not show: a machine that loses its power.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from data.manifest import Build, Record
from data.packs import INDEX, PACK
from data.shardfile import Shard
from data.shards import pack, verify
from gsmae.errors import InputError
from gsmae.files import TEMPORARY, sha256
from gsmae.gaussians import Gaussians
from gsmae.ply import write_ply


def build_of(folder: Path, objects: int, gaussians: int, seed: int) -> Build:
    """Seeded splats, and their records."""
    g = torch.Generator().manual_seed(seed)
    records, files = [], {}
    for i in range(objects):
        uid, file = f"class{i % 3}/{i:04d}", folder / f"{i:04d}.ply"
        shapes = (gaussians, 3), (gaussians, 4), (gaussians, 3), (gaussians,), (gaussians, 1, 3)
        write_ply(file, Gaussians(*(torch.randn(*shape, generator=g) for shape in shapes)))
        values = {"uid": uid, "category": uid.split("/")[0], "status": "done", "sha256": sha256(file)}
        records.append(Record.model_validate({**values, "gaussians": gaussians}))
        files[uid] = file
    return Build(folder, "seeded", seed, "z-up", tuple(sorted(records, key=lambda r: r.uid)), {}, "files", files)


def packer(build: Build, out: Path, shard: int) -> int:
    """A process that packs, forked so that nothing is imported again; returns its number."""
    child = os.fork()
    if not child:
        code = 1
        try:
            pack(build, out, objects_per_shard=shard)
            code = 0
        finally:
            os._exit(code)
    return child


def faults(out: Path, whole: Path) -> tuple[int, list[str]]:
    """Published shards, and what is wrong with them."""
    found, shards = [], sorted(out.glob("shard_*.h5"))
    for file in shards:
        try:
            opened = Shard(file)
            if not all(np.isfinite(opened.rows(i)).all() for i in range(len(opened))):
                found.append(f"{file.name}: values that are not finite")
        except InputError as error:
            found.append(str(error))
        if file.read_bytes() != (whole / file.name).read_bytes():
            found.append(f"{file.name}: differs from that of the undisturbed pack")
    if (out / PACK).exists():
        found += [str(problem) for problem in verify(out).problems if problem.kind != "leftover"]
        found += [n.name for n in whole.iterdir() if n.read_bytes() != (out / n.name).read_bytes()]
    return len(shards), found


def where(out: Path, shards: int) -> str:
    """How far the killed process had come."""
    if (out / PACK).exists():
        return "after pack.json"
    if (out / INDEX).exists():
        return "between index and pack.json"
    at_work = "while writing a file" if any(out.glob(TEMPORARY + "*")) else "between two files"
    return f"{at_work}, {'no shard yet' if not shards else 'some shards there'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--objects", type=int, default=120)
    parser.add_argument("--gaussians", type=int, default=500)
    parser.add_argument("--shard", type=int, default=4, help="objects per shard")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = build_of(folder, options.objects, options.gaussians, options.seed)
        start = time.perf_counter()
        os.waitpid(packer(build, folder / "whole", options.shard), 0)
        span = time.perf_counter() - start
        out, moments, seen, wrong, finished = folder / "p", Counter(), 0, [], 0
        while sum(moments.values()) < options.kills:
            child = packer(build, out, options.shard)
            time.sleep(rng.uniform(0, span / 2))
            os.kill(child, signal.SIGKILL)  # where it has ended already, nobody else has its number yet
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            shards, found = faults(out, folder / "whole") if out.exists() else (0, [])
            seen, wrong = seen + shards, wrong + found
            for fault in found:
                print(fault, file=sys.stderr)
            if killed:
                moments[where(out, shards)] += 1
            if not killed or (out / PACK).exists():
                finished += not found
                shutil.rmtree(out)
        print(f"{options.kills} kills, seed {options.seed}; a pack of {options.objects} splats in "
              f"{len(list((folder / 'whole').glob('*.h5')))} shards takes {span:.2f} s\n")  # fmt: skip
        print("| killed | times |\n| --- | --- |")
        for moment, times in sorted(moments.items()):
            print(f"| {moment} | {times} |")
        print(f"\n{seen} published shards read, {len(wrong)} faults; {finished} packs came to their end, "
              "byte by byte the undisturbed one")  # fmt: skip
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

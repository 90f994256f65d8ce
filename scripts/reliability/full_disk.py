"""Builds onto a disk that is too small, and into a folder that may only be read.

    sudo python scripts/reliability/full_disk.py [--workers 2]

As root, because it mounts file systems of memory (tmpfs) in a temporary folder. The build onto 2 MB must stop with a
clear error; all that has a record must be whole; with more room the same command must end it. The same where the file
system is made read-only under a build that is half done. Exit code 1 where it is not so.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import stubs

from gsmae.errors import InputError
from preprocessing.build import build
from preprocessing.building import upkeep
from preprocessing.sources import SOURCES


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--objects", type=int, default=200)
    options = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk, meshes = folder / "disk", stubs.collection(folder / "meshes", options.objects)
        items = list(SOURCES["folder"](meshes))
        disk.mkdir()
        mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", disk)

        def attempt(what: str) -> None:
            try:
                report = build(meshes, disk / "out", stubs.CONFIG, source="folder", workers=options.workers,
                               make=stubs.make)  # fmt: skip
                print(f"{what}: {report.done} done, {report.failed} failed")
            except InputError as error:
                print(f"{what}: {str(error).replace(str(folder), '...')}")
            found = stubs.faults(disk / "out", items)
            there = options.objects - found["lost"]
            print(f"  {there} objects, {found['failed']} failed, {found['corrupt']} corrupt")
            wrong.extend([what] if found["failed"] or found["corrupt"] else [])

        try:
            attempt("2 MB of room")
            mount("-o", "remount,size=4m", disk)
            attempt("4 MB")
            mount("-o", "remount,ro", disk)
            attempt("read-only")
            mount("-o", "remount,rw,size=64m", disk)
            attempt("64 MB, and writable")
            upkeep.gc(disk / "out")
            found = stubs.faults(disk / "out", items)
            print("; ".join(f"{name}: {count}" for name, count in found.items()))
            wrong += ["at the end"] if any(found.values()) else []
        finally:
            subprocess.run(["umount", disk], check=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

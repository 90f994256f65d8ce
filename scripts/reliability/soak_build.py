"""Builds many stub objects and watches whether the builder or its workers grow.

    python scripts/reliability/soak_build.py [--objects 10000] [--workers 2]

Memory (resident) and open descriptors of the builder and of each worker are read as the build goes on, and shown at
every tenth of it. Exit code 1 where, between the first tenth and the end, memory grew by more than 16 MB or there is
any descriptor more: the fewest of the last three looks against the fewest of the first three, since one may be open
while it is looked.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import stubs

from preprocessing.build import build

MB = 2**20


def held(pid: int) -> tuple[int, int]:
    """Resident bytes and open descriptors of a process; 0, 0 where it is gone."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return resident, len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0, 0


def workers() -> list[int]:
    """The processes that work: the children of the one that they are forked from."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        for child in (thread / "children").read_text().split():
            try:
                found += [int(p) for p in Path(f"/proc/{child}/task/{child}/children").read_text().split()]
            except OSError:
                continue
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rows: list[tuple[int, list[tuple[int, int]]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        meshes, out = stubs.collection(folder / "meshes", options.objects), folder / "out"
        ended = threading.Event()

        def look() -> None:
            at = 1
            while not ended.wait(0.1):
                done = sum(len(path.read_bytes().splitlines()) for path in (out / "ledgers").glob("*.jsonl"))
                if done * 10 >= at * options.objects:
                    rows.append((done, [held(os.getpid()), *(held(pid) for pid in workers())]))
                    at = done * 10 // options.objects + 1

        watcher, start = threading.Thread(target=look), time.perf_counter()
        watcher.start()
        try:
            report = build(meshes, out, stubs.CONFIG, source="folder", workers=options.workers, make=stubs.make)
        finally:
            ended.set()
            watcher.join()
        print(f"{report.done} of {options.objects} stubs by {options.workers} workers in "
              f"{time.perf_counter() - start:.0f} s\n")  # fmt: skip
        print("| objects | builder | " + " | ".join(f"worker {i + 1}" for i in range(options.workers)) + " |")
        print("| --- |" + " --- |" * (options.workers + 1))
        for done, values in rows:
            print(f"| {done} | " + " | ".join(f"{b / MB:.1f} MB, {fds}" for b, fds in values) + " |")
        whole = [values for _, values in rows if all(b for b, _ in values)]  # without those in which a worker is gone
        first, last = whole[0], whole[-1]
        grown = [(b - a) / MB for (a, _), (b, _) in zip(first, last, strict=True)]
        fewest = [
            [min(fds) for fds in zip(*([f for _, f in row] for row in part), strict=True)]
            for part in (whole[:3], whole[-3:])
        ]
        more = [b - a for a, b in zip(*fewest, strict=True)]
        print(f"\ngrown by {', '.join(f'{g:.1f} MB' for g in grown)}; descriptors by {', '.join(map(str, more))}")
        sys.exit(1 if max(grown) > 16 or max(more) > 0 or report.done != options.objects else 0)


if __name__ == "__main__":
    main()

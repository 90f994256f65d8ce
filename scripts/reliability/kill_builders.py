"""Kills random workers of a build, and now and then the builder itself, and counts what is lost, doubled or corrupt.

    python scripts/reliability/kill_builders.py [--kills 300] [--objects 3000] [--workers 2] [--builders 15] [--seed 0]
    python scripts/reliability/kill_builders.py --meshes examples/meshes --kills 30   # real fits, profile tiny

Objects are stubs (stubs.py) unless --meshes names a collection. Every kill is SIGKILL at a random moment, when some
more objects have been done. Then the build is run to its end, objects that were killed three times are tried again,
`gc` runs, and everything is compared with a build that nobody disturbed. Exit code 1 where something is not as it
should be.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import stubs

from gsmae.files import sha256
from preprocessing.build import build
from preprocessing.building import ledgers, upkeep
from preprocessing.profiles import PROFILES
from preprocessing.sources import SOURCES

RUN = "import sys; sys.path.insert(0, sys.argv[4]); import kill_builders as k; k.work(*sys.argv[1:4])"


def work(meshes: str, out: str, workers: str) -> None:
    """What the builder's process does."""
    real = os.environ.get("REAL") == "1"
    config = PROFILES["tiny"] if real else stubs.CONFIG
    build(meshes, out, config, source="folder", workers=int(workers), make=None if real else stubs.make)


def children(pid: int) -> list[int]:
    """Worker processes of a builder: the children of the process that they are forked from."""
    try:
        forks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(p) for fork in forks for p in Path(f"/proc/{fork}/task/{fork}/children").read_text().split()]
    except OSError:
        return []


def records(out: Path) -> int:
    return sum(1 for _ in (out / "records").rglob("[!.]*.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--objects", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--builders", type=int, default=15, help="kills of the builder itself, beside those of workers")
    parser.add_argument("--meshes", type=Path, help="a collection to fit for real, with profile tiny")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, start = random.Random(options.seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder, real = Path(name), options.meshes is not None
        os.environ["REAL"] = str(int(real))
        meshes = options.meshes.resolve() if real else stubs.collection(folder / "meshes", options.objects)
        items = list(SOURCES["folder"](meshes))
        out, killed, builders = folder / "out", 0, 0
        command = [sys.executable, "-c", RUN, str(meshes), str(out), str(options.workers), str(Path(__file__).parent)]
        builder = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        pace = len(items) / options.kills  # objects done between two kills
        while killed < options.kills:
            goal = min(len(items) - 1, int(killed * pace))
            while records(out) < goal and builder.poll() is None:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 3 if real else 0.3))
            if builder.poll() is not None:  # done before its time: what is done is taken away again
                for item in rng.sample(items, max(1, len(items) // 3)):
                    (out / "records" / f"{item.uid}.json").unlink(missing_ok=True)
                builder = subprocess.Popen(command, stderr=subprocess.DEVNULL)
                continue
            if builders < options.builders * killed / options.kills:
                builder.kill()
                builder.wait()
                builders += 1
                time.sleep(0.1)
                builder = subprocess.Popen(command, stderr=subprocess.DEVNULL)
                continue
            if workers := children(builder.pid):
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed += 1
        code = builder.wait()
        more = {"source": "folder", "workers": options.workers}
        config, make = (PROFILES["tiny"], None) if real else (stubs.CONFIG, stubs.make)
        report = build(meshes, out, config, make=make, **more)
        strikes = report.failed
        if strikes:
            report = build(meshes, out, config, make=make, retry=True, anyway=True, **more)
        from data.checks import check

        before = len(list(out.rglob(".aside-*")))
        upkeep.gc(out)
        lines = Counter(entry["uid"] for entry in ledgers.read(out))
        wrong = {} if real else stubs.faults(out, items)
        if real:
            build(meshes, folder / "whole", config, **more)
            files = [f"splats/{item.uid}.ply" for item in items]
            differ = [f for f in files if not (out / f).exists() or sha256(out / f) != sha256(folder / "whole" / f)]
            wrong = {"differing": len(differ), "temporaries": len(list(out.rglob(".aside-*")))}
        wrong |= {
            "problems of gsmae check": len(check(out)), "objects without a ledger line": len(items) - len(lines),
            "doubled ledger lines": sum(lines.values()) - len(lines),
        }  # fmt: skip
        print(f"{len(items)} {'fits' if real else 'stubs'}, {options.workers} workers, seed {options.seed}: "
              f"{killed} workers and {builders} builders killed in {time.perf_counter() - start:.0f} s; "
              f"last builder ended with {code}; {strikes} objects were killed three times, told so, and retried; "
              f"{before} temporaries before gc; {report.done} of {len(items)} done")  # fmt: skip
        print("; ".join(f"{name}: {count}" for name, count in wrong.items()))
        sys.exit(1 if any(wrong.values()) or report.done != len(items) else 0)


if __name__ == "__main__":
    main()

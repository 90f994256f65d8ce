"""Breaks the commit of one object at every step: EIO, ENOSPC, and the end of the process at each system call.

    python scripts/reliability/break_commits.py [--real]

A small library (faults.c, compiled on the spot, LD_PRELOAD) makes the n-th call fail that opens, writes, syncs,
renames, changes or removes something in the build's folder; a write that fails has written half. For every n and every
error a child builds one object. Afterwards the object must be absent or whole, and no file may have its name without
being the file of an undisturbed build; then the build is run again and must end like the undisturbed one, without
temporaries after `gc`. --real fits a mesh of the examples; otherwise the object is a stub (stubs.py). Exit code 1 where
it is not so.
"""

import argparse
import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import stubs
from tqdm import tqdm

from gsmae.errors import InputError
from preprocessing.build import build
from preprocessing.building import upkeep
from preprocessing.profiles import BuildConfig, FitConfig

HERE = Path(__file__).resolve().parent
KINDS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "kill": 0}
CHANGING = ("seconds", "run")  # of a record
MICRO = BuildConfig(
    views=8, val_views=2, test_views=2, resolution=48, supersample=1, surface_points=64, min_psnr=5,
    fit=FitConfig(iterations=20, initial=300, cap=400, val_every=10, grow_every=5),
)  # fmt: skip


def compiled(folder: Path) -> Path:
    """The library; RuntimeError without a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("no C compiler")
    library = folder / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


def published(out: Path) -> dict[str, bytes | str]:
    """Every file under its own name, without what changes from run to run."""
    found: dict[str, bytes | str] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        folder = path.relative_to(out).parts[0]
        if path.name.startswith(".") or folder in ("ledgers", "at_work", "build.json", "quarantine"):
            continue
        data = path.read_bytes()
        if folder == "records":
            record = json.loads(data)
            data = json.dumps({k: v for k, v in record.items() if k not in CHANGING})
        found[str(path.relative_to(out))] = data
    return found


def attempt(meshes: Path, out: Path, real: bool, library: ctypes.CDLL, n: int, error: int) -> tuple[str, int, str]:
    """How a child fared whose n-th call went wrong (done, stopped, failed, killed or crashed); calls; that call."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(2)
        library.fault_arm(str(out).encode(), n, error)
        how = "crashed"
        try:
            report = run(meshes, out, real)
            how = "done" if report.done == 1 else "failed"
        except InputError:
            how = "stopped"
        finally:
            seen = library.fault_seen()
            library.fault_arm(b"", -1, 0)
            os.write(write, json.dumps([how, seen, library.fault_name(n).decode() if n >= 0 else ""]).encode())
            os._exit(0)
    os.close(write)
    told = b""
    while block := os.read(read, 4096):
        told += block
    os.close(read)
    os.waitpid(child, 0)
    return tuple(json.loads(told)) if told else ("killed", 0, "")


def run(meshes: Path, out: Path, real: bool):
    if real:
        return build(meshes, out, MICRO, source="folder", workers=0)
    return build(meshes, out, stubs.CONFIG, source="folder", workers=0, make=stubs.make)


def trial(meshes: Path, folder: Path, real: bool, every: int = 1) -> tuple[Counter, list[str]]:
    """All cases; what became of them, and what was wrong."""
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    library.fault_name.restype = ctypes.c_char_p
    library.fault_seen.restype = ctypes.c_long
    library.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int)
    _, calls, _ = attempt(meshes, folder / "whole", real, library, -1, 0)
    whole = published(folder / "whole")
    outcomes, wrong = Counter(), []
    for n in range(0, calls, every):
        for kind, error in KINDS.items():
            out = folder / f"{kind}-{n}"
            how, _, call = attempt(meshes, out, real, library, n, error)
            case = f"{kind} at call {n} ({call})"
            there = published(out) if out.exists() else {}
            state = "whole" if "records" in {Path(p).parts[0] for p in there} else "absent"
            outcomes[f"{kind}: {how}, {state}"] += 1
            if how in ("crashed", "failed"):
                wrong.append(f"{case}: {how}")
            if how == "done" and there != whole:
                wrong.append(f"{case}: was done, but is not")
            wrong += [f"{case}: {name} is not whole" for name, data in there.items() if whole.get(name) != data]
            if state == "whole" and not there.keys() >= whole.keys() - {"build.json"}:
                wrong.append(f"{case}: a record without its files")
            if run(meshes, out, real).done != 1 or published(out) != whole:
                wrong.append(f"{case}: the next build does not end as if nothing had happened")
            upkeep.gc(out)
            if list(out.rglob(".aside-*")) or (out / "at_work").exists():
                wrong.append(f"{case}: leftovers after gc")
            shutil.rmtree(out)
    return outcomes, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="fit a real mesh")
    parser.add_argument("--every", type=int, default=1, help="only every so many calls")
    options = parser.parse_args()
    tqdm.set_lock(threading.RLock())  # its own is shared with forked children, and one that is killed may hold it
    if "LD_PRELOAD" not in os.environ:
        with tempfile.TemporaryDirectory() as name:
            environment = {**os.environ, "TQDM_DISABLE": "1", "LD_PRELOAD": str(compiled(Path(name)))}
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.real:
            source = HERE.parents[1] / "examples" / "meshes" / "chair" / "foldingChair"
            shutil.copytree(source, folder / "meshes" / "chair" / "foldingChair")
        else:
            stubs.collection(folder / "meshes", 1)
        outcomes, wrong = trial(folder / "meshes", folder, options.real, options.every)
        print(f"{sum(outcomes.values())} cases, {'a real fit' if options.real else 'a stub'}\n")
        print("| injected: outcome, object | cases |\n| --- | --- |")
        for what, count in sorted(outcomes.items()):
            print(f"| {what} | {count} |")
        print(f"\n{len(wrong)} wrong")
        for line in wrong:
            print(line, file=sys.stderr)
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

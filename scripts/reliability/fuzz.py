"""Damage every kind of file that gsmae reads, and see that each is read or refused by name.

    python scripts/reliability/fuzz.py --count 20000 --seed 0            all kinds
    python scripts/reliability/fuzz.py --kinds obj glb --count 5000      some
    python scripts/reliability/fuzz.py --again obj/0/1234 --keep DIR     one case, alone, its files kept

Each input is read in a forked child that may take 1 GB of address space more than the imported program, and 5 seconds
of processor time (60 by the clock, for what sleeps).
Good: a result, or a GsmaeError that names the file. Bad: any other exception, a crash, more time, more memory, a child
that does not come back. The case numbers that are printed make the same bytes again. Exit code 4 where anything is bad.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

MEMORY = 1 << 30  # bytes of address space above what the program has before it reads
SECONDS = 5  # of processor time
CLOCK = 60.0  # seconds until a child that does nothing is ended
BATCH = 250  # inputs a child reads before a fresh one takes over
Outcome = tuple[str, str, float, int]  # kind, words, seconds of the processor, bytes above what the child had


@dataclass
class Tally:
    """What became of one kind's inputs."""

    inputs: int = 0
    results: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak: int = 0  # bytes above what the child had before
    bad: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Acts:
    """A target whose cases are names: act(name, folder) makes what is to be read, and reads it."""

    act: Callable[[str, Path], Any]
    name: str = ""

    def case(self, name: str) -> dict[str, bytes]:
        self.name = name
        return {}

    def read(self, folder: Path) -> Any:
        return self.act(self.name, folder)


def status(key: str) -> int:
    """Bytes of a field of this process' memory, VmSize for instance."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def limit() -> None:
    """From here on this process may take MEMORY more, and writes no core."""
    most = status("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Write a case into an empty folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def attempt(target: Any, folder: Path) -> tuple[str, str]:
    """("result" | "refused" | "bad", what happened)."""
    from gsmae.errors import GsmaeError

    try:
        target.read(folder)
        return "result", ""
    except GsmaeError as error:
        text = str(error)
        if str(folder) not in text and str(folder.parent / "packed") not in text:
            return "bad", f"does not name the file: {type(error).__name__}: {text[:200]}"
        return "refused", text.replace(str(folder), "")[:200]
    except Exception as error:  # what this script looks for
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "reliability" not in f.filename and ".venv" not in f.filename
        ]
        place = ours[-1] if ours else last
        return "bad", f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:150]}"


def child(target: Any, cases: list[str], home: Path, pipe: int) -> None:
    """Read the cases one after another, with a line of JSON for each."""
    import torch

    faulthandler.disable()  # the parent tells of a crash
    torch.set_num_threads(1)  # the threads that torch had did not survive the fork, and would be waited for
    limit()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    for case in cases:
        folder = home / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(home / "packed", ignore_errors=True)
        folder.mkdir()
        put(folder, target.case(case))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = status("VmRSS"), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the child, whatever it does
        kind, what = attempt(target, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds, peak = time.process_time() - start, max(status("VmHWM") - before, 0)
        os.write(pipe, (json.dumps([kind, what, seconds, peak]) + "\n").encode())


def run(target: Any, cases: list[str], home: Path) -> list[Outcome]:
    """What became of each case: kind, words, seconds, bytes. A child that dies or hangs ends its case, not the run."""
    out: list[Outcome] = []
    while len(out) < len(cases):
        reader, writer = os.pipe()
        number = os.fork()
        if number == 0:
            code = 1
            try:
                os.close(reader)
                child(target, cases[len(out) : len(out) + BATCH], home, writer)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        out += _listen(reader, number)
        os.close(reader)
    return out


def _listen(reader: int, number: int) -> list[Outcome]:
    """The lines of a child until it ends, or until it is ended."""
    out, buffer, hung = [], b"", False
    while True:
        ready, _, _ = select.select([reader], [], [], CLOCK)
        if not ready:
            os.kill(number, signal.SIGKILL)
            hung = True
            break
        block = os.read(reader, 1 << 16)
        if not block:
            break
        *lines, buffer = (buffer + block).split(b"\n")
        for line in lines:
            out.append(tuple(json.loads(line)))
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    if hung or code == -signal.SIGPROF:
        out.append(("bad", f"took more than {SECONDS} s", SECONDS, 0))
    elif code != 0:
        out.append(("bad", f"the child ended with {code}: a crash, or no memory", 0.0, 0))
    return out


def settle(target: Any, cases: list[str], home: Path) -> list[Outcome]:
    """The same, where a bad case is tried again alone before it counts."""
    outcomes = run(target, cases, home)
    return [
        run(target, [case], home)[0] if outcome[0] == "bad" else outcome
        for case, outcome in zip(cases, outcomes, strict=True)
    ]


def measure(kind: str, target: Any, count: int, seed: int, home: Path) -> Tally:
    """Read `count` damaged files of a kind."""
    cases = [f"{kind}/{seed}/{number}" for number in range(count)]
    tally = Tally()
    for case, (outcome, what, seconds, peak) in zip(cases, settle(target, cases, home), strict=True):
        tally.inputs += 1
        tally.results += outcome == "result"
        tally.refused += outcome == "refused"
        tally.slowest, tally.peak = max(tally.slowest, seconds), max(tally.peak, peak)
        if outcome == "bad":
            tally.bad.append((case, what))
    return tally


# of 20,000 inputs, how many are of a kind: those that strangers' files are made of get more
SHARES = {
    "obj": 2400, "mtl": 1000, "off": 1400, "stl": 800, "ply": 1800, "dae": 1400, "wrl": 1400, "glb": 1600, "gltf": 1600,
    "image": 1600, "splat": 2000, "zip": 1200, "hdf5": 1200, "parquet": 400, "pack.json": 400, "build": 500,
    "points": 500, "state.json": 400, "safetensors": 400, "released": 800, "yaml": 800, "parts": 400, "lists": 600,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=sum(SHARES.values()), help="inputs in all, spread over the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=[*SHARES], help="only these")
    parser.add_argument("--again", help="one case by its number: KIND/SEED/NUMBER")
    parser.add_argument("--keep", type=Path, help="folder for the files of that case")
    a = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from fuzz_targets import targets

    known = targets()
    if a.again:
        target = known[a.again.split("/")[0]]
        folder = a.keep or Path(tempfile.mkdtemp())
        put(folder, target.case(a.again))
        print(f"files in {folder}")
        target.read(folder)
        return 0
    kinds = a.kinds or list(SHARES)
    total, sums = sum(SHARES[kind] for kind in kinds), Tally()
    print(
        "| kind | inputs | results | refused | bad | slowest s | peak MB |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        for kind in kinds:
            t = measure(kind, known[kind], -(-a.count * SHARES[kind] // total), a.seed, Path(name))
            print(row(kind, t), flush=True)
            for what, number in Counter(what for _, what in t.bad).most_common(40):
                case = next(case for case, other in t.bad if other == what)
                print(f"    {number} x {what}   e.g. --again {case}", file=sys.stderr, flush=True)
            sums.inputs, sums.results, sums.refused = (
                sums.inputs + t.inputs, sums.results + t.results, sums.refused + t.refused,
            )  # fmt: skip
            sums.slowest, sums.peak = max(sums.slowest, t.slowest), max(sums.peak, t.peak)
            sums.bad += t.bad
    print(row("all", sums))
    return 4 if sums.bad else 0


def row(kind: str, t: Tally) -> str:
    """A line of the table."""
    values = (kind, t.inputs, t.results, t.refused, len(t.bad), f"{t.slowest:.2f}", f"{t.peak / 1e6:.0f}")
    return f"| {' | '.join(map(str, values))} |"


if __name__ == "__main__":
    sys.exit(main())

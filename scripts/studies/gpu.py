"""The study with longer pretraining within a budget of seconds on one GPU: several runs at a time, the important first.

    python scripts/studies/gpu.py DATA WORK OUT --seconds 500 [--jobs 8] [--epochs 600] [--tables length input]

DATA has splats.npz and points.npz of ship.py; WORK gets packs and runs; OUT what is to be brought home: the tables
(md, json, csv), base.yaml, log.jsonl, and runs.tar.gz with all small files of the packs and runs, no weights.

How fast the GPU takes steps is measured first, by all processes together, and pretraining made as long as the budget
allows, unless --epochs says how long. Runs are begun in the order of the tables; near the end those under way are
stopped. Given again with the same WORK it goes on. Unpack runs.tar.gz, and `gsmae reproduce TABLE packs/splats --points
packs/points --out tables --recipe small --config base.yaml --seconds 0` writes a table again.
"""

import argparse
import json
import logging
import multiprocessing
import shutil
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402
import yaml  # noqa: E402

from data.datasets import SplatDataset  # noqa: E402
from gsmae.cli import main as gsmae  # noqa: E402
from gsmae.cli.reproducing import tried  # noqa: E402
from gsmae.cli.side_by_side import side_by_side  # noqa: E402
from gsmae.reproduce import Data, Step, plan, read_base, read_table  # noqa: E402
from gsmae.reproduce.results import measured  # noqa: E402
from gsmae.reproduce.timing import Size, stepper  # noqa: E402

TABLES = ("length", "input", "labels", "choices", "parts")
MORE = ("colours",)  # not of the first study
COST = {
    "pretrain": 1.0,
    "classify": 1.0,
    "pointnet2": 1.5,
    "segment": 0.8,
}  # of a step, in steps of pretraining; guessed
SHARE = 0.8  # of the time that runs are planned for: some steps cost more, and at the end there are fewer at a time
PACING = 6.0  # seconds
LAST = 20.0  # seconds that stopping, the tables and the archive may take
LONGEST = 1000
KEPT = ("*.json", "*.yaml", "*.jsonl", "*.csv", "*.md", "index.parquet")


def steps_of(base: Path, data: dict[str, Data], a: argparse.Namespace) -> list[Step]:
    """Every run once, table by table and seed by seed."""
    found: dict[str, Step] = {}
    for name in a.tables:
        made = plan(
            read_table(str(HERE / "long" / f"{name}.yaml")), a.seeds, data, recipe=a.recipe, base=read_base(base)
        )
        for cell in made.cells:
            if cell.problem:
                raise SystemExit(f"{name}, {cell.arm.name}: {cell.problem}")
        for step in made.steps:
            found.setdefault(step.digest, step)
    return list(found.values())


def pace(step: Step, size: Size, device: str, start: Any, rates: Any) -> None:
    """Steps of one process in a second, while others do the same."""
    torch.set_num_threads(1)
    (taker, batch), rate = stepper(step, size, device), step.train.lr
    for number in range(3):
        taker.take(batch, number, rate, 0.0).values.tolist()
    start.wait()
    began, number = time.monotonic(), 0
    while time.monotonic() - began < PACING:
        taken = taker.take(batch, number, rate, 0.0)
        number += 1
        if number % 10 == 0:
            taken.values.tolist()
    taken.values.tolist()
    rates.put(number / (time.monotonic() - began))


def together(step: Step, size: Size, device: str, jobs: int) -> float:
    """Steps that so many processes take in a second, all in all."""
    spawn = multiprocessing.get_context("spawn")
    start, rates = spawn.Barrier(jobs), spawn.Queue()
    processes = [spawn.Process(target=pace, args=(step, size, device, start, rates)) for _ in range(jobs)]
    for process in processes:
        process.start()
    found = [rates.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    return sum(found)


def cost(step: Step, sizes: dict[Path, Size]) -> float:
    """Of a run, in steps of pretraining."""
    if step.kind not in COST:
        return 0.0
    objects = sizes[step.data.path].train if step.kind != "segment" else sizes[step.data.path].train * 0.45
    return COST[step.kind] * max(1, objects // step.train.batch_size) * step.train.epochs


def bring(work: Path, out: Path) -> None:
    """The small files of WORK as one archive in OUT, and the tables."""
    aside = out / "runs.tar.gz.part"
    with tarfile.open(aside, "w:gz") as archive:
        for path in sorted({p for pattern in KEPT for p in work.rglob(pattern)}):
            inside = path.relative_to(work)
            if not any(part.startswith("step_") or part == "tensorboard" for part in inside.parts):
                archive.add(path, str(inside))
    aside.replace(out / "runs.tar.gz")
    for table in TABLES + MORE:
        if (work / "tables" / table).is_dir():
            shutil.copytree(work / "tables" / table, out / table, dirs_exist_ok=True)
    shutil.copy(work / "base.yaml", out)


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=0, help="of the longest pretraining; 0: as the budget allows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES + MORE)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--config", type=Path, default=HERE / "long" / "base.yaml")
    parser.add_argument("--device", default="auto")
    a = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    a.work.mkdir(parents=True, exist_ok=True)
    a.out.mkdir(parents=True, exist_ok=True)
    base, log = a.work / "base.yaml", a.out / "log.jsonl"

    def say(**what: Any) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - began, 1), **what})
        print(line, flush=True)
        with log.open("a") as file:
            file.write(line + "\n")

    packs = {name: a.work / "packs" / name for name in ("splats", "points")}
    making = [
        subprocess.Popen([sys.executable, str(HERE / "ship.py"), "expand", str(a.data / f"{name}.npz"), str(pack)])
        for name, pack in packs.items()
        if not (pack / "pack.json").exists()
    ]
    if any(process.wait() for process in making):
        raise SystemExit("the packs could not be made")
    sets = {name: SplatDataset(path, split="train") for name, path in packs.items()}
    data = {name: Data(pack.path, pack.fingerprint[:12]) for name, pack in sets.items()}
    sizes = {p.path: Size(len(p), len(p.class_names), p.n_parts) for p in sets.values()}
    say(what="packs", hashes={name: d.hash for name, d in data.items()})

    def configured(epochs: int | None) -> list[Step]:
        values = yaml.safe_load(a.config.read_text())
        if epochs:
            values["pretrain"]["train"]["epochs"] = epochs
        base.write_text(yaml.safe_dump(values, sort_keys=False))
        return steps_of(base, data, a)

    if base.exists():  # it goes on
        steps = steps_of(base, data, a)
    elif a.epochs:
        steps = configured(a.epochs)
    else:
        step = next(s for s in configured(None) if s.kind == "pretrain" and s.train.lr)
        rate = together(step, sizes[step.data.path], a.device, a.jobs)
        room = SHARE * rate * (a.seconds - LAST - (time.monotonic() - began))
        fitting = [e for e in range(50, LONGEST + 1, 50) if sum(cost(s, sizes) for s in configured(e)) <= room]
        epochs = max(fitting, default=50)
        steps = configured(epochs)
        say(what="pace", steps_per_second=round(rate, 1), samples_per_second=round(rate * step.train.batch_size),
            epochs=epochs, planned=round(sum(cost(s, sizes) for s in steps)), room=round(room))  # fmt: skip

    runs = a.work / "tables" / "runs"
    left = [step for step in steps if not measured(step, runs)]
    say(what="runs", all=len(steps), left=len(left))
    work = partial(tried, runs=runs, recipe=a.recipe, device=a.device)
    brought = time.monotonic()
    for step, reason in side_by_side(left, work, a.jobs, a.seconds - LAST - (time.monotonic() - began)):
        say(what="run", run=step.folder(runs).name, kind=step.kind, failed=reason)
        if time.monotonic() - brought > 60:
            bring(a.work, a.out)
            brought = time.monotonic()
    say(what="stopped", done=sum(measured(step, runs) for step in steps), of=len(steps))
    for table in a.tables:
        gsmae(["reproduce", str(HERE / "long" / f"{table}.yaml"), str(packs["splats"]), "--points",
               str(packs["points"]), "--out", str(a.work / "tables"), "--recipe", a.recipe, "--config", str(base),
               "--seeds", *map(str, a.seeds), "--seconds", "0"])  # fmt: skip
    say(what="tables")
    bring(a.work, a.out)
    say(what="end", archive_mib=round((a.out / "runs.tar.gz").stat().st_size / 2**20, 2))


if __name__ == "__main__":
    main()

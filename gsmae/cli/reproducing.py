"""reproduce: a whole table of runs, resumed where it stopped."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gsmae.config import digest, to_yaml
from gsmae.errors import GsmaeError, InputError
from gsmae.files import read_json
from gsmae.locks import only_writer
from gsmae.progress import bar
from gsmae.reproduce import TABLES, Data, Plan, Step, TableResult, collect, markdown, plan, read_base, read_table, write
from gsmae.reproduce.results import finished, measured
from gsmae.reproduce.timing import Size, expected_seconds
from gsmae.training import Interrupted

from .inputs import alone
from .side_by_side import side_by_side
from .verb import Arguments, Flag, Outcome, parse, plain

log = logging.getLogger(__name__)

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"  # in expected seconds


class ReproduceArguments(Arguments):
    """Run one table: every arm with every seed, pretrained, fine-tuned and measured on test once; mean and spread.

    What is finished in --out is not run again, a stopped run goes on, arms that need the same pretraining share it. An
    arm that fails is a row that says why. Exit code 4 when one did.
    """

    table: tyro.conf.Positional[str]
    """a name (list: all of them, with what they compare), or a YAML file of your own"""
    data: tyro.conf.Positional[Path] = Path()
    """folder written by `gsmae pack`"""
    out: Path = Path("reproduced")
    """folder for table.md, table.json, table.csv and runs/; several tables may share it, and then runs"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run of every arm for each"""
    recipe: Literal["tiny", "small", "base"] = "base"
    """named defaults of pretraining and fine-tuning; base is the paper"""
    config: Path | None = None
    """YAML with what all arms change in the recipe: shared, pretrain, classify, segment"""
    pretrain_data: Path | None = None
    """pack for pretraining; none: DATA"""
    points: Path | None = None
    """pack of points instead of splats, of the same objects and splits, for the arms that want it"""
    pretrain_points: Path | None = None
    """such a pack for pretraining; none: --points"""
    limit_arms: tuple[str, ...] = ()
    """only these arms; none: all"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one"""
    jobs: int = 1
    """runs at a time, each in a process of its own; they share the device"""
    seconds: float | None = None
    """with --jobs above 1: stop after so many; runs that are under way go on another time. 0: only the table of what
    is there"""
    dry_run: Annotated[Flag, tyro.conf.arg(name="dry-run")] = False
    """only say which runs there will be and about how long they take"""


def reproduce(argv: list[str]) -> Outcome:
    """gsmae reproduce"""
    if argv and argv[0] == "list":
        return Outcome({"tables": {n: plain(t) for n, t in TABLES.items()}}, 0, "--json" in argv, _tables())
    a = parse(ReproduceArguments, "reproduce", argv)
    alone("reproduce")
    if a.jobs < 1 or a.seconds and a.jobs == 1:
        raise InputError(f"--jobs {a.jobs}", "at least 1, and at least 2 with --seconds")
    table, base, packs = read_table(a.table), read_base(a.config), _packs(a)
    data = {name: Data(pack.path, pack.fingerprint[:12]) for name, pack in packs.items()}
    made = plan(table, a.seeds, data, recipe=a.recipe, base=base, arms=a.limit_arms)
    runs = a.out / "runs"
    name = Path(a.table).stem
    if a.dry_run:
        return _dry(a, made, runs, packs)
    failures: dict[str, str] = {}

    def note() -> TableResult:
        test = packs["splats"]
        result = collect(
            name, made, runs, failures=failures, labels=dict(zip(test.uids, test.labels.tolist(), strict=True)),
            dataset=_dataset(test), facts=_facts(a, packs),
        )  # fmt: skip
        write(result, a.out / name)
        return result

    with only_writer(a.out, "process", does="reproduces a table", keep=True):
        left = [] if a.seconds == 0 else [step for step in made.steps if not measured(step, runs)]
        if a.jobs > 1:
            work = partial(tried, runs=runs, recipe=a.recipe, device=a.device)
            with bar(name, "run", total=len(left)) as shown:
                for step, reason in side_by_side(left, work, a.jobs, a.seconds):
                    failures |= {step.digest: reason} if reason else {}
                    note()
                    shown.update()
            left = []
        expected = [0.0 if isinstance(s, str) else s for s in expected_seconds(left, _sizes(packs), a.device)]
        with bar(name, "s", total=sum(expected), bar_format=BAR) as shown:
            for number, (step, seconds) in enumerate(zip(left, expected, strict=True)):
                shown.set_postfix_str(f"run {number + 1} of {len(left)}: {step.folder(runs).name}")
                reason = failures.get(step.init.digest, "") if step.init else ""
                reason = reason or tried(step, runs, a.recipe, a.device)
                if reason:
                    failures[step.digest] = reason
                note()
                shown.update(seconds)
        result = note()
    text = markdown(result)
    bad = any(seed.error for row in result.arms for seed in row.seeds)
    return Outcome(read_json(a.out / name / "table.json"), 4 if bad else 0, a.as_json, text.splitlines())


def _packs(a: ReproduceArguments) -> dict[str, Any]:
    """The packs that were named; of the two that are measured on, their test objects."""
    from data.datasets import SplatDataset

    measured = {"splats": a.data, "points": a.points}
    packs = {name: SplatDataset(path, split="test") for name, path in measured.items() if path}
    if a.points and packs["points"].uids != packs["splats"].uids:
        cause = f"its {len(packs['points']):,} test objects are not the {len(packs['splats']):,} of {a.data}"
        raise InputError(a.points, cause, "pack the same builds with the same --val and --seed, and --points mesh")
    learned = {"pretrain-splats": a.pretrain_data, "pretrain-points": a.pretrain_points}
    return packs | {name: SplatDataset(path, split="train") for name, path in learned.items() if path}


def _folds(step: Step, runs: Path) -> Path:
    """The fold file of a pack, drawn now where it is not there."""
    from . import fewshot

    path = runs.parent / f"folds-{step.data.hash}-{digest(step.more)}.json"
    if not path.exists():
        flags = [[f"--{k}", *map(str, v if isinstance(v, list) else [v])] for k, v in step.more.items()]
        fewshot.folds([str(step.data.path), "--out", str(path), *(word for flag in flags for word in flag)])
    return path


def tried(step: Step, runs: Path, recipe: str, device: str) -> str:
    """Train and measure one run; why it failed, or ""."""
    from . import fewshot, learning, probing

    folder = step.folder(runs)
    where = ["--device", device, "--json"]
    argv = [str(step.data.path), "--out", str(folder), *where]
    init = ["--init", str(step.init.folder(runs))] if step.init else []
    try:
        if step.kind == "probe":
            probing.probe([str(folder), str(step.data.path), "--method", step.method, *where])
            return ""
        asked = runs.parent / "configs" / f"{folder.name}.yaml"
        if not finished(step, runs):
            to_yaml(step.asked, asked)
        argv += ["--recipe", recipe, "--config", str(asked)]
        if step.kind == "fewshot":
            argv[1:1] = [str(_folds(step, runs))]
            fewshot.fewshot([*argv, *init, "--protocol", step.method])
            return ""
        if step.kind == "pretrain" and not finished(step, runs):
            learning.pretrain(argv)
        elif not finished(step, runs):
            learning.finetune([step.kind, *argv, *init])
        if step.kind != "pretrain":
            learning.evaluate([str(folder), str(step.data.path), *where])
    except Interrupted:
        raise
    except (GsmaeError, OSError) as error:
        log.warning("%s failed: %s", folder.name, error)
        return str(error)
    except (Exception, SystemExit) as error:  # one arm's bug or want of memory is not to cost the other arms' hours
        log.exception("%s failed", folder.name)
        return f"{type(error).__name__}: {error}"
    return ""


def _dry(a: ReproduceArguments, made: Plan, runs: Path, packs: dict[str, Any]) -> Outcome:
    """What would be run."""
    left = [step for step in made.steps if not measured(step, runs)]
    expected = dict(zip((s.digest for s in left), expected_seconds(left, _sizes(packs), a.device), strict=True))
    problems = {f"{cell.arm.name}, seed {cell.seed}": cell.problem for cell in made.cells if cell.problem}
    rows = []
    for step in made.steps:
        state, seconds = "to do", expected.get(step.digest, 0.0)
        if isinstance(seconds, str):
            problems[step.folder(runs).name], seconds = seconds, 0.0
        if step.folder(runs).exists():
            state = "goes on" if step.digest in expected else "done"
        begin = step.init.folder(runs).name if step.init else None
        name = step.folder(runs).name + (f" ({step.method})" if step.kind == "probe" else "")
        rows.append({"run": name, "state": state, "seconds": round(seconds), "init": begin})
    total = sum(row["seconds"] for row in rows)
    lines = [f"{row['state']:<8} {row['seconds']:>7} s  {row['run']}" for row in rows]
    lines += [f"cannot be run: {what}: {problem}" for what, problem in problems.items()]
    lines.append(f"{len(rows)} runs, {len(left)} of them left: about {total / 60:.1f} minutes on this machine")
    summary = {"runs": rows, "cannot": problems, "left": len(left), "seconds": total}
    return Outcome(summary, 4 if problems else 0, a.as_json, lines)


def _sizes(packs: dict[str, Any]) -> dict[Path, Size]:
    return {p.path: Size(int(p.info.splits["train"]), len(p.class_names), p.n_parts) for p in packs.values()}


def _dataset(pack: Any) -> str:
    """modelnet10 or modelnet40 where the pack is that data set by its classes and number of test objects, else ""."""
    from data.audit import modelnet

    for name in ("modelnet10", "modelnet40"):
        objects = modelnet(name)
        test = sum(o.split == "test" for o in objects)
        same = sorted({o.category for o in objects}) == sorted(pack.class_names)
        if same and test - 2 <= len(pack) <= test:  # the released splats lack one; a fit may fail
            return name
    return ""


def _facts(a: ReproduceArguments, packs: dict[str, Any]) -> dict[str, Any]:
    from gsmae import __version__

    facts = {}
    for name, pack in packs.items():
        splits = ", ".join(f"{pack.info.splits[s]:,} {s}" for s in ("train", "val", "test"))
        facts[name] = f"{pack.path.name} ({pack.fingerprint[:12]}), {len(pack.class_names)} classes, {splits}"
    recipe = a.recipe + (f" with {a.config.name}" if a.config else "")
    return {**facts, "recipe": recipe, "seeds": ", ".join(map(str, a.seeds)), "gsmae": __version__}


def _tables() -> list[str]:
    lines = []
    for name, table in TABLES.items():
        lines += [f"{name}: {table.about}", *(f"    {arm.name}" for arm in table.arms)]
    return lines

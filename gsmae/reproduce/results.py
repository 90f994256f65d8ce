"""What came out of a table's runs, read from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json
from ..measurements import kept_file
from .noise import Comparison, compare
from .plan import Plan, Step, Wanted
from .tables import METRICS, Arm

SUMMARY = "summary.json"


@dataclass(frozen=True)
class SeedResult:
    """One arm with one seed. Without metrics it has an `error`, or has not been run yet.

    metrics           on the test split, in 0..1
    objects           of the test split
    seconds           of fine-tuning; `pretrain_seconds` of the pretraining, which other arms may share
    run, pretrain     names of the folders
    answers           uid -> 1.0 where the class was right, else 0.0, or the IoU of its parts; not written anywhere
    """

    seed: int
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    objects: int = 0
    seconds: float | None = None
    pretrain_seconds: float | None = None
    run: str = ""
    pretrain: str = ""
    answers: dict[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ArmResult:
    """One row. `paper` is the paper's percentage where the pack is the paper's data set, else None."""

    arm: Arm
    seeds: tuple[SeedResult, ...]
    paper: float | None
    against: Comparison | None

    def values(self, metric: str) -> dict[int, float]:
        """seed -> value, of the seeds that have one."""
        return {s.seed: s.metrics[metric] for s in self.seeds if metric in s.metrics}


@dataclass(frozen=True)
class TableResult:
    """A table with its numbers. `dataset` is the name of the paper's data set that the pack is, or ""."""

    name: str
    about: str
    against: tuple[str, ...]
    dataset: str
    arms: tuple[ArmResult, ...]
    facts: dict[str, Any]


def collect(
    name: str,
    plan: Plan,
    runs: Path,
    *,
    failures: Mapping[str, str],
    labels: Mapping[str, int],
    dataset: str = "",
    facts: Mapping[str, Any] | None = None,
) -> TableResult:
    """Read what the runs of a plan have left.

    runs      folder of the run folders
    failures  digest of a step -> why it failed
    labels    uid -> class index, of the test split
    facts     what else is to be said about the table
    """
    rows: dict[str, list[SeedResult]] = {}
    for cell in plan.cells:
        rows.setdefault(cell.arm.name, []).append(_cell(cell, runs, failures, labels))
    arms = {cell.arm.name: cell.arm for cell in plan.cells}
    done = {n: ArmResult(arms[n], tuple(rows[n]), arms[n].paper.get(dataset), None) for n in rows}
    against = {done[n].arm.kind: done[n] for n in plan.table.against if n in done}
    found = [_compared(row, against.get(row.arm.kind)) for row in done.values()]
    return TableResult(name, plan.table.about, plan.table.against, dataset, tuple(found), dict(facts or {}))


def finished(step: Step, runs: Path) -> bool:
    """Whether a run is trained to its end."""
    return (step.folder(runs) / SUMMARY).is_file()


def measurement(step: Step, runs: Path) -> Path:
    """The file that a step leaves when nothing is left to do for it: of a probe, that of its pack."""
    names = {"pretrain": "summary", "probe": f"probe_{step.method}_test", "fewshot": "fewshot"}
    return kept_file(step.folder(runs), names.get(step.kind, "evaluation_test"), step.data.hash)


def measured(step: Step, runs: Path) -> bool:
    """Whether nothing is left to do for a step."""
    return measurement(step, runs).is_file()


def _cell(cell: Wanted, runs: Path, failures: Mapping[str, str], labels: Mapping[str, int]) -> SeedResult:
    step, empty = cell.finetune, SeedResult(cell.seed, cell.problem)
    if step is None:
        return empty
    empty = replace(empty, run=step.folder(runs).name, pretrain=step.init.folder(runs).name if step.init else "")
    for part in (step.init, step):
        if part is not None and part.digest in failures:
            return replace(empty, error=failures[part.digest])
    if not measured(step, runs):
        return empty
    try:
        result = read_json(measurement(step, runs))
        if step.kind == "fewshot":
            metrics = {name: float(values["mean"]) for name, values in result["settings"].items()}
        else:
            metrics = {name: float(result[name]) for name in METRICS[cell.arm.kind]}
        return replace(
            empty,
            metrics=metrics,
            objects=int(result.get("objects", 0)),
            seconds=_seconds(step, runs),
            pretrain_seconds=_seconds(step.init, runs) if step.init else None,
            answers=_answers(result, labels),
        )
    except (InputError, KeyError, TypeError, ValueError) as error:
        return replace(empty, error=f"its result is not readable: {error}")


def _answers(result: Mapping[str, Any], labels: Mapping[str, int]) -> dict[str, float]:
    """Each object's score; nothing where a result does not have them, as of part segmentation in older runs."""
    if "iou" in result:
        return {uid: float(iou) for uid, iou in result["iou"].items()}
    return {uid: float(labels.get(uid) == answer) for uid, answer in result.get("predicted", {}).items()}


def _seconds(step: Step, runs: Path) -> float | None:
    """As its summary says: of the last call, which is all of them unless the run was stopped in between."""
    if step.kind in ("probe", "fewshot"):
        return None
    summary = read_json(step.folder(runs) / SUMMARY)
    return float(summary["seconds"]) if not summary.get("resumed_from") else None


def _compared(row: ArmResult, against: ArmResult | None) -> ArmResult:
    if against is None or row is against:
        return row
    metric = next(iter(metrics_of([row, against])), "")
    answers = [{s.seed: s.answers for s in r.seeds if s.answers} for r in (row, against)]
    found = compare(row.values(metric), against.values(metric), *answers)
    return ArmResult(row.arm, row.seeds, row.paper, found)


def metrics_of(rows: list[ArmResult]) -> list[str]:
    """Names of what was measured in rows of one task."""
    return list(METRICS[rows[0].arm.kind]) or list(
        dict.fromkeys(m for row in rows for s in row.seeds for m in s.metrics)
    )

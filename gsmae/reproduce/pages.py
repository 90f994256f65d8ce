"""A table's numbers as Markdown for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import write_aside, write_json
from .noise import Comparison, binomial, mean_std
from .results import ArmResult, TableResult, metrics_of


def write(result: TableResult, folder: Path) -> list[Path]:
    """table.json, table.csv and table.md into the folder; returns their paths."""
    made = [folder / "table.json", folder / "table.csv", folder / "table.md"]
    write_json(made[0], _plain(result))
    for path, text in zip(made[1:], (_csv(result), markdown(result)), strict=True):
        with write_aside(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return made


def markdown(result: TableResult) -> str:
    """The table for people: percentages, mean +- standard deviation over the seeds."""
    lines = [f"# {result.name}", "", result.about, ""]
    for task in sorted({row.arm.kind for row in result.arms}):
        rows = [row for row in result.arms if row.arm.kind == task]
        metrics, objects = metrics_of(rows), {s.objects for row in rows for s in row.seeds if s.objects}
        head = ["arm", *(m.replace("_", " ") for m in metrics)]
        head += [f"paper ({result.dataset})"] if any(row.paper is not None for row in rows) else []
        compared = any(row.against for row in rows)
        against = next((row.arm.name for row in rows if row.arm.name in result.against), "")
        head += [f"minus {against}", "noise: seeds", "noise: objects"] if compared else []
        head += ["seeds", "pretraining, s", "fine-tuning, s"]
        lines += [f"## {task}", ""]
        lines += [f"Test objects: {', '.join(f'{n:,}' for n in sorted(objects))}.", ""] if objects else []
        lines += ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        for row in rows:
            cells = [row.arm.name, *(_percent(row.values(m)) for m in metrics)]
            if any(other.paper is not None for other in rows):
                cells.append("" if row.paper is None else f"{row.paper:.2f}")
            cells += _noise(row.against) if compared else []
            cells += [_seeds(row), _mean(s.pretrain_seconds for s in row.seeds), _mean(s.seconds for s in row.seeds)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += _notes(result)
    return "\n".join(lines)


def _percent(values: Mapping[int, float]) -> str:
    if not values:
        return "–"
    mean, std = mean_std(list(values.values()))
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def _noise(found: Comparison | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    interval = "?" if found.interval is None else f"± {100 * found.interval:.2f}"
    objects = "?" if found.objects is None else f"± {196 * found.objects:.2f}"
    text = f"{100 * found.mean:+.2f}"
    return [f"**{text}**" if found.beyond_noise else text, interval, objects]


def _seeds(row: ArmResult) -> str:
    failed = [s for s in row.seeds if s.error]
    done = sum(bool(s.metrics) for s in row.seeds)
    if failed:
        return f"{done} of {len(row.seeds)}; failed: {_cell_text(failed[0].error)}"
    return str(done) if done == len(row.seeds) else f"{done} of {len(row.seeds)}"


def _cell_text(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 200 else text[:200] + " …"


def _mean(values: Any) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known):.0f}" if known else ""


def _notes(result: TableResult) -> list[str]:
    lines = [f"- {key}: {value}" for key, value in result.facts.items()]
    first = [row for row in result.arms if row.arm.kind in ("classify", "probe") and row.values("accuracy")]
    if first:
        row = first[0]
        objects = max(s.objects for s in row.seeds)
        share = mean_std(list(row.values("accuracy").values()))[0]
        error = f"{196 * binomial(share, objects):.1f}"
        lines.append(f"- An accuracy near {100 * share:.0f} over {objects:,} objects has a 95 % interval of ± {error}.")
    if any(row.against for row in result.arms):
        lines.append(
            "- Differences are paired. Noise over seeds: 95 % t interval of the mean difference, test objects held "
            "fixed. Noise over objects: 1.96 standard errors of it over the test objects, seeds held fixed. "
            "Bold: larger than both, with three seeds or more; of twenty comparisons without any effect, about one is."
        )
    return [*lines, ""] if lines else []


def _csv(result: TableResult) -> str:
    metrics = sorted({m for row in result.arms for m in metrics_of([row])})
    head = ["arm", "task", "seed", *metrics, "paper_percent", "objects", "pretrain_seconds", "seconds", "error",
            "run", "pretrain"]  # fmt: skip
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, head, lineterminator="\n")
    table.writeheader()
    for row in result.arms:
        for s in row.seeds:
            table.writerow({
                "arm": row.arm.name, "task": row.arm.task, "seed": s.seed, **s.metrics, "paper_percent": row.paper,
                "objects": s.objects or None, "pretrain_seconds": s.pretrain_seconds, "seconds": s.seconds,
                "error": s.error, "run": s.run, "pretrain": s.pretrain,
            })  # fmt: skip
    return buffer.getvalue()


def _plain(result: TableResult) -> dict[str, Any]:
    arms = []
    for row in result.arms:
        summary = {}
        for metric in metrics_of([row]):
            if values := list(row.values(metric).values()):
                summary[metric] = dict(zip(("mean", "std"), mean_std(values), strict=True))
        seeds = [{k: v for k, v in asdict(s).items() if k != "answers"} for s in row.seeds]
        against = None if row.against is None else {**asdict(row.against), "beyond_noise": row.against.beyond_noise}
        arms.append({
            **row.arm.model_dump(mode="json"), "paper": row.paper, "metrics": summary, "against": against,
            "seeds": seeds,
        })  # fmt: skip
    return {"table": result.name, "about": result.about, "against": result.against, "dataset": result.dataset,
            "facts": result.facts, "arms": arms}  # fmt: skip

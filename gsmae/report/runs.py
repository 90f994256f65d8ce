"""A run folder as a section of the page: what was trained, how it went, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .builds import duration
from .charts import Chart, curves
from .folders import as_yaml, data_uri, journal, mapping, number, shorten, table, text, texts, written

NOT_CURVES = ("step", "epoch", "objects")
LARGEST = 100  # classes of a confusion matrix that is shown
MOST_CURVES = 40


@dataclass(frozen=True)
class Confusion:
    """Counts by true class (row) and answer (column); each cell with its share of the row."""

    classes: tuple[str, ...]
    rows: list[tuple[str, list[tuple[int, float]], float | None]]


@dataclass(frozen=True)
class Evaluation:
    """One reading of one split by one checkpoint."""

    split: str
    checkpoint: str
    data: str
    numbers: list[tuple[str, str]]
    confusion: Confusion | None
    per_category: list[tuple[str, float]]


@dataclass(frozen=True)
class RunSection:
    """Everything that the page says about one run."""

    kind = "run"
    title: str
    path: str
    task: str
    state: str
    facts: list[tuple[str, str]]
    tiles: list[tuple[str, str, str]]
    best: list[tuple[str, str]]
    per_category: list[tuple[str, float]]
    charts: list[Chart]
    evaluations: list[Evaluation]
    reconstructions: list[tuple[str, str]]
    problems: list[str]
    config: str
    versions: str
    objects: int = 0
    failed: int = 0

    @property
    def pictures(self) -> int:
        """Pictures inlined for this section."""
        return sum(bool(uri) for _, uri in self.reconstructions)


def read_run(folder: Path, most: int) -> RunSection:
    """Read a run folder, finished, at work or only begun.

    most  pictures of reconstructions
    """
    problems: list[str] = []
    head = mapping(folder / "run.json", problems)
    summary = mapping(folder / "summary.json", problems)
    best = mapping(folder / "best.json", problems)
    rows = journal(folder / "metrics.jsonl", problems)
    data = table(head, "data")
    metrics = table(summary, "metrics") or table(best, "metrics")
    steps = max((number(r, "step") or 0 for r in rows), default=0)
    state = "finished" if summary else f"not finished: step {steps:,.0f}" if rows else "only begun"
    facts = [
        ("command", " ".join(["gsmae", *texts(head, "command")[1:]]) if texts(head, "command") else ""),
        ("configuration", text(head, "config_hash")),
        ("data", " ".join(filter(None, [text(data, "path"), text(data, "hash")]))),
        ("encoder from", text(head, "init") or ("" if head.get("task") == "pretrain" else "random weights")),
        ("selected on", "the validation split" if metrics else ""),
        ("test split", _test(folder)),
        ("written", written([folder / n for n in ("run.json", "config.yaml", "metrics.jsonl", "summary.json")])),
    ]
    pictures = sorted((folder / "reconstructions").glob("*.png"))[:most]
    return RunSection(
        title=folder.resolve().name,
        path=str(folder),
        task=text(head, "task") or "unknown task",
        state=state,
        facts=[(name, value) for name, value in facts if value],
        tiles=_tiles(head, summary, best, rows, steps),
        best=scalars(metrics),
        per_category=_per_category(metrics),
        charts=_charts(rows, steps),
        evaluations=[e for f in sorted(folder.glob("evaluation_*.json")) if (e := _evaluation(f, problems))],
        reconstructions=[(p.stem, uri) for p in pictures if (uri := data_uri(p, problems))],
        problems=problems,
        config=_config(folder / "config.yaml", head),
        versions=as_yaml(head.get("versions")),
    )


def _tiles(
    head: dict[str, Any], summary: dict[str, Any], best: dict[str, Any], rows: list[dict[str, Any]], steps: float
) -> list[tuple[str, str, str]]:
    tiles = []
    whole, trained = number(summary, "parameters"), number(summary, "trained_parameters")
    if whole is not None:
        remark = f"{trained:,.0f} trained" if trained is not None and trained != whole else "all trained"
        tiles.append(("parameters", f"{whole / 1e6:.2f}M" if whole >= 1e5 else f"{whole:,.0f}", remark))
    if rows:
        epoch = max((number(r, "epoch") or 0 for r in rows), default=0)
        tiles.append(("steps", f"{steps:,.0f}", f"{epoch:,.4g} epochs"))
    chosen = text(best, "checkpoint") or text(summary, "best")
    if chosen:
        step = number(best, "step")
        tiles.append(("best checkpoint", f"step {step:,.0f}" if step is not None else chosen, "on validation"))
    seconds = number(summary, "seconds")
    if seconds is not None:
        resumed = number(summary, "resumed_from")
        tiles.append(
            ("time", duration(seconds), f"since step {resumed:,.0f}" if resumed else "training and validation")
        )
    classes, parts = texts(head, "classes"), texts(head, "parts")
    if classes:
        tiles.append(("classes", f"{len(classes)}", f"{len(parts)} parts" if parts else ""))
    return tiles


def _charts(rows: list[dict[str, Any]], last: float) -> list[Chart]:
    """One small chart per quantity, loss first, learning rate last."""
    series: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in rows:
        split = "val" if row.get("split") == "val" else "train"
        step = number(row, "step")
        for key in row:
            value = number(row, key)
            if key in NOT_CURVES or value is None or step is None:
                continue
            x, y = series.setdefault(key, {}).setdefault(split, ([], []))
            x.append(step)
            y.append(value)
    order = sorted(series, key=lambda k: (k != "loss", k == "lr", not k.startswith("loss"), k))
    empty: tuple[list[float], list[float]] = ([], [])
    charts = []
    for key in order[:MOST_CURVES]:
        title = "learning rate" if key == "lr" else shorten(key.replace("_", " "))
        train, val = series[key].get("train", empty), series[key].get("val", empty)
        charts.append(curves(title, train, val, last=last, linear=key == "lr"))
    return [c for c in charts if c is not None]


def scalars(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the plain numbers among the metrics."""
    out = []
    for key in values:
        value = number(values, key)
        if value is not None:
            shown = f"{value:,.0f}" if key == "objects" else f"{value:.4g}"
            out.append((shorten(str(key).replace("_", " ")), shown))
    return out


def _per_category(values: dict[str, Any]) -> list[tuple[str, float]]:
    found = table(values, "per_category")
    return [(shorten(str(k)), v) for k in found if (v := number(found, k)) is not None]


def _evaluation(file: Path, problems: list[str]) -> Evaluation | None:
    values = mapping(file, problems)
    if not values:
        return None
    return Evaluation(
        split=text(values, "split") or file.stem.removeprefix("evaluation_"),
        checkpoint=text(values, "checkpoint"),
        data=text(values, "data"),
        numbers=scalars(values),
        confusion=_confusion(values, file, problems),
        per_category=_per_category(values),
    )


def _confusion(values: dict[str, Any], file: Path, problems: list[str]) -> Confusion | None:
    counts, classes = values.get("confusion"), texts(values, "classes")
    if counts is None:
        return None
    n = len(classes)
    square = isinstance(counts, list) and len(counts) == n and all(isinstance(r, list) and len(r) == n for r in counts)
    if not square or not all(isinstance(v, int) and v >= 0 for row in counts for v in row):
        problems.append(f"{file.name}: the confusion matrix is not {n} x {n} counts")
        return None
    if not 0 < n <= LARGEST:
        return None
    rows = []
    for i, row in enumerate(counts):
        total = sum(row)
        cells = [(v, v / total if total else 0.0) for v in row]
        rows.append((classes[i], cells, row[i] / total if total else None))
    return Confusion(classes, rows)


def _test(folder: Path) -> str:
    """Whether the test split was looked at: the one thing that a reader of a number must know."""
    return "read by gsmae evaluate" if (folder / "evaluation_test.json").is_file() else "not read"


def _config(file: Path, head: dict[str, Any]) -> str:
    """config.yaml as it stands, else what run.json says."""
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")[:50_000]
    return as_yaml({k: head[k] for k in ("spec", "model") if k in head})

"""A pack folder as a section of the page, from pack.json and its index alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .charts import Chart, histogram
from .folders import as_yaml, mapping, number, shorten, table, tables, text, texts, written

SPLITS = ("train", "val", "test")
COLUMNS = ("category", "split", "gaussians", "psnr")


@dataclass(frozen=True)
class PackSection:
    """Everything that the page says about one pack. `classes` holds name, label and objects by split."""

    kind = "pack"
    title: str
    path: str
    facts: list[tuple[str, str]]
    tiles: list[tuple[str, str, str]]
    objects: int
    failed: int
    classes: list[tuple[str, int, tuple[int, ...]]]
    charts: list[Chart]
    failures: list[tuple[str, str, str]]
    dropped: list[tuple[str, int]]
    parts: str
    problems: list[str]
    config: str
    pictures: int = 0


def read_pack(folder: Path, most: int) -> PackSection:
    """Read what a pack says about itself; the shards are not opened (that is what `gsmae check` does)."""
    problems: list[str] = []
    head = mapping(folder / "pack.json", problems)
    columns = _index(folder, head, problems)
    failed, shards = tables(head, "failed"), tables(head, "shards")
    splits, rule = table(head, "splits"), table(head, "split_rule")
    sizes = [n for s in shards if (n := number(s, "bytes")) is not None]
    names = texts(head, "class_names")
    left_out = table(head, "dropped")
    dropped = {uid: int(n) for uid in left_out if (n := number(left_out, uid))}
    counted = Counter(zip(columns.get("category", []), columns.get("split", []), strict=True))
    facts = [
        ("configuration", text(head, "config_hash")),
        ("made by", text(head, "generator")),
        ("frame", text(head, "frame")),
        ("values", {"": "float32", "u16": "16 bits"}.get(text(head, "quantize"), text(head, "quantize"))),
        ("splits", ", ".join(f"{n:.0f} {k}" for k in ("official", "carved", "assigned") if (n := number(rule, k)))),
        ("written", written([folder / "pack.json"])),
    ]
    objects = int(number(head, "objects") or 0)
    tiles = [
        ("objects", f"{objects:,}", f"{len(names)} classes"),
        *((s, f"{n:,.0f}", "") for s in SPLITS if (n := number(splits, s)) is not None),
        *_tile(head, "gaussians", "Gaussians"),
        *_tile(head, "points", "surface points"),
        ("shards", f"{len(shards):,}", f"{sum(sizes) / 1e6:,.1f} MB"),
        ("not packed", f"{len(failed):,}", "failed in the build"),
        *_tile(head, "leaks", "leaks", "meshes in more than one split"),
        *_tile(head, "below_psnr", "below PSNR"),
        *(
            [("dropped", f"{sum(dropped.values()):,}", f"Gaussians without finite values, of {len(dropped)} objects")]
            if dropped
            else []
        ),
    ]
    charts = [
        histogram("Gaussians per object", [v for v in columns.get("gaussians", []) if v]),
        histogram("PSNR on test views (dB)", [v for v in columns.get("psnr", []) if v is not None], unit="dB"),
    ]
    return PackSection(
        title=folder.resolve().name,
        path=str(folder),
        facts=[(name, value) for name, value in facts if value],
        tiles=tiles,
        objects=objects,
        failed=len(failed),
        classes=[(name, label, tuple(counted[(name, s)] for s in SPLITS)) for label, name in enumerate(names)],
        charts=[c for c in charts if c is not None],
        failures=[(text(f, "uid"), text(f, "stage"), text(f, "reason")) for f in failed[:200]],
        dropped=sorted(dropped.items(), key=lambda pair: -pair[1])[:200],
        parts=as_yaml(head.get("part_names")),
        problems=problems,
        config=as_yaml({k: head.get(k) for k in ("sources", "split_rule", "min_psnr", "shards") if k in head}),
    )


def _tile(head: dict[str, Any], key: str, name: str, remark: str = "") -> list[tuple[str, str, str]]:
    value = number(head, key)
    return [] if value is None else [(name, f"{value:,.0f}", remark)]


def _index(folder: Path, head: dict[str, Any], problems: list[str]) -> dict[str, list[Any]]:
    """Columns of index.parquet, {} where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "index.parquet"
    if not file.is_file():
        problems.append("index.parquet is missing")
        return {}
    try:
        table = pq.read_table(file, columns=list(COLUMNS))
        return {name: table[name].to_pylist() for name in COLUMNS}
    except (pa.ArrowException, OSError, KeyError) as error:
        problems.append(shorten(f"index.parquet: not readable: {error}"))
        return {}

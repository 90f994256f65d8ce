"""A build folder as a section of the page: its objects, how good they are, and what went wrong."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsmae.errors import GsmaeError
from gsmae.files import TEMPORARY
from gsmae.ply import read_ply

from .charts import Chart, histogram
from .folders import as_yaml, data_uri, mapping, number, text, texts, written

SAMPLED = 24  # splats whose Gaussians are looked at one by one
ROWS = 200  # of a table


@dataclass(frozen=True)
class Entry:
    """One record. `name` is <category>/<name> as its file is called: paths are made from it, never from `uid`."""

    name: str
    uid: str
    category: str
    split: str
    done: bool
    stage: str
    reason: str
    mesh: str
    gaussians: float | None
    psnr: float | None
    ssim: float | None
    seconds: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """One picture of the contact sheet, or one failure; `picture` is a data URI or ""."""

    entry: Entry
    picture: str


@dataclass(frozen=True)
class ClassRow:
    """One class in numbers; means over its finished objects, None where nothing is known."""

    name: str
    done: int
    failed: int
    splits: tuple[int, ...]
    gaussians: float | None
    psnr: float | None
    worst: float | None
    ssim: float | None
    seconds: float | None


@dataclass(frozen=True)
class BuildSection:
    """Everything that the page says about one build."""

    kind = "build"
    title: str
    path: str
    facts: list[tuple[str, str]]
    tiles: list[tuple[str, str, str]]
    objects: int
    failed: int
    worst: list[Card]
    sample: list[Card]
    classes: list[ClassRow]
    charts: list[Chart]
    charts_note: str
    failures: list[Card]
    failed_stages: list[tuple[str, int]]
    warnings: list[tuple[str, int, str]]
    problems: list[str]
    config: str

    @property
    def has_splits(self) -> bool:
        """Whether the collection says which objects are for training and which for testing."""
        return any(any(c.splits) for c in self.classes)

    @property
    def pictures(self) -> int:
        """Pictures inlined for this section."""
        return sum(bool(c.picture) for c in [*self.worst, *self.sample, *self.failures])


def read_build(folder: Path, most: int) -> BuildSection:
    """Read a build folder, however far it got.

    most  pictures on the contact sheet: all objects, or the worst half and a random half
    """
    problems: list[str] = []
    head = mapping(folder / "build.json", problems)
    files = _files(folder / "records", ".json")
    entries = [e for f in files if (e := _entry(f, folder / "records", problems)) is not None]
    done = sorted((e for e in entries if e.done), key=lambda e: (e.psnr is None, e.psnr or 0.0, e.name))
    failed = [e for e in entries if not e.done]
    worst, sample = done[:most], []
    if len(done) > most:
        worst = done[: most - most // 2]
        sample = _draw(done[len(worst) :], most // 2)

    def cards(chosen: list[Entry]) -> list[Card]:
        return [Card(e, data_uri(folder / "views" / f"{e.name}.png", problems)) for e in chosen]

    gaussians_charts, note = _gaussians(folder, done, problems)
    charts = [
        histogram("PSNR on test views (dB)", [e.psnr for e in done if e.psnr is not None], unit="dB"),
        histogram("Gaussians per object", [e.gaussians for e in done if e.gaussians]),
        histogram("Seconds per object", [e.seconds for e in done if e.seconds is not None], unit="s"),
        *gaussians_charts,
    ]
    facts = [
        ("from", " ".join(filter(None, [text(head, "source"), text(head, "root")]))),
        ("configuration", text(head, "config_hash")),
        ("seed", text(head, "seed")),
        ("frame", text(head, "frame")),
        ("written", written([folder / "build.json", *files])),
    ]
    warned: dict[str, list[str]] = defaultdict(list)
    for e in entries:
        for warning in e.warnings:
            warned[warning].append(e.name)
    return BuildSection(
        title=folder.resolve().name,
        path=str(folder),
        facts=[(name, value) for name, value in facts if value],
        tiles=_tiles(done, failed),
        objects=len(entries),
        failed=len(failed),
        worst=cards(worst),
        sample=cards(sample),
        classes=_classes(entries),
        charts=[c for c in charts if c is not None],
        charts_note=note,
        failures=cards(failed[: min(most, ROWS)]) + [Card(e, "") for e in failed[min(most, ROWS) : ROWS]],
        failed_stages=Counter(e.stage or "unknown" for e in failed).most_common(),
        warnings=[
            (warning, len(names), ", ".join(names[:4]) + (" …" if len(names) > 4 else ""))
            for warning, names in sorted(warned.items(), key=lambda kv: (-len(kv[1]), kv[0]))[:ROWS]
        ],
        problems=problems,
        config=as_yaml({k: head[k] for k in ("profile", "config", "part_patterns") if head.get(k)}),
    )


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(f for f in folder.glob(f"*/*{suffix}") if not f.name.startswith(TEMPORARY))


def _entry(file: Path, folder: Path, problems: list[str]) -> Entry | None:
    values = mapping(file, problems)
    if not values:
        return None
    name = file.relative_to(folder).as_posix().removesuffix(".json")
    return Entry(
        name=name,
        uid=text(values, "uid") or name,
        category=text(values, "category") or name.split("/")[0],
        split=text(values, "split"),
        done=values.get("status") == "done",
        stage=text(values, "stage"),
        reason=text(values, "reason"),
        mesh=text(values, "mesh"),
        gaussians=number(values, "gaussians"),
        psnr=number(values, "psnr"),
        ssim=number(values, "ssim"),
        seconds=number(values, "seconds"),
        warnings=texts(values, "warnings"),
    )


def _draw(entries: list[Entry], count: int) -> list[Entry]:
    """A sample that looks random and is the same every time: by the hash of the name."""
    order = sorted(entries, key=lambda e: hashlib.sha256(e.name.encode("utf-8", "replace")).digest())
    return order[:count]


def _tiles(done: list[Entry], failed: list[Entry]) -> list[tuple[str, str, str]]:
    """Name, value and a smaller remark of the numbers at the top."""
    counts = [e.gaussians for e in done if e.gaussians]
    psnr, ssim = mean([e.psnr for e in done]), mean([e.ssim for e in done])
    seconds = [e.seconds for e in [*done, *failed] if e.seconds is not None]
    stages = Counter(e.stage or "unknown" for e in failed)
    tiles = [("objects", f"{len(done) + len(failed):,}", f"{len({e.category for e in done + failed})} classes")]
    tiles.append(("done", f"{len(done):,}", ""))
    tiles.append(("failed", f"{len(failed):,}", ", ".join(f"{n} in {s}" for s, n in stages.most_common(3))))
    if counts:
        tiles.append(("Gaussians", f"{sum(counts):,.0f}", f"{sum(counts) / len(counts):,.0f} per object"))
    if psnr is not None:
        tiles.append(("held-out PSNR", f"{psnr:.2f} dB", "mean over objects, test views"))
    if ssim is not None:
        tiles.append(("held-out SSIM", f"{ssim:.3f}", "mean over objects, test views"))
    if seconds:
        tiles.append(("computing time", duration(sum(seconds)), f"{sum(seconds) / len(seconds):.1f} s per object"))
    return tiles


def _classes(entries: list[Entry]) -> list[ClassRow]:
    classes: dict[str, list[Entry]] = defaultdict(list)
    for e in entries:
        classes[e.category].append(e)
    rows = []
    for name, here in sorted(classes.items()):
        done = [e for e in here if e.done]
        psnr = [e.psnr for e in done if e.psnr is not None]
        rows.append(
            ClassRow(
                name=name,
                done=len(done),
                failed=len(here) - len(done),
                splits=tuple(sum(e.split == split for e in done) for split in ("train", "val", "test")),
                gaussians=mean([e.gaussians for e in done]),
                psnr=mean(psnr),
                worst=min(psnr) if psnr else None,
                ssim=mean([e.ssim for e in done]),
                seconds=mean([e.seconds for e in done]),
            )
        )
    return rows


def _gaussians(folder: Path, done: list[Entry], problems: list[str]) -> tuple[list[Chart | None], str]:
    """Histograms over single Gaussians of some splats, and a sentence on which."""
    chosen = _draw(done, SAMPLED)
    opacities, scales, ratios = [], [], []
    for e in chosen:
        try:
            splat = read_ply(folder / "splats" / f"{e.name}.ply")
        except GsmaeError as error:
            problems.append(str(error))
            continue
        logs = splat.log_scales.numpy().astype(np.float64)
        opacities.append(splat.opacities.numpy())
        scales.append(np.exp(logs).ravel())
        ratios.append(np.exp((logs.max(axis=1) - logs.min(axis=1)).clip(max=700)))
    if not opacities:
        return [], ""
    many = sum(map(len, opacities))
    which = "all" if len(opacities) == len(done) else f"a random sample of {len(opacities)} of {len(done):,}"
    charts = [
        histogram("Opacity of a Gaussian", np.concatenate(opacities), limits=(0.0, 1.0)),
        histogram("Scale of a Gaussian (its three axes)", np.concatenate(scales), log=True),
        histogram("Anisotropy (longest / shortest axis)", np.concatenate(ratios), log=True),
    ]
    return charts, f"The last three count {many:,} Gaussians of {which} objects; the unit sphere has radius 1."


def mean(values: list[Any]) -> float | None:
    """Mean of the values that are known; None without one."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def duration(seconds: float) -> str:
    """42 s, 12.3 min, 4.1 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"

"""show, report: what was made, for people to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw, ImageFont

from gsmae.errors import GsmaeError, InputError, nearest_name
from gsmae.files import read_json, sha256, write_aside
from gsmae.gaussians import Gaussians
from gsmae.ply import read_ply
from gsmae.render import orbit, render

from .verb import Arguments, Outcome, parse, plain

FORMATS = (".png", ".jpg", ".jpeg", ".webp")
STRIP = 24  # pixels above each row, for words


class ShowArguments(Arguments):
    """Draw a splat from a few sides; below it, where it lies in a build and its mesh is still there, the mesh from the
    same sides, the difference four times enlarged, and the PSNR of each view."""

    path: tyro.conf.Positional[Path]
    """a 3DGS .ply, or with --object a folder written by `gsmae build`"""
    object: str = ""
    """uid of the object, CATEGORY/NAME, when PATH is a build"""
    out: Path | None = None
    """the picture; default: NAME.png in the working directory"""
    views: int = 4
    """cameras around the object, evenly spaced"""
    size: int = 400
    """width and height of each view in pixels"""


@dataclass(frozen=True)
class _Subject:
    """What to draw: a splat, and the record of the build that it came from ({} without)."""

    splat: Path
    build: Path | None
    record: dict[str, Any]


def show(argv: list[str]) -> Outcome:
    """gsmae show"""
    a = parse(ShowArguments, "show", argv)
    _within("--views", a.views, 1, 100)
    _within("--size", a.size, 16, 4096)
    subject = _subject(a.path, a.object)
    out = a.out or Path(f"{subject.splat.stem}.png")
    if out.suffix.lower() not in FORMATS:
        raise InputError(out, f"'{out.suffix}' is no kind of picture known here", f"one of {', '.join(FORMATS)}")
    splat, notes = read_ply(subject.splat), []
    if subject.build is None:
        splat, note = _framed(splat)
        notes += [note] if note else []
    viewmats, intrinsics = orbit(a.views, a.size)
    pictures = render(splat, viewmats, intrinsics, a.size, a.size)
    rows = [("splat", pictures.numpy(), [""] * a.views)]
    mesh, note = _mesh_path(subject)
    if mesh is not None:
        views, note = _mesh_views(mesh, viewmats, intrinsics, a.size)
        if views is not None:
            from preprocessing.quality import psnr

            each = psnr(pictures, torch.from_numpy(views)).tolist()
            rows[0] = ("splat", rows[0][1], [f"{p:.2f} dB" for p in each])
            error = np.abs(rows[0][1] - views) * 4
            rows = [("mesh", views, [""] * a.views), *rows, ("error x 4", error, [""] * a.views)]
    notes += [note] if note else []
    try:
        with write_aside(out) as temporary:
            _sheet(rows, a.size).save(temporary)
    except OSError as error:
        raise InputError(out, f"cannot be written: {error.strerror or error}") from None
    summary: dict[str, Any] = {"out": str(out), "splat": str(subject.splat), "gaussians": len(splat), "views": a.views}
    lines = [f"{out}: {len(splat):,} Gaussians in {a.views} views"]
    if len(rows) == 3:
        mean = sum(each) / len(each)
        summary |= {"mesh": str(mesh), "psnr": [round(p, 3) for p in each], "psnr_mean": round(mean, 3)}
        lines.append(f"PSNR: {mean:.2f} dB; by view {', '.join(f'{p:.2f}' for p in each)}")
    return Outcome(summary | {"notes": notes}, 0, a.as_json, lines + notes)


class ReportArguments(Arguments):
    """Write one HTML page about builds, packs and runs: it needs no other file and loads nothing from elsewhere."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders written by `gsmae build`, `gsmae pack`, `gsmae pretrain` or `gsmae finetune`"""
    out: Path
    """the page, such as report.html"""
    note: str = ""
    """a sentence for the top of the page, such as what its numbers are not good for"""
    most: int = 60
    """pictures per sheet; a larger build shows its worst objects and a random sample of the others"""


def report(argv: list[str]) -> Outcome:
    """gsmae report"""
    from gsmae.report import report as write_report

    a = parse(ReportArguments, "report", argv)
    made = write_report(a.folders, a.out, note=a.note, most=a.most)
    kinds = [f"{n} {kind}{'s' * (n != 1)}" for kind in ("build", "pack", "run") if (n := getattr(made, f"{kind}s"))]
    lines = [f"{made.out}: {', '.join(kinds)}; {made.pictures} pictures, {made.bytes / 1e6:.1f} MB"]
    if made.problems:
        lines.append(f"{made.problems} files could not be read and were left out; the page lists them")
    return Outcome(plain(made), 0, a.as_json, lines)


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(name, f"{value} is not between {low} and {high}")


def _subject(path: Path, uid: str) -> _Subject:
    """Find the splat that is meant, and the build and record it belongs to."""
    if path.is_dir():
        if not (path / "build.json").is_file():
            raise InputError(path, "has no build.json", "name a .ply, or a folder that `gsmae build` wrote")
        known = sorted(
            f.relative_to(path / "records").with_suffix("").as_posix() for f in path.glob("records/*/*.json")
        )
        if uid not in known:
            cause = f"has no object '{uid}'" if uid else "is a build of many objects"
            cure = nearest_name(uid, known) if uid else f"name one: --object {known[0] if known else 'CATEGORY/NAME'}"
            raise InputError(path, cause, cure if len(cure) < 200 else "see its records folder")
        record = _record(path, uid)
        if record.get("status") != "done":
            raise InputError(path, f"'{uid}' has no splat: {record.get('stage')}: {record.get('reason')}")
        return _Subject(path / "splats" / f"{uid}.ply", path, record)
    if uid:
        raise InputError(path, "is not a build folder", "--object goes with the folder that `gsmae build` wrote")
    if not path.is_file():
        raise InputError(path, "no such file")
    whole = path.resolve()
    if len(whole.parents) > 2 and whole.parents[1].name == "splats" and (whole.parents[2] / "build.json").is_file():
        build = whole.parents[2]
        return _Subject(path, build, _record(build, f"{whole.parent.name}/{whole.stem}"))
    return _Subject(path, None, {})


def _record(build: Path, uid: str) -> dict[str, Any]:
    path = build / "records" / f"{uid}.json"
    record = read_json(path) if path.exists() else {}
    return record if isinstance(record, dict) else {}


def _mesh_path(subject: _Subject) -> tuple[Path | None, str]:
    """The mesh that a splat was made from, if it is still there and still the same; and what to say about it.

    A record names the mesh as it was given to the build: from the working directory of then, perhaps one above it.
    """
    name = subject.record.get("mesh")
    if subject.build is None or not isinstance(name, str) or not name:
        return None, ""
    for place in (Path(), *subject.build.resolve().parents):
        path = place / name
        if path.is_file():
            if subject.record.get("mesh_sha256") not in ("", None, sha256(path)):
                return None, f"the mesh is not shown: {path} has changed since the build"
            return path, ""
    return None, f"the mesh is not shown: {name} is not there any more"


def _mesh_views(
    path: Path, viewmats: torch.Tensor, intrinsics: torch.Tensor, size: int
) -> tuple[np.ndarray | None, str]:
    """Pictures of a mesh [V, size, size, 3] in 0..1, or why there are none."""
    from preprocessing.meshes import load_mesh
    from preprocessing.rendering.cameras import Cameras
    from preprocessing.rendering.views import render_views

    try:
        views = render_views(load_mesh(path), Cameras(viewmats.numpy(), intrinsics.numpy(), size, size))
    except GsmaeError as error:
        return None, f"the mesh is not shown: {error}"
    return views.images.astype(np.float32) / 255, ""


def _framed(splat: Gaussians) -> tuple[Gaussians, str]:
    """A splat from elsewhere, moved and scaled so that the unit sphere holds nearly all of it; and what to say.

    One that fills the unit sphere already stays as it is.
    """
    means = splat.means.numpy()
    reach = float(np.quantile(np.linalg.norm(means, axis=1), 0.99))
    if 0.5 <= reach <= 1.05:
        return splat, ""
    low, high = np.quantile(means, (0.01, 0.99), axis=0)
    center = ((low + high) / 2).astype(np.float32)
    radius = float(np.quantile(np.linalg.norm(means - center, axis=1), 0.99)) or 1.0
    moved = splat.replace(
        means=(splat.means - torch.from_numpy(center)) / radius, log_scales=splat.log_scales - math.log(radius)
    )
    return moved, f"moved and scaled into the unit sphere for the picture (its radius was {radius:.3g})"


def _sheet(rows: list[tuple[str, np.ndarray, list[str]]], size: int) -> Image.Image:
    """Rows of pictures under each other, each with its name and a word per picture in a strip above it.

    rows  name, pictures [V, size, size, 3] in 0..1, V words
    """
    count = len(rows[0][1])
    sheet = Image.new("RGB", (count * size, len(rows) * (size + STRIP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (name, pictures, words) in enumerate(rows):
        top = i * (size + STRIP)
        for j, (picture, word) in enumerate(zip(pictures, words, strict=True)):
            pixels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (j * size, top + STRIP))
            text = "  ".join(filter(None, [name if j == 0 else "", word]))
            draw.text((j * size + 6, top + 4), text, fill=(70, 70, 66), font=font)
    return sheet

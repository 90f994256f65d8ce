"""Splats for viewers and other programs: a format is a writer and a reader in one dict."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsmae import __version__
from gsmae.errors import InputError, nearest_name
from gsmae.files import write_aside, write_json
from gsmae.gaussians import Gaussians
from gsmae.ply import read_ply, write_ply
from gsmae.progress import bar
from gsmae.render import orbit, render

from . import draws
from .augment import rotate, scale, translate
from .export_compact import decode, encode, require
from .export_glb import read_glb, write_glb
from .export_wds import SHARD, write_shards
from .manifest import Build
from .objects import Entry, Objects

log = logging.getLogger(__name__)

# z-up to y-down: (x, y, z) -> (x, -z, y)
UPRIGHT = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
SAME = 100.0  # dB that stand for pictures without any difference
DATASET = "dataset.json"


@dataclass(frozen=True)
class Format:
    """How a splat becomes a file, and a file a splat again in the same frame.

    turns  whether `upright` turns the values; where it does not, the format says itself which way is up
    """

    suffix: str
    write: Callable[[Path, Gaussians], None]
    read: Callable[[Path], Gaussians]
    needs: Callable[[], None] = lambda: None
    turns: bool = True


def _write_compact(kind: str, path: Path, gaussians: Gaussians) -> None:
    content = encode(gaussians, kind)
    with write_aside(path) as temporary:
        temporary.write_bytes(content)


def _compact(kind: str) -> Format:
    return Format(f".{kind}", partial(_write_compact, kind), partial(decode, kind=kind), require)


FORMATS = {
    "ply": Format(".ply", write_ply, read_ply),
    "ply-sh3": Format(".ply", lambda path, g: write_ply(path, padded(g)), read_ply),
    "splat": _compact("splat"),
    "spz": _compact("spz"),
    "sog": _compact("sog"),
    "glb": Format(".glb", write_glb, read_glb, turns=False),
}
WDS = "wds"  # many objects a file, so no `Format`


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote.

    failed  uid -> why; these objects were left out
    psnr    uid -> dB between pictures of the original and of the file read back, of the objects that were measured
    """

    out: str
    format: str
    objects: int
    gaussians: int
    files: int
    bytes: int
    failed: dict[str, str] = field(default_factory=dict)
    psnr: dict[str, float] = field(default_factory=dict)


def export(
    path: str | Path | Build,
    out: str | Path,
    format: str = "ply",
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    upright: bool = False,
    measure: int = 0,
    per_shard: int = 1000,
    progress: bool = False,
) -> ExportReport:
    """Write the splats of a source (see `Objects`) as files of another format, one object in memory at a time.

    Files are OUT/<category>/<name><suffix>, OUT/<name><suffix> for a single .ply, OUT/<split>-000000.tar and on for
    "wds", whose dataset.json is written last. Each is absent or whole. Equal input, equal bytes.

    format    a name in FORMATS, or "wds" (WebDataset)
    limit     at most so many objects, evenly spread; split and classes choose among all
    upright   turn splats for viewers that take files for y-down, as COLMAP's are: (x, y, z) -> (x, -z, y); a .glb
              always stands, being y-up by definition
    measure   read so many files back and compare pictures from four sides; not for "wds", which holds plain PLYs

    A broken object is left out and named in the report; that of a single .ply raises. Raises InputError for a path
    that is none of these, an empty choice or a file in its own way; GsmaeError where an optional package is missing.
    """
    if format not in FORMATS and format != WDS:
        raise InputError("--format", f"there is no '{format}'", nearest_name(format, [*FORMATS, WDS]))
    if per_shard < 1 or measure < 0:
        raise ValueError(f"per_shard is {per_shard} and measure {measure}, expected at least 1 and 0")
    if format != WDS:
        FORMATS[format].needs()
    objects = Objects(path, split=split, classes=classes, limit=limit)
    out = Path(out)
    try:
        if format == WDS:
            return _webdataset(objects, out, upright, per_shard, progress)
        return _files(objects, out, format, upright, measure, progress)
    except OSError as error:
        cause = f"cannot be written: {error.strerror or error}"
        raise InputError(error.filename or out, cause, "see that it is writable and has room") from error


def padded(gaussians: Gaussians, degree: int = 3) -> Gaussians:
    """The same splat with zeros for the SH that it lacks, for viewers that insist on 45 `f_rest`."""
    missing = (degree + 1) ** 2 - gaussians.sh.shape[1]
    if missing <= 0:
        return gaussians
    sh = gaussians.sh
    return gaussians.replace(sh=torch.cat([sh, sh.new_zeros(len(sh), missing, 3)], dim=1))


def rendered_psnr(original: Gaussians, other: Gaussians, views: int = 4, size: int = 256) -> float:
    """PSNR in dB between pictures of two splats from around them, white background; SAME where no pixel differs.

    Cameras stand where the unit sphere fills the picture, after both are moved and scaled as the original needs.
    """
    means = original.means.numpy()
    center = np.quantile(means, (0.01, 0.99), axis=0).mean(axis=0).astype(np.float32)
    radius = max(float(np.quantile(np.linalg.norm(means - center, axis=1), 0.99)), 1e-6)
    shift = torch.from_numpy(-center)
    cameras = orbit(views, size)
    pictures = [render(scale(translate(g, shift), 1 / radius), *cameras, size, size) for g in (original, other)]
    return _psnr(*pictures)


def _psnr(a: Tensor, b: Tensor) -> float:
    error = (a - b).square().mean().item()
    return min(SAME, -10 * math.log10(error)) if error > 0 else SAME


def _files(objects: Objects, out: Path, format: str, upright: bool, measure: int, progress: bool) -> ExportReport:
    kind, count, failed, psnr = FORMATS[format], len(objects), {}, {}
    measured = {k * count // min(measure, count) for k in range(min(measure, count))}
    done = gaussians = size = 0
    for i, entry in enumerate(bar("export", "object", objects, disable=not progress)):
        target = out / f"{_place(objects, entry)}{kind.suffix}"
        source = objects.file(i)
        if source is not None and target.resolve() == source.resolve():
            raise InputError(target, "is the file that is to be read", "name another folder with --out")
        splat = _read(objects, i, failed)
        if splat is None:
            continue
        if upright and kind.turns:
            splat = rotate(splat, UPRIGHT)
        kind.write(target, splat)
        done, gaussians, size = done + 1, gaussians + len(splat), size + target.stat().st_size
        if i in measured:
            psnr[entry.uid] = round(rendered_psnr(splat, kind.read(target)), 3)
    return ExportReport(str(out), format, done, gaussians, done, size, failed, psnr)


def _webdataset(objects: Objects, out: Path, upright: bool, per_shard: int, progress: bool) -> ExportReport:
    """Shards by split; objects in an order that depends on their uids alone, since readers shuffle only a buffer."""
    groups: dict[str, list[int]] = {}
    for i in sorted(range(len(objects)), key=lambda i: draws.key("wds", objects.entries[i].uid)):
        groups.setdefault(objects.entries[i].split or "all", []).append(i)
    expected = {SHARD.format(s, k) for s, chosen in groups.items() for k in range(-(-len(chosen) // per_shard))}
    strays = sorted(f.name for f in out.glob("*-[0-9][0-9][0-9][0-9][0-9][0-9].tar") if f.name not in expected)
    if strays:
        raise InputError(out / strays[0], "belongs to another export", "name another folder, or delete it")
    (out / DATASET).unlink(missing_ok=True)
    failed: dict[str, str] = {}
    labels = {name: k for k, name in enumerate(objects.classes)}
    total = 0
    with bar("export", "object", total=len(objects), disable=not progress) as shown:

        def samples(chosen: list[int]) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
            nonlocal total
            for i in chosen:
                entry, splat = objects.entries[i], _read(objects, i, failed)
                shown.update()
                if splat is not None:
                    total += len(splat)
                    values = {"uid": entry.uid, "category": entry.category, "label": labels[entry.category]}
                    values |= {"split": entry.split, "gaussians": len(splat), "sh_degree": splat.degree}
                    values["psnr"] = entry.psnr
                    yield entry.uid, _ply(rotate(splat, UPRIGHT) if upright else splat), values

        shards = {s: write_shards(out, s, samples(chosen), per_shard) for s, chosen in sorted(groups.items())}
    everything = [shard for group in shards.values() for shard in group]
    done, size = sum(s["objects"] for s in everything), sum(s["bytes"] for s in everything)
    head = {"schema": 1, "generator": f"gsmae {__version__}", "frame": "y-down" if upright else "z-up"}
    write_json(out / DATASET, {**head, "class_names": list(objects.classes), "objects": done, "shards": shards})
    return ExportReport(str(out), WDS, done, total, len(everything), size, failed)


def _read(objects: Objects, i: int, failed: dict[str, str]) -> Gaussians | None:
    """Object i, or None and a note where it is broken and not the only one."""
    try:
        return objects.gaussians(i)
    except InputError as error:
        if objects.kind == "splat":
            raise
        failed[objects.entries[i].uid] = str(error)
        log.warning("left out: %s", error)
        return None


def _place(objects: Objects, entry: Entry) -> str:
    """The uid as a path below the folder; a pack from elsewhere may not lead out of it."""
    parts = entry.uid.split("/")
    if objects.kind != "splat" and (len(parts) != 2 or any(p in ("", ".", "..") or "\\" in p for p in parts)):
        raise InputError(objects.path, f"uid '{entry.uid}' is not '<category>/<name>'", "pack again")
    return entry.uid


def _ply(gaussians: Gaussians) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "splat.ply"
        write_ply(file, gaussians)
        return file.read_bytes()

"""ShapeNetPart: labelled points of 16 categories, joined to splats by model id, in the splats' frame and scale.

The labels stay on the points, where the benchmark measures. Its files say nothing of the scale and centre that its
points were given, so each object's are fitted to its splat: see `placed`.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from gsmae.errors import InputError
from gsmae.gaussians import Gaussians
from gsmae.ply import read_ply_bytes
from gsmae.progress import bar

from .archives import Place, places, size_of
from .lists import list_of
from .manifest import SPLITS, Build, Record
from .surface import Points

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("tables") / "shapenetpart.tsv"
CATEGORIES = "synsetoffset2category.txt"
LIST = "train_test_split/shuffled_{}_file_list.json"
TO_SPLAT = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=np.float64)  # y up -> z up: (x, -z, y)
MAX_BYTES = 64 << 20  # of one object's points
GREY = 128  # the points have no colour
OPAQUE = 0.3  # opacity from which on a Gaussian is taken for surface
TRIM = 0.01  # share of the outermost Gaussians and points that the first guess leaves out on each side
NEAR = (0.1, 0.05)  # then Gaussians farther from every point than this share of the radius are left out, twice
APART = 0.06  # mean distance of the points from the splat, by the radius, beyond which the two are hardly one object


@dataclass(frozen=True)
class Category:
    """One category of ShapeNetPart: `parts[k]` has the label `first + k`."""

    synset: str
    name: str
    first: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """One labelled object; `file` is None where a list names it but its points are missing."""

    category: Category
    name: str
    split: str
    file: Place | None

    @property
    def uid(self) -> str:
        return f"{self.category.synset}/{self.name}"


@dataclass(frozen=True)
class PartLabels:
    """The labelled objects of a copy of ShapeNetPart, sorted by uid."""

    path: Path
    shapes: tuple[Shape, ...]

    @property
    def names(self) -> frozenset[str]:
        """Model ids, whatever their synset."""
        return frozenset(shape.name for shape in self.shapes)


@dataclass(frozen=True)
class Placement:
    """How points, their axes turned already, come to lie on a splat: scale * x + shift.

    error  mean distance of the placed points from the nearest opaque Gaussian, by the radius of the points
    """

    scale: float
    shift: tuple[float, float, float]
    error: float


@dataclass(frozen=True)
class PartPoints:
    """The labelled points of one object in its splat's frame, read when they are packed."""

    shape: Shape
    placement: Placement

    def digest(self) -> str:
        """Hash of the file and of where its points are placed."""
        return hashlib.sha256(_content(self.shape) + repr(self.placement).encode()).hexdigest()

    def read(self, parts: int) -> dict[str, np.ndarray]:
        """As `data.surface.read_points`; colours are grey."""
        rows = part_rows(_content(self.shape), self.shape)
        p = self.placement
        normals = rows[:, 3:6] @ TO_SPLAT.T
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return {
            "points": (p.scale * (rows[:, :3] @ TO_SPLAT.T) + np.array(p.shift)).astype(np.float32),
            "point_normals": normals.astype(np.float32),
            "point_colors": np.full((len(rows), 3), GREY, dtype=np.uint8),
            "point_parts": (rows[:, 6] - self.shape.category.first).astype(np.int16),
        }


def categories() -> dict[str, Category]:
    """synset -> its category, the 16 of ShapeNetPart with their 50 parts."""
    out = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            synset, name, first, parts = line.split("\t")
            out[synset] = Category(synset, name, int(first), tuple(parts.split(", ")))
    return out


def read_labels(path: str | Path) -> PartLabels:
    """The objects of `shapenetcore_partanno_segmentation_benchmark_v0_normal`, a folder or its zip, none of them read.

    Raises InputError when it is not that, or has a category that is not one of the 16.
    """
    path, known = Path(path), categories()
    if not path.exists():
        raise InputError(path, "no such file or folder", "name the folder or zip of ShapeNetPart")
    files = dict(places(path))
    found = [key for key in files if key.split("/")[-1] == CATEGORIES]
    if len(found) != 1:
        cause = f"holds {len(found)} files {CATEGORIES}"
        raise InputError(path, cause, "name the folder or zip of ShapeNetPart (with normals)")
    root, here = found[0].removesuffix(CATEGORIES), str(files[found[0]])
    for words in map(str.split, _text(files[found[0]]).splitlines()):
        if words and (len(words) != 2 or words[1] not in known):
            raise InputError(here, f"'{' '.join(words)}' is not one of the 16 categories", "is this ShapeNetPart?")
    split: dict[tuple[str, str], str] = {}
    for kind in SPLITS:
        listed = files.get(root + LIST.format(kind))
        for name in list_of(_text(listed), LIST.format(kind)) if listed is not None else ():
            split[name.category, name.name] = kind
    there: dict[tuple[str, str], Place] = {}
    for key, file in files.items():
        parts = key.removeprefix(root).split("/")
        if key.startswith(root) and len(parts) == 2 and parts[0] in known and parts[1].endswith(".txt"):
            there[parts[0], parts[1].removesuffix(".txt")] = file
    keys = sorted(key for key in {*split, *there} if key[0] in known)
    if not there:
        raise InputError(path, "holds no SYNSET/ID.txt", "name the folder or zip of ShapeNetPart (with normals)")
    return PartLabels(path, tuple(Shape(known[s], n, split.get((s, n), ""), there.get((s, n))) for s, n in keys))


def labelled(build: Build, labels: PartLabels, *, progress: bool = False) -> Build:
    """The labelled objects of a build or collection, under ShapeNetPart's category, split and part names.

    An object is found by its id, in its own synset or else in another (some models were filed anew); the record's
    warnings say which. Those without a splat are failed records. Points that lie farther from their splat than APART
    are told in a warning and kept.
    """
    by_name: dict[str, list[Record]] = defaultdict(list)
    for record in build.records:
        by_name[record.uid.split("/")[-1]].append(record)
    records, files, surfaces = [], {}, {}
    moved = off = 0
    for shape in bar("parts", "object", labels.shapes, disable=not progress):
        try:
            home, placement = _joined(build, shape, by_name[shape.name])
        except InputError as error:
            records.append(_record(shape, {"status": "failed", "stage": "parts", "reason": error.cause}))
            continue
        told = list(home.warnings)
        if home.category != shape.category.synset:
            moved += 1
            told.append(f"its splat is '{home.uid}'")
        if placement.error > APART:
            off += 1
            told.append(f"its labelled points lie {placement.error:.0%} of their radius off the splat")
            log.warning("%s: %s", shape.uid, told[-1])
        names = {"part_names": shape.category.parts, "warnings": tuple(told)}
        records.append(_record(shape, {**home.model_dump(), **names}))
        files[shape.uid], surfaces[shape.uid] = build.splat(home), PartPoints(shape, placement)
    done = len(files)
    log.info("%d labelled objects: %d joined, %d of them from another category; %d without; %d lie off their splat",
             len(records), done, moved, len(records) - done, off)  # fmt: skip
    parts = {shape.category.synset: shape.category.parts for shape in labels.shapes}
    layout, config = f"{build.layout}+shapenetpart", f"{build.config_hash}+shapenetpart"
    surface: dict[str, Points] = dict(surfaces)
    return replace(build, config_hash=config, records=tuple(records), parts=parts, layout=layout, files=files,
                   surfaces=surface)  # fmt: skip


def part_rows(content: bytes, shape: Shape) -> np.ndarray:
    """x y z nx ny nz label of each point, as written: [P, 7]. InputError for anything but the category's labels."""
    cure = "download ShapeNetPart again"
    if not content.strip():
        raise InputError(str(shape.file), "has no points", cure)
    try:
        rows = np.loadtxt(io.BytesIO(content), dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise InputError(str(shape.file), f"not readable as rows of numbers: {error}", cure) from None
    if rows.shape[1] != 7:
        cause = f"has {rows.shape[1]} columns, expected x y z nx ny nz label"
        raise InputError(str(shape.file), cause, "the version with normals is read")
    if not np.isfinite(rows).all():
        raise InputError(str(shape.file), "has non-finite values", cure)
    first, last = shape.category.first, shape.category.first + len(shape.category.parts) - 1
    if ((rows[:, 6] < first) | (rows[:, 6] > last) | (rows[:, 6] % 1 != 0)).any():
        cause = f"has labels {rows[:, 6].min():g} to {rows[:, 6].max():g}"
        raise InputError(str(shape.file), cause, f"those of a {shape.category.name} are {first} to {last}")
    return rows


def placed(points: np.ndarray, gaussians: Gaussians) -> Placement:
    """The scale and shift that bring surface points onto the splat of the same object: points [P, 3], axes turned.

    Both are taken for samples of one surface, however unevenly each covers it. So not their centroids are matched,
    which differ by as much as a quarter of the radius, but their bounding boxes: centre to centre, diagonal to
    diagonal. Of the splat only opaque Gaussians count, and none that floats: a first guess leaves the outermost 1 % on
    either side out, and the boxes are then matched again, twice, without the Gaussians that lie far from all points.
    ValueError where either has no extent; Gaussians that are not finite are passed over.
    """
    means, opacities = gaussians.means.double().cpu().numpy(), gaussians.opacities.cpu().numpy()
    finite = np.isfinite(means).all(axis=1)
    opaque = finite & (opacities > OPAQUE)
    centres = means[opaque if opaque.sum() >= 10 else finite]
    scale, shift = _matched(points, centres, TRIM)
    for near in NEAR:
        reach = near * scale * _box(points, 0)[1]
        close = KDTree(scale * points + shift).query(centres, distance_upper_bound=reach)[0] <= reach
        if close.sum() < 10:
            break
        scale, shift = _matched(points, centres[close], 0)
    away = KDTree(centres).query(scale * points + shift)[0]
    x, y, z = shift.tolist()
    return Placement(scale, (x, y, z), float(away.mean() / (scale * _box(points, 0)[1])))


def _matched(points: np.ndarray, centres: np.ndarray, trim: float) -> tuple[float, np.ndarray]:
    (a, r), (b, s) = _box(points, trim), _box(centres, trim)
    if not (r > 0 and s > 0):
        raise ValueError("no extent")
    return float(s / r), b - s / r * a


def _box(points: np.ndarray, trim: float) -> tuple[np.ndarray, float]:
    """Centre and half the diagonal of the box around all but the outermost points."""
    if not len(points):
        raise ValueError("no finite Gaussian")
    low, high = np.quantile(points, [trim, 1 - trim], axis=0)
    return (low + high) / 2, float(np.linalg.norm(high - low) / 2)


def _joined(build: Build, shape: Shape, candidates: Sequence[Record]) -> tuple[Record, Placement]:
    """The record of a labelled object's splat, its own synset's first, and where its points go."""
    if shape.file is None:
        raise InputError(shape.uid, "is in a list of ShapeNetPart but has no points there")
    ordered = sorted(candidates, key=lambda r: (r.category != shape.category.synset, r.uid))
    home = next((r for r in ordered if r.status == "done"), None)
    if home is None:
        why = f": {ordered[0].stage}: {ordered[0].reason}" if ordered else ""
        raise InputError(shape.uid, "has labelled points but no splat" + why)
    rows = part_rows(_content(shape), shape)
    try:
        splat = read_ply_bytes(_read(build.splat(home)), build.splat(home), finite=False)  # `pack` judges the values
        return home, placed(rows[:, :3] @ TO_SPLAT.T, splat)
    except ValueError as error:
        raise InputError(str(shape.file), f"cannot be brought onto its splat: {error}") from None


def _record(shape: Shape, values: dict[str, Any]) -> Record:
    own = {"uid": shape.uid, "category": shape.category.synset, "split": shape.split}
    return Record.model_validate({**values, **own})


def _content(shape: Shape) -> bytes:
    assert shape.file is not None
    return _read(shape.file, MAX_BYTES)


def _text(file: Place) -> str:
    try:
        return _read(file, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(str(file), "is not text") from None


def _read(file: Place, limit: int | None = None) -> bytes:
    try:
        if limit is not None and size_of(file) > limit:
            raise InputError(str(file), f"has more than {limit >> 20} MiB")
        return file.read_bytes()
    except OSError as error:
        raise InputError(str(file), error.strerror or str(error)) from None

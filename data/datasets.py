"""A pack as a sequence of objects: one split, some or all classes, each item a splat with its labels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsmae.errors import InputError, nearest_name
from gsmae.gaussians import Gaussians

from .packs import PACK, fingerprint, read_columns, read_pack
from .shardfile import Shard

COLUMNS = ("uid", "category", "split", "gaussians", "points", "shard", "row")


@dataclass(frozen=True)
class Surface:
    """Labelled samples of the mesh surface, in the frame of the raw splat.

    points   [P, 3] float32
    normals  [P, 3] float32
    colors   [P, 3] uint8
    parts    [P]    int64 global part index (see `SplatDataset.part_offsets`), -1 = not labelled
    """

    points: Tensor
    normals: Tensor
    colors: Tensor
    parts: Tensor


@dataclass(frozen=True)
class Sample:
    """One object: raw splat in its packed (random) row order, class index, and surface samples if the mesh had any."""

    uid: str
    category: str
    label: int
    gaussians: Gaussians
    surface: Surface | None


def to_gaussians(rows: np.ndarray, degree: int | None = None) -> Gaussians:
    """Raw rows [N, C] in the order of `shardfile.column_names` as Gaussians of an SH degree (default: all of C)."""
    values = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
    width = values.shape[1] - 11 if degree is None else 3 * (degree + 1) ** 2
    means, quats, scales, opacities, sh = values[:, : 11 + width].split([3, 4, 3, 1, width], dim=1)
    # exp takes 7 times as long on columns and gives the same; a sigmoid's last bit would depend on a row's place
    return Gaussians(means, quats, scales.contiguous(), opacities[:, 0], sh.unflatten(1, (-1, 3)))


class SplatDataset:
    """The objects of one split of a pack, sorted by uid; `dataset[i]` is a `Sample`.

    path      a folder written by `pack`
    split     "train", "val", "test", or None for all objects
    classes   only these classes; labels and part indices then count within them
    resident  read every shard in use into memory now; otherwise rows are read when needed
    cache     most shards that are open at a time; the others are known (100 bytes an object) but have no open file

    class_names   sorted; `labels` index them
    part_names    category -> its parts; those of all categories in sorted order, one after another, are the global
                  parts, `part_offsets[category]` the first of its own
    uids, labels, categories, counts (Gaussians), point_counts   one value an object

    Shards open lazily and are not pickled: a worker opens its own. Raises InputError for a split without objects, an
    unknown class, an incomplete or altered pack (sizes always; hashes of the shards only in `verify`).
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        *,
        resident: bool = False,
        cache: int = 128,
    ):
        if cache < 1:
            raise ValueError(f"cache is {cache}, expected at least 1")
        self.path, self.split = Path(path), split
        self.info = read_pack(self.path)
        self.fingerprint = fingerprint(self.path, self.info)
        index = read_columns(self.path, self.info, COLUMNS)
        self.class_names = _classes(self.path, self.info.class_names, classes)
        self.part_names = {c: self.info.part_names[c] for c in self.class_names if self.info.part_names.get(c)}
        sizes = [len(names) for names in self.part_names.values()]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()
        self.part_offsets = dict(zip(self.part_names, starts, strict=False))
        self.n_parts = int(starts[-1])
        lookup = {name: i for i, name in enumerate(self.class_names)}
        labels = np.array([lookup.get(category, -1) for category in index["category"].tolist()], dtype=np.int64)
        strange = np.flatnonzero(~np.isin(index["category"], self.info.class_names))
        if len(strange):
            cause = (
                f"'{index['uid'][strange[0]]}' is of class '{index['category'][strange[0]]}', which is not among the "
            )
            cause += f"{len(self.info.class_names)} of {PACK}"
            raise InputError(self.path / self.info.index.file, cause, "pack again")
        chosen = labels >= 0
        if split is not None:
            chosen &= index["split"] == split
            if not chosen.any():
                raise _no_split(self.path, index["split"], split, classes)
        chosen = np.flatnonzero(chosen)
        self.uids: tuple[str, ...] = tuple(index["uid"][chosen].tolist())
        self.categories: tuple[str, ...] = tuple(self.class_names[i] for i in labels[chosen].tolist())
        self.labels = labels[chosen]
        self.counts, self.point_counts = index["gaussians"][chosen], index["points"][chosen]
        self._place = np.stack([index["shard"][chosen], index["row"][chosen]], axis=1).astype(np.int64)
        self._shards: dict[int, Shard] = {}
        self._open: OrderedDict[int, Shard] = OrderedDict()  # the one used last is last
        self.resident, self.cache = resident, cache
        if resident:
            for number in np.unique(self._place[:, 0]).tolist():
                self._shard(number)

    def __len__(self) -> int:
        return len(self.uids)

    def take(self, uids: Iterable[str]) -> SplatDataset:
        """Only the named objects of this dataset, sorted by uid. Raises InputError for one that it does not have."""
        wanted = set(uids)
        if missing := sorted(wanted.difference(self.uids)):
            of = f"split '{self.split}'" if self.split else "it"
            raise InputError(self.path, f"{of} has no object '{missing[0]}' ({len(missing)} such)", "is this the pack?")
        if not wanted:
            raise ValueError("no objects to take")
        rows = np.array([i for i, uid in enumerate(self.uids) if uid in wanted])
        part = copy(self)
        part.uids = tuple(self.uids[i] for i in rows.tolist())
        part.categories = tuple(self.categories[i] for i in rows.tolist())
        part.labels, part.counts = self.labels[rows], self.counts[rows]
        part.point_counts, part._place = self.point_counts[rows], self._place[rows]
        part._shards, part._open = {}, OrderedDict()
        return part

    def __getitem__(self, i: int) -> Sample:
        if not -len(self) <= i < len(self):
            raise IndexError(f"object {i} of {len(self)}")
        i %= len(self)
        shard, row = self._at(i)
        gaussians = to_gaussians(self.rows(i), int(shard.degrees[row]))
        surface = self.surface(i)
        return Sample(self.uids[i], self.categories[i], int(self.labels[i]), gaussians, surface)

    def rows(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Raw rows start..stop of object i, all columns of its shard: [n, C] float32."""
        shard, row = self._at(i)
        rows = shard.rows(row, start, stop)
        self._used(i, shard)
        return rows

    def surface(self, i: int) -> Surface | None:
        """Surface samples of object i with global part indices, None where the object has none."""
        if not self.point_counts[i]:
            return None
        shard, row = self._at(i)
        points = shard.points(row)
        self._used(i, shard)
        parts = points["point_parts"].astype(np.int64)
        parts = np.where(parts >= 0, parts + self.part_offsets.get(self.categories[i], 0), -1)
        values = (points["points"], points["point_normals"], points["point_colors"], parts)
        return Surface(*(torch.from_numpy(v) for v in values))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}, "_open": OrderedDict()}

    def _at(self, i: int) -> tuple[Shard, int]:
        number, row = self._place[i].tolist()
        shard = self._shards.get(number)
        return self._shard(number) if shard is None else shard, row

    def _used(self, i: int, shard: Shard) -> None:
        """Close the shards that were not used for longest; called after each read, so that whoever opens a file also
        counts it. No lock, which a fork would copy in whatever state: each step is atomic, and threads that meet here
        close one too many at worst, which then opens again."""
        if self.resident:
            return
        number = int(self._place[i, 0])
        self._open[number] = shard
        with suppress(KeyError):
            self._open.move_to_end(number)
            while len(self._open) > self.cache:
                other, old = self._open.popitem(last=False)
                old.close()
                if old.held:
                    self._shards.pop(other, None)

    def _shard(self, number: int) -> Shard:
        entry = self.info.shards[number]
        file = self.path / entry.file
        if not file.is_file():
            raise InputError(file, "is missing", "copy the whole pack folder, or pack again")
        if file.stat().st_size != entry.bytes:
            cause = f"has {file.stat().st_size} bytes, pack.json says {entry.bytes}"
            raise InputError(file, cause, "copy it again, or pack again")
        shard = Shard(file)
        if shard.head.class_names != self.info.class_names or shard.head.part_names != self.info.part_names:
            raise InputError(file, "is a shard of another pack", "copy the whole pack folder again")
        uids = shard.text("uids")
        for i in np.flatnonzero(self._place[:, 0] == number).tolist():
            row = int(self._place[i, 1])
            if row >= len(uids) or uids[row] != self.uids[i]:
                raise InputError(file, f"does not hold '{self.uids[i]}' where the index says", "pack again")
        if self.resident:
            shard.load()
        return self._shards.setdefault(number, shard)  # one for all threads, whoever came first


def _classes(path: Path, known: tuple[str, ...], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The chosen classes, sorted."""
    if wanted is None:
        return known
    if isinstance(wanted, str) or not wanted:
        raise ValueError(f"classes is {wanted!r}, expected a list of class names or None")
    for name in wanted:
        if name not in known:
            raise InputError(path, f"has no class '{name}'", nearest_name(name, known))
    return tuple(sorted(set(wanted)))


def _no_split(path: Path, splits: np.ndarray, split: str, classes: Sequence[str] | None) -> InputError:
    """The error for a split without objects: says which have some."""
    names, counts = np.unique(splits, return_counts=True)
    there = ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True))
    of = f" of the classes {', '.join(classes)}" if classes is not None else ""
    if split not in ("train", "val", "test"):
        return InputError(path, f"has no split '{split}'", f"there are {there}")
    cure = f"there are {there}" + ("; pack with val_fraction > 0 to carve one" if split == "val" else "")
    return InputError(path, f"split '{split}'{of} is empty", cure)


def opened(
    path: str | Path, split: str, classes: Sequence[str] | None = None, *, parts: bool = False
) -> tuple[SplatDataset, int]:
    """A split for a task, and how many of its objects are left out because their class has no part names.

    classes  only these; None is all
    parts    leave out the classes without part names: part segmentation has no question to ask there
    Raises InputError where nothing is left.
    """
    dataset = SplatDataset(path, split=split, classes=classes)
    if not parts:
        return dataset, 0
    named = [c for c in dataset.class_names if c in dataset.part_names]
    if not named:
        raise InputError(path, "has no part labels", "build with --parts FILE and pack again")
    if len(named) == len(dataset.class_names):
        return dataset, 0
    labelled = SplatDataset(path, split=split, classes=named)
    return labelled, len(dataset) - len(labelled)

"""The objects of a splat file, a build, a pack or a released collection, read one at a time however many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gsmae.errors import InputError, nearest_name
from gsmae.gaussians import Gaussians
from gsmae.ply import read_ply, read_ply_bytes

from .archives import Place
from .datasets import SplatDataset
from .manifest import Build, Record, read_build
from .packs import PACK, read_index
from .released import detect, find


@dataclass(frozen=True)
class Entry:
    """What is known of an object before it is read; `psnr` is None and `split` "" where nobody said."""

    uid: str
    category: str
    split: str
    psnr: float | None


class Objects:
    """A sequence of objects sorted by uid, of which none is read before it is asked for.

    path      a 3DGS .ply, a build, a pack, or a folder or zip of splats as `data.released` knows them
    split     only this split
    classes   only these classes
    limit     at most so many objects, evenly spread over the others' order and so over the classes

    entries   what is known of each object
    kind      what the path is
    failed    objects of these classes that a build gave up on, whatever their split
    classes   names of all classes of the source, sorted

    Raises InputError when the path is none of these, or nothing is left.
    """

    def __init__(
        self,
        path: str | Path | Build,
        *,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        limit: int | None = None,
    ):
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}, expected at least 1")
        self.path = path.path if isinstance(path, Build) else Path(path)
        self.kind: Literal["splat", "build", "pack", "collection"] = "build"
        self._build: Build | None = None
        self._pack: SplatDataset | None = None
        self._records: dict[str, Record] = {}
        self._files: dict[str, Place] = {}
        entries = self._open(path)
        self.classes = tuple(sorted({e.category for e in entries}))
        for name in classes or ():
            if name not in self.classes:
                raise InputError(self.path, f"has no class '{name}'", nearest_name(name, self.classes))
        named = [i for i, e in enumerate(entries) if not classes or e.category in classes]
        chosen = [i for i in named if split in (None, entries[i].split)]
        if not chosen:
            counts = Counter(entries[i].split or "no split" for i in named)
            there = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
            cause = f"has no objects of split '{split}'" if named else "has no finished objects"
            raise InputError(self.path, cause, f"there are: {there}" if there else "see its failures: `gsmae check`")
        if limit is not None and limit < len(chosen):
            chosen = [chosen[k * len(chosen) // limit] for k in range(limit)]
        self.entries = tuple(entries[i] for i in chosen)
        self._at = tuple(chosen)
        failed = self._build.failed if self._build else ()
        self.failed = sum(not classes or r.category in classes for r in failed)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def file(self, i: int) -> Path | None:
        """The PLY that object i is read from, None where it is not a file of its own."""
        place = self._place(i)
        return place if isinstance(place, Path) else None

    def gaussians(self, i: int) -> Gaussians:
        """The splat of object i: in the file's order, or in the random order of a pack. InputError when broken."""
        if self._pack:
            return self._pack[self._at[i]].gaussians
        place = self._place(i)
        assert place is not None
        return read_ply(place) if isinstance(place, Path) else read_ply_bytes(place.read_bytes(), place)

    def surface(self, i: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Samples of object i's mesh, points and unit normals [P, 3] float32 each; None where there are none.

        InputError when broken.
        """
        if self._pack:
            surface = self._pack.surface(self._at[i])
            return None if surface is None else (surface.points.numpy(), surface.normals.numpy())
        if not self._build:
            return None
        record = self._records[self.entries[i].uid]
        samples = self._build.surface(record)
        if samples is None:
            return None
        arrays = samples.read(len(record.part_names or self._build.parts.get(record.category, ())))
        return arrays["points"], arrays["point_normals"]

    def _place(self, i: int) -> Place | None:
        """Where the bytes of object i lie, None in a pack."""
        uid = self.entries[i].uid
        return self._build.splat(self._records[uid]) if self._build else self._files.get(uid)

    def _open(self, path: str | Path | Build) -> list[Entry]:
        if not isinstance(path, Build):
            if self.path.is_file() and self.path.suffix.lower() == ".ply":
                self.kind, self._files = "splat", {self.path.stem: self.path}
                return [Entry(self.path.stem, "", "", None)]
            if (self.path / PACK).is_file() or any(self.path.glob("shard_*.h5")):
                self.kind, self._pack = "pack", SplatDataset(self.path)
                index = read_index(self.path, self._pack.info)
                psnr = [None if np.isnan(p) else p for p in index.psnr.tolist()]
                columns = (index.uid.tolist(), index.category.tolist(), index.split.tolist(), psnr)
                return [Entry(*row) for row in zip(*columns, strict=True)]
            if detect(self.path) != "build":
                self.kind, found = "collection", find(self.path)
                self._files = {item.uid: item.file for item in found}
                return [Entry(item.uid, item.uid.split("/")[0], item.split, None) for item in found]
        self._build = path if isinstance(path, Build) else read_build(path)
        self._records = {r.uid: r for r in self._build.done}
        return [Entry(r.uid, r.category, r.split, r.psnr) for r in self._build.done]

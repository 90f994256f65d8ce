"""Released splat collections as builds: a layout is a function from a folder to its splats, and one line in a dict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gsmae.errors import InputError, nearest_name
from gsmae.progress import bar

from .manifest import Build, record_of


@dataclass(frozen=True)
class Found:
    """One splat of a collection: where it lies and what its place says about it."""

    uid: str
    file: Path
    split: str = ""


def shapesplats(folder: Path) -> Iterator[Found]:
    """ShapeNet/ShapeSplatsV1: `<synset>-<model>.ply` in one folder; `train.txt`, `val.txt`, `test.txt` in it or in its
    parent list file names of each split. The published test list lies wholly inside train: train then loses them."""
    splits: dict[str, str] = {}
    for split in ("train", "val", "test"):  # a later list wins
        for place in (folder, folder.parent):
            if (place / f"{split}.txt").is_file():
                names = (place / f"{split}.txt").read_text(encoding="utf-8").split()
                splits |= {Path(name).name.removesuffix(".ply"): split for name in names}
                break
    for file in sorted(folder.glob("*-*.ply")):
        synset, model = file.stem.split("-", 1)
        yield Found(f"{synset}/{model}", file, splits.get(file.stem, ""))


def modelnet_splats(folder: Path) -> Iterator[Found]:
    """ShapeSplats/ModelNet_Splats: `<class>/{train,test}/<name>/point_cloud.ply`."""
    for file in sorted(folder.glob("*/*/*/point_cloud.ply")):
        split, name = file.parent.parent.name, file.parent.name
        if split in ("train", "test"):
            yield Found(f"{file.parent.parent.parent.name}/{name}", file, split)


DATASETS: dict[str, Callable[[Path], Iterator[Found]]] = {
    "shapesplats": shapesplats,
    "modelnet-splats": modelnet_splats,
}


def read_released(path: str | Path, layout: str, *, progress: bool = False) -> Build:
    """A released collection as a `Build` that `pack` takes; every splat is read once for its count and hash.

    Its frame is z-up as ours is; fit quality and meshes are unknown, which each record says. Raises InputError for an
    unknown layout, a folder without such splats, one name twice, or a broken file.
    """
    path = Path(path)
    if layout not in DATASETS:
        raise InputError(path, f"unknown layout '{layout}'", nearest_name(layout, DATASETS))
    found = {}
    for item in DATASETS[layout](path):
        if item.uid in found:
            raise InputError(item.file, f"object '{item.uid}' is also {found[item.uid].file}", "remove one of the two")
        found[item.uid] = item
    if not found:
        what = " ".join((DATASETS[layout].__doc__ or "").split(";")[0].split(".")[0].split())
        raise InputError(path, f"holds no splat of the layout '{layout}'", what)
    items = [found[uid] for uid in sorted(found)]
    records = tuple(record_of(i.file, i.uid, i.split) for i in bar("read", "object", items, disable=not progress))
    return Build(path, layout, 0, "z-up", records, {}, layout, {i.uid: i.file for i in items})

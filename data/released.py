"""Splats that others made as builds: a layout is a function from the files of a folder or zip to its objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gsmae.errors import InputError, nearest_name
from gsmae.progress import bar

from .archives import Place, places
from .lists import ITERATION, SYNSET, beside, name_of, read_list, splits
from .manifest import Build, Record, read_build, record_of

Files = list[tuple[str, Place]]
"""Name below the root, and where the bytes lie"""


@dataclass(frozen=True)
class Found:
    """One splat of a collection: where it lies and what its place says about it."""

    uid: str
    file: Place
    split: str = ""


def shapesplats(root: Path, files: Files) -> Iterable[Found]:
    """ShapeNet/ShapeSplatsV1: `<synset>-<model>.ply`, in any folder or zip (03001627_0.zip, 03001627_1.zip); the lists
    of the splits beside them. The published test list lies wholly inside train: train then loses them."""
    for key, file in files:
        named = SYNSET.fullmatch(key.rsplit("/", 1)[-1].removesuffix(".ply"))
        if key.endswith(".ply") and named:
            yield Found(f"{named[1]}/{named[2]}", file)


def modelnet_splats(root: Path, files: Files) -> Iterable[Found]:
    """ShapeSplats/ModelNet_Splats: `<class>/{train,test}/<name>/point_cloud.ply`, in folders or zips."""
    for key, file in files:
        name = name_of(key)
        if key.endswith("/point_cloud.ply") and name.category and name.split:
            yield Found(name.uid, file, name.split)


def folder(root: Path, files: Files) -> Iterable[Found]:
    """Any 3DGS splats: `<category>/<name>.ply`, with train, val or test as a folder anywhere above the name; splats
    without a category get that of their root's name. Of a splat's iterations (`<name>/point_cloud/iteration_N/
    point_cloud.ply`) the last is taken."""
    newest: dict[str, int] = {}
    kept: dict[str, list[Found]] = {}
    for key, file in files:
        if not key.lower().endswith(".ply"):
            continue
        name = name_of(key)
        uid = name.uid if name.category else f"{root.stem}/{name.name}"
        steps = [int(found[1]) for part in key.split("/") if (found := ITERATION.fullmatch(part))]
        step = steps[-1] if steps else -1
        if step > newest.get(uid, -2):
            newest[uid], kept[uid] = step, []
        if step == newest[uid]:
            kept[uid].append(Found(uid, file, name.split))
    for found in kept.values():
        yield from found


DATASETS: dict[str, Callable[[Path, Files], Iterable[Found]]] = {
    "shapesplats": shapesplats,
    "modelnet-splats": modelnet_splats,
    "folder": folder,
}


def detect(path: str | Path) -> str:
    """The name of the first layout that some file of a folder or zip has, or "build". InputError where none fits."""
    path = _existing(path)
    return "build" if (path / "build.json").is_file() else _layout(path, places(path))


def find(path: str | Path, layout: str = "auto") -> tuple[Found, ...]:
    """The splats of a collection by their uid, none of which is read; splits as places and lists beside them say.

    path     a folder, with or without zips, or a zip
    layout   a name in `DATASETS`, or "auto"
    Raises InputError for an unknown layout, a path without such splats, one name twice, or a zip that is refused.
    """
    return _found(Path(path), layout)[1]


def everything(path: str | Path, layout: str = "auto") -> tuple[str, list[Found]]:
    """The layout and every splat of a collection in it, as `find` but with objects that are there twice, and without
    what lists beside it say."""
    path = _existing(path)
    if layout != "auto" and layout not in DATASETS:
        raise InputError(path, f"unknown layout '{layout}'", nearest_name(layout, DATASETS))
    files = places(path)
    layout = _layout(path, files) if layout == "auto" else layout
    found = list(DATASETS[layout](path, files))
    if not found:
        what = " ".join((DATASETS[layout].__doc__ or "").split(";")[0].split(". ")[0].split())
        raise InputError(path, f"holds no splat of the layout '{layout}'", what)
    return layout, found


def read_released(
    path: str | Path,
    layout: str = "auto",
    *,
    names: Collection[str] | None = None,
    finite: bool = True,
    progress: bool = False,
) -> Build:
    """A collection of splats as a `Build` that `pack` takes; every splat is read once for its count and hash.

    The frame is z-up as ours is; fit quality and meshes are unknown, which each record says. A broken splat is a failed
    record, with its reason. Zips are read as they are.

    path, layout  as of `find`
    names         only objects of these names (the uid's second part), under whatever category
    finite        False: values that are not finite do not break a splat; `pack` with bad_rows="drop" then mends it
    """
    path = Path(path)
    layout, found = _found(path, layout)
    items = [item for item in found if names is None or item.uid.split("/")[1] in names]
    records = tuple(_record(item, finite) for item in bar("read", "object", items, disable=not progress))
    return Build(path, layout, 0, "z-up", records, {}, layout, {item.uid: item.file for item in items})


def read_source(
    path: str | Path,
    source: str = "auto",
    *,
    names: Collection[str] | None = None,
    finite: bool = True,
    progress: bool = False,
) -> Build:
    """A build or a collection: "build", "auto" or a name in `DATASETS`; the rest as of `read_released`."""
    source = detect(path) if source == "auto" and Path(path).exists() else source
    if source in ("build", "auto"):
        return read_build(path)
    return read_released(path, source, names=names, finite=finite, progress=progress)


def _found(path: Path, layout: str) -> tuple[str, tuple[Found, ...]]:
    """The layout, and what `find` says."""
    layout, items = everything(path, layout)
    found: dict[str, Found] = {}
    for item in items:
        if item.uid in found:
            cause = f"object '{item.uid}' is also {found[item.uid].file}"
            raise InputError(str(item.file), cause, "remove one of the two")
        found[item.uid] = item
    listed = splits(name for file in beside(path) for name in read_list(file))
    for uid, item in found.items():
        said = listed.get(uid) or listed.get(uid.split("/")[1])
        if said and not item.split:
            found[uid] = replace(item, split=said)
    return layout, tuple(found[uid] for uid in sorted(found))


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise InputError(path, "no such file or folder", "name a build, or a folder or zip of splats")
    return Path(path)


def _layout(path: Path, files: Files) -> str:
    for name, layout in DATASETS.items():
        if next(iter(layout(path, files)), None) is not None:
            return name
    raise InputError(path, "has no build.json and holds no .ply", "name a build, or a folder or zip of splats")


def _record(item: Found, finite: bool) -> Record:
    try:
        return record_of(item.file, item.uid, item.split, finite=finite)
    except InputError as error:
        values = {"uid": item.uid, "category": item.uid.split("/")[0], "split": item.split, "status": "failed"}
        return Record.model_validate({**values, "stage": "read", "reason": error.cause})

"""Collections of meshes: where each object's file is, its category and its split. `SOURCES` is the registry."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gsmae.errors import InputError

from .formats import READERS

SPLITS = ("train", "val", "test")
# of meshes of one name in one folder the first of these is read: the earlier a format, the more it tells
PREFERRED = (".obj", ".glb", ".gltf", ".dae", ".ply", ".wrl", ".off", ".stl")
# folders of a build, which may lie in its own collection
BUILT = ("splats", "points", "views", "records", "ledgers", "quarantine", "at_work", "slurm")
# what lies beside meshes without being one; anything else without a reader is reported
BESIDE = {
    ".mtl", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tga", ".gif", ".tif", ".tiff", ".hdr", ".exr", ".dds", ".bin",
    ".txt", ".md", ".csv", ".json", ".yaml", ".yml", ".log", ".pdf", ".html", ".binvox", ".solid", ".npz", ".npy",
    ".pts", ".seg", ".h5", "",
}  # fmt: skip


@dataclass(frozen=True)
class MeshItem:
    """One object of a collection.

    uid       "<category>/<name>", unique in the collection
    path      the mesh file
    category  the class, as the collection's folder is called (ShapeNet: the synset)
    split     "train", "val", "test", or "" where the collection does not say
    """

    uid: str
    path: Path
    category: str
    split: str


@dataclass(frozen=True)
class Skipped:
    """Something in a collection that cannot become an object, and why."""

    path: Path
    reason: str


Source = Callable[[Path], Iterator[MeshItem]]
_Scan = Callable[[Path], Iterator["MeshItem | Skipped"]]


def _shapenet(root: Path) -> Iterator[MeshItem | Skipped]:
    """ShapeNetCore v1 `<synset>/<id>/model.obj` and v2 `<synset>/<id>/models/model_normalized.obj`; no splits.

    Both have y up; v1 and v2 face different ways, and stay so.
    """
    for synset in filter(_is_synset, _folders(root)):
        for folder in _folders(synset):
            places = [folder / "models" / "model_normalized.obj", folder / "model.obj", folder / "models" / "model.obj"]
            path = next(filter(Path.is_file, places), None)
            if path is None:
                yield Skipped(folder, "neither model.obj nor models/model_normalized.obj is there")
            else:
                yield MeshItem(f"{synset.name}/{folder.name}", path, synset.name, "")


def _modelnet(root: Path) -> Iterator[MeshItem | Skipped]:
    """ModelNet10 and 40: `<class>/{train,test}/<class>_0001.off`; z up."""
    for category in _folders(root):
        for split in ("test", "train"):
            for path in _files(category / split):
                if path.suffix.lower() == ".off":
                    yield MeshItem(f"{category.name}/{path.stem}", path, category.name, split)
                elif (reason := _unread(path)) is not None:
                    yield Skipped(path, reason)


def _folder(root: Path) -> Iterator[MeshItem | Skipped]:
    """Any folder: `<category>/[<split>/]` with mesh files, or a folder for each object with its mesh inside.

    An object's folder holds `model.obj`, `<name>.obj` or one mesh of any name, itself or in its folder `models`.
    """
    for category in _folders(root):
        places = [(category, "")] + [(category / split, split) for split in SPLITS if (category / split).is_dir()]
        for place, split in places:
            for path in _files(place):
                if path.suffix.lower() in READERS:
                    yield MeshItem(f"{category.name}/{path.stem}", path, category.name, split)
                elif (reason := _unread(path)) is not None:
                    yield Skipped(path, reason)
            for folder in _folders(place):
                if not split and folder.name in SPLITS:
                    continue
                found = _object_mesh(folder)
                if isinstance(found, Path):
                    yield MeshItem(f"{category.name}/{folder.name}", found, category.name, split)
                else:
                    yield found


def _object_mesh(folder: Path) -> Path | Skipped:
    """The one mesh of an object's folder."""
    reasons = []
    for place in (folder, folder / "models"):
        meshes = [path for path in _files(place) if path.suffix.lower() in READERS]
        named = [path for path in meshes if path.stem in ("model_normalized", "model", folder.name)]
        if len(meshes) == 1 or len(named) == 1:
            return (named or meshes)[0]
        if meshes:
            names = ", ".join(path.name for path in meshes[:4])
            return Skipped(place, f"several meshes ({names}) and not exactly one is called model or {folder.name}")
        reasons += [reason for path in _files(place) if (reason := _unread(path)) is not None]
    return Skipped(folder, reasons[0] if reasons else "no mesh in this folder or in its folder models")


def _found(root: Path, scan: _Scan) -> Iterator[MeshItem | Skipped]:
    """What a scan finds, each uid once: meshes of one name are told, but for one where that is clear, and so are
    links that lead out of the collection."""
    named: dict[str, list[MeshItem]] = {}
    for found in scan(root):
        if isinstance(found, Skipped):
            yield found
        elif not found.uid.isprintable():
            yield Skipped(found.path, "has characters in its name that cannot be printed; rename it")
        elif _leads_out(found.path, root):
            yield Skipped(found.path, "is a link that leads out of the collection; copy the file")
        else:
            named.setdefault(found.uid, []).append(found)
    for uid, same in named.items():
        best = min(same, key=lambda item: PREFERRED.index(item.path.suffix.lower()))
        places = {(item.path.parent, item.path.stem) for item in same}
        kinds = {item.path.suffix.lower() for item in same}
        if len(same) > 1 and (len(places) > 1 or len(kinds) < len(same)):
            for item, other in zip(same, same[1:] + same[:1], strict=True):
                yield Skipped(item.path, f"has the same name as {other.path}: both would be {uid}; rename one of them")
            continue
        yield best
        for item in same:
            if item is not best:
                yield Skipped(item.path, f"is {uid} once more; {best.path.name} is read instead")


def _leads_out(path: Path, root: Path) -> bool:
    """Whether a mesh file is a link to somewhere outside of the collection, and of the folder that it lies in."""
    if not path.is_symlink():
        return False
    real = path.resolve()
    return not (real.is_relative_to(root.resolve()) or real.is_relative_to(path.parent.resolve()))


def _source(name: str, scan: _Scan) -> Source:
    """The scan as a source: items only, sorted as the scan has them, never nothing."""

    def items(root: Path) -> Iterator[MeshItem]:
        _check_root(root)
        some = False
        for found in _found(root, scan):
            if isinstance(found, MeshItem):
                some = True
                yield found
        if not some:
            raise InputError(
                root, f"no meshes in the layout of '{name}'", str(scan.__doc__).splitlines()[0].rstrip(".")
            )

    return items


_SCANS: dict[str, _Scan] = {"shapenet": _shapenet, "modelnet": _modelnet, "folder": _folder}

# name -> (root) -> items in a fixed, sorted order; InputError for a root that is missing or holds nothing
SOURCES: dict[str, Source] = {name: _source(name, scan) for name, scan in _SCANS.items()}


def examples() -> Path:
    """The folder of the real meshes that come with gsmae: `meshes` (OBJ), `off` (ModelNet's layout) and `parts.json`.

    In a checkout it lies beside the packages, in an installed wheel inside this one.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "examples", here.parent / "examples"):
        if (folder / "manifest.csv").is_file():
            return folder
    raise InputError(here / "examples", "the example meshes are missing", "install gsmae again")


def detect(root: str | Path) -> str:
    """The source whose layout `root` has; InputError where it is missing or has no folders."""
    root = Path(root)
    _check_root(root)
    folders = _folders(root)
    if not folders:
        raise InputError(root, "has no folders", "give the folder that holds one folder per category")
    if (root / "taxonomy.json").is_file() or any(map(_is_synset, folders)):
        return "shapenet"
    pattern = re.compile(r".+_\d{4}\.off", re.IGNORECASE)
    for category in folders:
        for split in ("train", "test"):
            if any(pattern.fullmatch(path.name) for path in _files(category / split)):
                return "modelnet"
    return "folder"


def skipped(root: str | Path, source: str | None = None) -> list[Skipped]:
    """What lies in the collection but cannot become an object, sorted by path; `source` None = detect it."""
    root = Path(root)
    scan = _SCANS[source if source is not None else detect(root)]
    return sorted((found for found in _found(root, scan) if isinstance(found, Skipped)), key=lambda s: s.path)


def _is_synset(folder: Path) -> bool:
    return re.fullmatch(r"\d{8}", folder.name) is not None


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise InputError(root, "no such folder" if not root.exists() else "is not a folder")


def _folders(place: Path) -> list[Path]:
    ours = BUILT if _is_ours(place) else ()
    folders = (p for p in place.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in ours)
    return sorted(p for p in folders if not _is_ours(p))


def _files(place: Path) -> list[Path]:
    """Plain files, sorted; none where the folder is missing."""
    if not place.is_dir():
        return []
    return sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a build or a pack, which may lie in the collection that it was made of."""
    return (folder / "build.json").is_file() or (folder / "pack.json").is_file()


def _unread(path: Path) -> str | None:
    """Why a file is not used, or None where it only lies beside meshes."""
    suffix = path.suffix.lower()
    return None if suffix in BESIDE or suffix in READERS else f"no reader for '{path.suffix}' files"

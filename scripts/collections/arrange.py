"""Unpacked Debian packages -> folders that `gsmae build` reads: CATEGORY[/SPLIT]/NAME, and `sources.csv` beside them.

Called by sweethome3d.sh and kicad.sh; standard library only.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARES = {"train": 0.7, "test": 0.2, "val": 0.1}  # of the objects of a category
NUMBER = re.compile(r"\d+(\.\d+)?")


def sweethome3d(unpacked: Path, out: Path) -> list[dict[str, str]]:
    """CATEGORY/LIBRARY_MODEL/ with the OBJ and what it names; `unpacked` has one folder per library."""
    meshes = {(path.relative_to(unpacked).parts[0], path.stem): path for path in sorted(unpacked.rglob("*.obj"))}
    rows = []
    for label in _table(HERE / "sweethome3d_labels.csv"):
        mesh = meshes.get((label["library"], label["model"]))
        if mesh is None:
            print(f"not in this version of the package: {label['library']}/{label['model']}")
            continue
        name = f"{label['library'].lower()}_{label['model']}"
        folder = out / label["category"] / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(mesh, folder / mesh.name)
        for path in _named_by(mesh):
            shutil.copy2(path, folder / path.name)
        source = mesh.relative_to(unpacked).as_posix()
        rows.append({"uid": f"{label['category']}/{name}", "licence": label["licence"], "source": source})
    return rows


def _named_by(mesh: Path) -> set[Path]:
    """The material libraries of an OBJ and the textures of those that lie beside it."""
    beside = {path.name.lower(): path for path in mesh.parent.iterdir() if path.is_file()}
    libraries = _files(beside, mesh, r"mtllib\s+(.+)")
    return libraries.union(*(_files(beside, path, r"map_\w+\s+(?:-\S+\s+[\d. ]+)*(.+)") for path in libraries))


def _files(beside: dict[str, Path], path: Path, pattern: str) -> set[Path]:
    lines = path.read_text(encoding="latin-1").splitlines()
    found = [match.group(1) for line in lines if (match := re.match(pattern, line.strip()))]
    names = [name.replace("\\", "/").rpartition("/")[2].strip().lower() for name in found]
    return {beside[name] for name in names if name in beside}


def kicad(unpacked: Path, out: Path) -> list[dict[str, str]]:
    """CATEGORY/SPLIT/NAME.wrl; `unpacked` has KiCad's folders, NAME.3dshapes.

    Most packages are drawn by a program in many sizes: names that differ in their numbers only are one family, files of
    the same bytes are of one family, too, and a family lies in one split.
    """
    categories = {row["folder"]: row["category"] for row in _table(HERE / "kicad_categories.csv")}
    found: dict[str, list[Path]] = defaultdict(list)
    folders: Counter[str] = Counter()
    for path in sorted(unpacked.rglob("*.wrl")):
        folder = path.parent.name.removesuffix(".3dshapes")
        folders[folder] += 1
        if folder in categories:
            found[categories[folder]].append(path)
    for folder in sorted(folders.keys() - categories):
        print(f"no label for {folder}: {folders[folder]} objects are left out")
    for folder in sorted(categories.keys() - folders):
        print(f"not in this version of the package: {folder}")
    rows = []
    for category, paths in sorted(found.items()):
        families = _families(paths)
        splits = _splits(Counter(families.values()))
        for path in paths:
            split, family = splits[families[path]], families[path]
            (out / category / split).mkdir(parents=True, exist_ok=True)
            source = path.relative_to(unpacked).as_posix()
            path.replace(out / category / split / path.name)
            rows.append({"uid": f"{category}/{path.stem}", "split": split, "family": family, "source": source})
    return rows


def _families(paths: Iterable[Path]) -> dict[Path, str]:
    """The family of each file, as the first of the names without numbers that belong to it."""
    paths = list(paths)
    family = {path: NUMBER.sub("#", path.stem) for path in paths}
    twins = defaultdict(set)
    for path in paths:
        twins[hashlib.sha256(path.read_bytes()).hexdigest()].add(family[path])
    leader = {name: name for name in family.values()}
    for same in twins.values():
        leaders = {leader[name] for name in same}
        leader = {name: min(leaders) if first in leaders else first for name, first in leader.items()}
    return {path: leader[name] for path, name in family.items()}


def _splits(sizes: Counter[str]) -> dict[str, str]:
    """A split for every family: the three largest go to train, test and val, each other where most is missing."""
    order = sorted(sizes, key=lambda name: (-sizes[name], hashlib.sha256(name.encode()).hexdigest()))
    splits = dict(zip(order, SHARES, strict=False))
    have = Counter({split: sizes[name] for name, split in splits.items()})
    for name in order[len(SHARES) :]:
        split = max(SHARES, key=lambda split: SHARES[split] * sizes.total() - have[split])
        splits[name] = split
        have[split] += sizes[name]
    return splits


def chosen(uids: Iterable[str], categories: Iterable[str], least: int, most: int) -> set[str]:
    """Which of the CATEGORY/NAME stay: of these categories (none: all), those with `least` objects or more, of each at
    most `most` (0: all), the first by the hash of their names, so that a smaller subset lies within a larger one."""
    found: dict[str, list[str]] = defaultdict(list)
    for uid in uids:
        found[uid.split("/")[0]].append(uid)
    if unknown := sorted(set(categories) - found.keys()):
        raise SystemExit(f"no category {', '.join(unknown)}; there are {', '.join(sorted(found))}")
    kept = set()
    for category, names in found.items():
        if len(names) >= least and (not categories or category in categories):
            order = sorted(names, key=lambda uid: (hashlib.sha256(uid.split("/", 1)[1].encode()).hexdigest(), uid))
            kept.update(order[: most or None])
    return kept


def _remove(row: dict[str, str], out: Path) -> None:
    category, name = row["uid"].split("/", 1)
    if "split" in row:
        (out / category / row["split"] / f"{name}.wrl").unlink(missing_ok=True)
    else:
        shutil.rmtree(out / category / name)


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection", choices=["sweethome3d", "kicad"])
    parser.add_argument("unpacked", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--categories", nargs="+", default=[], help="only these")
    parser.add_argument("--least", type=int, default=0, help="only categories with so many objects")
    parser.add_argument("--most", type=int, default=0, help="at most so many objects of a category; 0: all")
    a = parser.parse_args()
    rows = {"sweethome3d": sweethome3d, "kicad": kicad}[a.collection](a.unpacked, a.out)
    if not rows:
        raise SystemExit(f"{a.unpacked}: nothing that the labels name; is this another version of the package?")
    kept = chosen((row["uid"] for row in rows), a.categories, a.least, a.most)
    for row in rows:
        if row["uid"] not in kept:
            _remove(row, a.out)
    rows = [row for row in rows if row["uid"] in kept]
    for folder in sorted(a.out.rglob("*"), reverse=True):
        if folder.is_dir() and folder.parts[len(a.out.parts)] != ".packages" and not any(folder.iterdir()):
            folder.rmdir()
    with (a.out / "sources.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    counts = Counter(row["uid"].split("/")[0] for row in rows)
    splits = Counter(row.get("split", "no split") for row in rows)
    print(f"{len(rows)} objects in {len(counts)} categories: {', '.join(f'{n} {s}' for s, n in splits.items())}")


if __name__ == "__main__":
    main()

"""Is a test split held out, is everything there, is anything there twice: builds, packs, collections and bare lists."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gsmae.errors import InputError
from gsmae.progress import bar

from .archives import Member, size_of
from .lists import NUMBERED, SPLITS, SUFFIXES, Name, beside, read_list, split_of

if TYPE_CHECKING:
    from .released import Found

TABLE = Path(__file__).with_name("tables") / "modelnet.tsv"
STANDARDS = ("modelnet10", "modelnet40")
ENOUGH = 0.9  # share of a standard collection from which on a list is taken for it
LONG = 16  # a name of so many letters is an id of its own, whatever the category; those of synsets always are

_Shared = list[tuple[str, tuple[str, ...]]]  # an id, and the objects in several categories that have it

Kind = Literal["splits", "categories", "missing", "meshes", "splats", "repeated"]
KINDS: dict[Kind, str] = {
    "splits": "objects in two splits",
    "categories": "ids in two categories",
    "missing": "objects missing",
    "meshes": "meshes used by several objects",
    "splats": "splats that several objects share",
    "repeated": "objects named twice in one place",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    kind    splits (one object, or one id, in several), categories (one id in several), missing (a list names it),
            meshes and splats (equal files of different objects), repeated (twice in one list or collection)
    name    the id, the uid or the hash that it is about
    cause   what is wrong, in words
    uids    the objects
    splits  their splits, "" left out
    """

    kind: Kind
    name: str
    cause: str
    uids: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class AuditReport:
    """What an audit looked at and what it found.

    entries   records, index rows, files and lines of lists, all together
    objects   different uids among them, `ids` different names whatever their category
    splits    split -> different objects in it
    standard  the well-known collection that was recognised and compared with, or ""
    counts    findings of each kind
    """

    paths: tuple[str, ...]
    entries: int
    objects: int
    ids: int
    categories: int
    splits: dict[str, int]
    standard: str
    counts: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings


@dataclass
class _Claims:
    """Everything that was said about objects; `there` are those that exist, `wanted` those that a list names."""

    entries: int = 0
    splits: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # uid -> splits
    homes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # id -> categories
    there: set[str] = field(default_factory=set)
    wanted: dict[str, str] = field(default_factory=dict)  # uid -> the list that names it
    failed: dict[str, str] = field(default_factory=dict)  # uid -> reason
    meshes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # hash -> uids
    splats: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    repeated: dict[str, str] = field(default_factory=dict)  # uid -> where

    def add(self, category: str, name: str, split: str, mesh: str = "", splat: str = "") -> str:
        self.entries += 1
        uid = f"{category}/{name}" if category else name
        self.homes[name].add(category)
        kinds = self.splits[uid]
        if split:
            kinds.add(split)
        if mesh:
            self.meshes[mesh].add(uid)
        if splat:
            self.splats[splat].add(uid)
        return uid

    def exists(self, category: str, name: str, split: str, where: str, mesh: str = "", splat: str = "") -> None:
        uid = self.add(category, name, split, mesh, splat)
        if uid in self.there:
            self.repeated[uid] = where
        self.there.add(uid)


def audit(
    paths: str | Path | Sequence[str | Path], lists: Sequence[str | Path] = (), *, progress: bool = False
) -> AuditReport:
    """Look for leaks, gaps and doubles; nothing is changed, and no splat is read but to compare equally long ones.

    paths  builds, packs, collections of splats (folders or zips, with the lists that lie beside them), lists, or
           folders of lists; several are looked at as one, so that train.txt and test.txt are compared
    lists  what should be there: further lists, "modelnet40" or "modelnet10"; their splits count, too. Where nothing
           but lists is looked at, and they are at least nine tenths of ModelNet, they are compared with it anyway
    Raises InputError when a path is none of these or cannot be read.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    claims = _Claims()
    listed: list[tuple[Path, list[Name]]] = []
    bare = [Path(path) for path in paths if _is_list(Path(path))]
    for path in map(Path, paths):
        if path in bare:
            listed += [(file, read_list(file)) for file in _lists_of(path)]
        else:
            listed += [(file, read_list(file)) for file in _objects(path, claims, progress)]
    only_lists = len(bare) == len(paths)
    for file, names in listed:
        _listed(file, names, claims, wanted=not only_lists)
    if only_lists:
        claims.there = set(claims.splits)
    for entry in lists:
        standard = str(entry).lower() in STANDARDS and not Path(entry).exists()
        names = modelnet(str(entry).lower()) if standard else read_list(entry)
        _listed(Path(entry), names, claims, wanted=True)
    recognised = _recognised(claims) if not lists and only_lists else ""
    if recognised:
        claims.wanted |= {name.uid: recognised for name in modelnet(recognised)}
    shared = list(_shared_ids(claims))
    findings = [*_splits(claims, shared), *_categories(claims, shared), *_missing(claims)]
    findings += [*_equal(claims, "meshes", claims.meshes), *_equal(claims, "splats", claims.splats)]
    findings += [
        Finding("repeated", uid, f"is there twice in {where}", (uid,), _in_order(claims.splits[uid]))
        for uid, where in sorted(claims.repeated.items())
    ]
    known = {uid: kinds for uid, kinds in claims.splits.items() if uid in claims.there}
    return AuditReport(
        paths=tuple(map(str, paths)),
        entries=claims.entries,
        objects=len(known),
        ids=len({uid.rsplit("/", 1)[-1] for uid in known}),
        categories=len({uid.rsplit("/", 1)[0] for uid in known if "/" in uid}),
        splits={split: sum(split in kinds for kinds in known.values()) for split in SPLITS},
        standard=recognised,
        counts={kind: sum(f.kind == kind for f in findings) for kind in KINDS},
        findings=tuple(findings),
    )


def overlaps(report: AuditReport) -> list[str]:
    """One line for each pair of splits that share objects: "520 of the 520 test objects are also in train"."""
    pairs = [set(f.splits) for f in report.findings if f.kind == "splits"]
    lines = []
    for first, second in combinations(SPLITS, 2):
        both = sum({first, second} <= pair for pair in pairs)
        if both:
            lines.append(f"{both:,} of the {report.splits[second]:,} {second} objects are also in {first}")
    return lines


def modelnet(standard: str) -> list[Name]:
    """The objects of "modelnet40" (9,843 and 2,468) or "modelnet10" (3,991 and 908)."""
    names = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        category, train, test, ten = line.split("\t")
        if standard == "modelnet40" or ten == "yes":
            total = int(train) + int(test)
            kinds = ["train"] * int(train) + ["test"] * int(test)
            names += [Name(category, f"{category}_{k:04d}", kinds[k - 1]) for k in range(1, total + 1)]
    return names


def _is_list(path: Path) -> bool:
    """Whether a path is a list, or a folder of nothing but lists."""
    if not path.is_dir():
        return path.suffix.lower() in SUFFIXES
    marked = (path / "build.json").exists() or (path / "pack.json").exists()
    others = any(p.is_dir() or p.suffix.lower() in (".ply", ".zip") for p in path.iterdir())
    return not marked and not others and bool(_lists_of(path))


def _lists_of(path: Path) -> list[Path]:
    """The list itself, or those in a folder; if some of those name a split, only these."""
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    return [file for file in files if split_of(file)] or files


def _objects(path: Path, claims: _Claims, progress: bool) -> list[Path]:
    """Enter what exists at a path; the lists that lie beside it."""
    from .manifest import read_build  # these load torch and pyarrow, which bare lists can do without
    from .packs import read_index, read_pack
    from .released import everything

    if (path / "build.json").is_file():
        for r in read_build(path).records:
            category, name = (r.category, r.uid.split("/", 1)[-1])
            if r.status == "done":
                claims.exists(category, name, r.split, str(path), r.mesh_sha256 or "", r.sha256 or "")
            else:
                uid = claims.add(category, name, r.split, r.mesh_sha256 or "")
                claims.failed[uid] = claims.wanted[uid] = f"{r.stage}: {r.reason}" if r.stage else r.reason or ""
        return []
    if (path / "pack.json").is_file():
        info = read_pack(path)
        index = read_index(path, info)
        columns = (index.uid.tolist(), index.category.tolist(), index.split.tolist(), index.sha256.tolist())
        for uid, category, split, digest in zip(*columns, strict=True):
            claims.exists(category, uid.split("/", 1)[-1], split, str(path), splat=digest)
        for failure in info.failed:
            claims.failed[failure.uid] = claims.wanted[failure.uid] = f"{failure.stage}: {failure.reason}"
        return []
    _, found = everything(path)
    digests = _digests(found, progress)
    for item in found:
        category, name = item.uid.split("/", 1)
        claims.exists(category, name, item.split, str(path), splat=digests.get(str(item.file), ""))
    return beside(path)


def _digests(found: Iterable[Found], progress: bool) -> dict[str, str]:
    """Hashes of the files that may be equal to another: as long, and in zips of the same checksum."""
    groups: dict[tuple, list[Found]] = defaultdict(list)
    for item in found:
        groups[(size_of(item.file),)].append(item)
    for key, items in list(groups.items()):
        if all(isinstance(item.file, Member) for item in items):
            del groups[key]
            for item in items:
                assert isinstance(item.file, Member)
                groups[(*key, item.file.crc)].append(item)
    alike = [item for items in groups.values() if len(items) > 1 for item in items]
    out = {}
    for item in bar("compare", "splat", alike, disable=not progress):
        try:
            out[str(item.file)] = hashlib.sha256(item.file.read_bytes()).hexdigest()
        except InputError:  # `gsmae check` speaks of damaged ones
            continue
        except OSError as error:
            raise InputError(str(item.file), error.strerror or str(error)) from None
    return out


def _listed(file: Path, names: Iterable[Name], claims: _Claims, *, wanted: bool) -> None:
    """Enter the lines of a list; a bare name is the object of that name that exists, or ModelNet's."""
    seen: set[tuple[str, str]] = set()
    for name in names:
        category = name.category
        if not category:
            numbered = NUMBERED.fullmatch(name.name)
            homes = claims.homes.get(name.name, set())
            category = next(iter(homes)) if len(homes) == 1 else numbered[1] if numbered else ""
        uid = claims.add(category, name.name, name.split)
        if (uid, name.split) in seen:
            claims.repeated[uid] = str(file)
        seen.add((uid, name.split))
        if wanted:
            claims.wanted.setdefault(uid, str(file))


def _recognised(claims: _Claims) -> str:
    """The larger of the well-known collections of which nearly everything is there, or ""."""
    for standard in reversed(STANDARDS):
        wanted = {name.uid for name in modelnet(standard)}
        if len(wanted & claims.there) >= ENOUGH * len(wanted):
            return standard
    return ""


def _splits(claims: _Claims, shared: _Shared) -> Iterator[Finding]:
    """Objects in several splits; then ids that are so only across categories."""
    told = set()
    for uid in sorted(uid for uid, kinds in claims.splits.items() if len(kinds) > 1):
        told.add(uid.rsplit("/", 1)[-1])
        kinds = _in_order(claims.splits[uid])
        yield Finding("splits", uid, f"is in {' and '.join(kinds)}", (uid,), kinds)
    for name, uids in shared:
        kinds = set().union(*(claims.splits[uid] for uid in uids))
        if len(kinds) > 1 and name not in told:
            cause = f"is in {' and '.join(_in_order(kinds))}, in different categories"
            yield Finding("splits", name, cause, uids, _in_order(kinds))


def _categories(claims: _Claims, shared: _Shared) -> Iterator[Finding]:
    for name, uids in shared:
        kinds = set().union(*(claims.splits[uid] for uid in uids))
        where = [uid.rsplit("/", 1)[0] for uid in uids]
        yield Finding("categories", name, f"is in the categories {', '.join(where)}", uids, _in_order(kinds))


def _shared_ids(claims: _Claims) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ids that stand in several categories, where the name is an id and not a number within its category."""
    for name in sorted(name for name, categories in claims.homes.items() if len(categories) > 1):
        known = sorted(category for category in claims.homes[name] if category)
        synsets = all(len(category) == 8 and category.isdigit() for category in known)
        if len(known) > 1 and (synsets or len(name) >= LONG):
            yield name, tuple(f"{category}/{name}" for category in known)


def _missing(claims: _Claims) -> Iterator[Finding]:
    for uid in sorted(claims.wanted.keys() - claims.there):
        who = claims.wanted[uid]
        name, kinds = uid.rsplit("/", 1)[-1], _in_order(claims.splits.get(uid, set()))
        other = sorted(c for c in claims.homes.get(name, ()) if f"{c}/{name}" in claims.there)
        cause = f"failed: {claims.failed[uid]}" if uid in claims.failed else f"is in {who}"
        cause += f"; its id is there in {', '.join(other)}" if other else ""
        yield Finding("missing", uid, cause, (uid,), kinds)


def _equal(claims: _Claims, kind: Literal["meshes", "splats"], groups: dict[str, set[str]]) -> Iterator[Finding]:
    for digest, uids in sorted(groups.items()):
        if len(uids) > 1:
            kinds = _in_order(set().union(*(claims.splits[uid] for uid in uids)))
            across = f", across {' and '.join(kinds)}" if len(kinds) > 1 else ""
            yield Finding(kind, digest, f"is that of {len(uids)} objects{across}", tuple(sorted(uids)), kinds)


def _in_order(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(split for split in SPLITS if split in set(kinds))

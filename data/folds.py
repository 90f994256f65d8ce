"""Few-shot folds: which objects teach and which ask, drawn once by seed and kept in a file (Sharma and Kaul, 2020).

Of W classes, S objects each teach (`train`, from the splits train and val) and Q others each ask (`test`, from the
split test); usual are 5 and 10 ways, 10 and 20 shots, 20 queries, 10 folds.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gsmae.errors import InputError
from gsmae.files import read_json

from . import draws
from .audit import modelnet
from .datasets import SplatDataset

TEACH = ("train", "val")
SHIPPED = {"modelnet40": Path(__file__).with_name("tables") / "folds_modelnet40.json"}


class Fold(BaseModel):
    """One few-shot task: `ways` classes with `shots` objects each to learn from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ways: int
    shots: int
    number: int
    classes: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]


class Folds(BaseModel):
    """A fold file; `fingerprint` is that of the pack it was drawn from, or the name of the collection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["gsmae-folds"] = "gsmae-folds"
    schema_version: Literal[1] = 1
    seed: int
    queries: int
    fingerprint: str
    folds: tuple[Fold, ...]

    def settings(self) -> list[tuple[int, int]]:
        """(ways, shots) of the folds, sorted."""
        return sorted({(fold.ways, fold.shots) for fold in self.folds})


def draw_folds(
    path: str | Path,
    *,
    ways: tuple[int, ...] = (5, 10),
    shots: tuple[int, ...] = (10, 20),
    queries: int = 20,
    folds: int = 10,
    seed: int = 0,
) -> Folds:
    """Draw the folds of a pack. The draw of a fold depends on the seed, its number, ways, shots and the uids alone.

    Raises InputError where fewer classes than `ways` have enough objects, naming the classes that lack some.
    """
    teach, ask = _by_class(path, TEACH), _by_class(path, ("test",))
    return _drawn(path, teach, ask, SplatDataset(path).fingerprint, ways, shots, queries, folds, seed)


def draw_modelnet(
    standard: str,
    *,
    ways: tuple[int, ...] = (5, 10),
    shots: tuple[int, ...] = (10, 20),
    queries: int = 20,
    folds: int = 10,
    seed: int = 0,
) -> Folds:
    """Draw the folds of "modelnet40" or "modelnet10" from the names of its objects alone.

    They are those that `draw_folds` finds in any pack of all of its objects. Raises InputError as that does.
    """
    teach, ask = defaultdict(list), defaultdict(list)
    for name in modelnet(standard):
        (ask if name.split == "test" else teach)[name.category].append(name.uid)
    return _drawn(standard, teach, ask, standard, ways, shots, queries, folds, seed)


def _drawn(
    source: str | Path, teach: dict[str, list[str]], ask: dict[str, list[str]], fingerprint: str,
    ways: tuple[int, ...], shots: tuple[int, ...], queries: int, folds: int, seed: int,
) -> Folds:  # fmt: skip
    if min(*ways, *shots, queries, folds) < 1:
        raise ValueError("ways, shots, queries and folds are at least 1")
    made = []
    for way in ways:
        for shot in shots:
            fit = [c for c in sorted(teach) if len(teach[c]) >= shot and len(ask.get(c, ())) >= queries]
            if len(fit) < way:
                raise _too_few(source, way, shot, queries, fit, teach, ask)
            for number in range(folds):
                made.append(_fold(way, shot, number, queries, fit, teach, ask, seed))
    return Folds(seed=seed, queries=queries, fingerprint=fingerprint, folds=tuple(made))


def fold_file(name: str | Path) -> Path:
    """The file that comes with gsmae where a name of SHIPPED is given and no such file is here; else the path."""
    return SHIPPED[str(name)] if str(name) in SHIPPED and not Path(name).exists() else Path(name)


def read_folds(file: str | Path) -> Folds:
    """A fold file, each of whose folds is sound: so many classes, shots and queries as it says, nobody twice."""
    try:
        found = Folds.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(file, f"'{where}': {first['msg']}", "draw it with `gsmae folds`") from None
    if not found.folds:
        raise InputError(file, "has no folds", "draw it with `gsmae folds`")
    for fold in found.folds:
        wanted = (fold.ways, fold.ways * fold.shots, fold.ways * found.queries)
        there = (len(set(fold.classes)), len(set(fold.train)), len(set(fold.test)))
        both = set(fold.train) & set(fold.test)
        if there != wanted or both:
            name = f"fold {fold.number} of {fold.ways}-way {fold.shots}-shot"
            cause = f"{name} has {there} classes, teaching and asking objects, expected {wanted}; {len(both)} do both"
            raise InputError(file, cause, "draw it with `gsmae folds`")
    return found


def check_folds(folds: Folds, file: str | Path, path: str | Path) -> None:
    """Refuse folds that do not fit a pack: an object that it has not, or has in another class or split.

    Folds of a pack with another fingerprint, of the same objects with other splats for instance, are accepted when
    every object is there.
    """
    places: dict[str, str] = {}
    for split in (*TEACH, "test"):
        dataset = _split(path, split)
        places |= dict.fromkeys(dataset.uids if dataset else (), split)
    for fold in folds.folds:
        for uids, splits in ((fold.train, TEACH), (fold.test, ("test",))):
            for uid in uids:
                if places.get(uid) not in splits or uid.split("/")[0] not in fold.classes:
                    there = f"in split '{places[uid]}'" if uid in places else "not there"
                    cause = f"'{uid}' is to be of {' or '.join(splits)} and of a class of its fold, but is {there} "
                    cause += f"in {path}"
                    raise InputError(file, cause, "were the folds drawn from this pack? `gsmae folds` draws new ones")


def _split(path: str | Path, split: str) -> SplatDataset | None:
    """A split, None where it is empty: a pack may have been made without val."""
    info = SplatDataset(path).info.splits
    return SplatDataset(path, split=split) if info.get(split) else None  # type: ignore[call-overload]


def _by_class(path: str | Path, splits: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for split in splits:
        dataset = _split(path, split)
        for uid, category in zip(dataset.uids, dataset.categories, strict=True) if dataset else ():
            found[category].append(uid)
    return {category: sorted(uids) for category, uids in found.items()}


def _fold(way: int, shot: int, number: int, queries: int, fit: list[str], teach: dict, ask: dict, seed: int) -> Fold:
    name = (seed, "fold", way, shot, number)
    classes = sorted(_draw(fit, way, *name))
    train = [uid for c in classes for uid in sorted(_draw(teach[c], shot, *name, c, "train"))]
    test = [uid for c in classes for uid in sorted(_draw(ask[c], queries, *name, c, "test"))]
    return Fold(ways=way, shots=shot, number=number, classes=tuple(classes), train=tuple(train), test=tuple(test))


def _draw(names: list[str], count: int, *key: int | str) -> list[str]:
    return [names[i] for i in draws.permutation(len(names), draws.key(*key))[:count].tolist()]


def _too_few(path, way: int, shot: int, queries: int, fit: list[str], teach: dict, ask: dict) -> InputError:
    short = [f"{c} ({len(teach[c])} and {len(ask.get(c, ()))})" for c in sorted(teach) if c not in fit]
    more = f" and {len(short) - 8} more" if len(short) > 8 else ""
    cause = f"{way}-way {shot}-shot needs {way} classes of at least {shot} objects in train and val and {queries} in "
    cause += f"test; {len(fit)} have them, not {', '.join(short[:8])}{more}"
    return InputError(path, cause, "ask for fewer --ways, --shots or --queries")

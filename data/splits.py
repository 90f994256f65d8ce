"""Which object is for training, validation and test: official lists kept, missing ones drawn by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import draws
from .manifest import SPLITS, Record


@dataclass(frozen=True)
class Assignment:
    """The split of every object and where it comes from.

    splits   uid -> "train", "val" or "test"
    sources  uid -> "official" (kept), "carved" (train object moved to val) or "assigned" (had no split)
    """

    splits: dict[str, str]
    sources: dict[str, str]

    def counts(self) -> dict[str, int]:
        """Objects of each split, all three named."""
        return {split: sum(s == split for s in self.splits.values()) for split in SPLITS}


@dataclass(frozen=True)
class Leak:
    """One mesh in more than one split: a score on the later split is not a held-out score."""

    mesh_sha256: str
    uids: tuple[str, ...]
    splits: tuple[str, ...]


def assign(records: Iterable[Record], *, seed: int, val_fraction: float = 0.1) -> Assignment:
    """Give every object a split.

    Objects without one: train/val/test by 1 - 2f, f, f with f = val_fraction, class by class. Where objects with an
    official split have none in val, the fraction f of their train objects is moved to val, class by class: at least
    one of a class with three or more, none of a smaller class. Model selection on the test split is never needed.
    Copies of one mesh within a class stay together, so that drawing never makes a leak. The draw of an object depends
    on the seed and its uid alone; f = 0 moves none.
    """
    if not 0 <= val_fraction < 0.5:
        raise ValueError(f"val_fraction is {val_fraction}, expected 0 <= f < 0.5")
    records = sorted(records, key=lambda r: r.uid)
    official = [r for r in records if r.split]
    splits: dict[str, str] = {r.uid: r.split for r in official}
    sources = dict.fromkeys(splits, "official")
    if not any(r.split == "val" for r in official):
        for group in _drawn([r for r in official if r.split == "train"], seed, val_fraction, 1)[0]:
            splits |= dict.fromkeys(group, "val")
            sources |= dict.fromkeys(group, "carved")
    rest = [r for r in records if not r.split]
    splits |= dict.fromkeys((r.uid for r in rest), "train")
    sources |= dict.fromkeys((r.uid for r in rest), "assigned")
    for split, groups in zip(("test", "val"), _drawn(rest, seed, val_fraction, 2), strict=True):
        for group in groups:
            splits |= dict.fromkeys(group, split)
    return Assignment(splits, sources)


def leaks(records: Iterable[Record], splits: dict[str, str]) -> list[Leak]:
    """Meshes, by their hash, that occur in more than one split."""
    found: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.mesh_sha256:
            found[record.mesh_sha256].append(record.uid)
    out = []
    for digest, uids in sorted(found.items()):
        kinds = tuple(s for s in SPLITS if any(splits[uid] == s for uid in uids))
        if len(kinds) > 1:
            out.append(Leak(digest, tuple(sorted(uids)), kinds))
    return out


def _drawn(records: Sequence[Record], seed: int, fraction: float, sets: int) -> list[list[list[str]]]:
    """`sets` disjoint sets of groups of uids (copies of one mesh), each about `fraction` of every class."""
    out: list[list[list[str]]] = [[] for _ in range(sets)]
    classes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        classes[record.category][record.mesh_sha256 or record.uid].append(record.uid)
    for groups in classes.values():
        total = sum(len(uids) for uids in groups.values())
        wanted = max(1, round(total * fraction)) if total >= 3 and fraction > 0 else 0
        order = sorted(groups.values(), key=lambda uids: (draws.key(seed, "split", uids[0]), uids[0]))
        for chosen in out:
            taken = 0
            while taken < wanted and len(order) > 1:  # something stays for training
                chosen.append(order.pop(0))
                taken += len(chosen[-1])
    return out

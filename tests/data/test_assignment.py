"""Splits: official ones kept, missing ones drawn by seed, never overlapping, never leaking copies."""

from __future__ import annotations

from collections import Counter

import pytest

from data.manifest import Record
from data.splits import assign, leaks


def objects(category: str, count: int, split: str = "train", first: int = 0) -> list[Record]:
    def record(i: int) -> Record:
        values = {"uid": f"{category}/{first + i}", "category": category, "split": split, "status": "done"}
        return Record.model_validate({**values, "mesh_sha256": f"{category}{i}"})

    return [record(i) for i in range(count)]


def by_class(records, assignment):
    return Counter((r.category, assignment.splits[r.uid]) for r in records)


def test_a_missing_validation_split_is_carved_from_train_class_by_class():
    records = objects("chair", 50) + objects("lamp", 3) + objects("sofa", 2) + objects("chair", 5, "test", 100)
    a = assign(records, seed=0)
    assert by_class(records, a) == {
        ("chair", "train"): 45, ("chair", "val"): 5, ("chair", "test"): 5,
        ("lamp", "train"): 2, ("lamp", "val"): 1, ("sofa", "train"): 2,
    }  # fmt: skip
    assert Counter(a.sources.values()) == {"official": 54, "carved": 6}
    assert all(r.split == "train" for r in records if a.sources[r.uid] == "carved")


def test_an_official_validation_split_is_left_alone():
    records = objects("chair", 50) + objects("chair", 1, "val", 100)
    a = assign(records, seed=0)
    assert all(a.splits[r.uid] == r.split for r in records) and set(a.sources.values()) == {"official"}


def test_objects_without_a_split_are_assigned_80_10_10_within_every_class():
    records = objects("chair", 40, "") + objects("lamp", 3, "") + objects("sofa", 2, "")
    a = assign(records, seed=0)
    assert by_class(records, a) == {
        ("chair", "train"): 32, ("chair", "val"): 4, ("chair", "test"): 4,
        ("lamp", "train"): 1, ("lamp", "val"): 1, ("lamp", "test"): 1, ("sofa", "train"): 2,
    }  # fmt: skip
    assert set(a.sources.values()) == {"assigned"} and sum(a.counts().values()) == 45


def test_draws_follow_the_seed_and_do_not_depend_on_the_order_of_records():
    records = objects("chair", 40)
    first, second = assign(records, seed=0), assign(records[::-1], seed=0)
    assert first.splits == second.splits
    assert first.splits != assign(records, seed=1).splits


def test_a_fraction_of_zero_moves_nothing_and_a_half_is_refused():
    records = objects("chair", 40) + objects("lamp", 40, "")
    assert assign(records, seed=0, val_fraction=0).counts() == {"train": 80, "val": 0, "test": 0}
    with pytest.raises(ValueError, match=r"0 <= f < 0\.5"):
        assign(records, seed=0, val_fraction=0.5)


def test_copies_of_one_mesh_are_drawn_together_and_official_leaks_are_found():
    twins = [r.model_copy(update={"uid": f"chair/twin{i}"}) for i, r in enumerate(objects("chair", 40))]
    records = objects("chair", 40) + twins
    for seed in range(5):
        a = assign(records, seed=seed, val_fraction=0.2)
        assert not leaks(records, a.splits) and a.counts()["val"] == 16
    official = objects("chair", 3) + [r.model_copy(update={"uid": "chair/t", "split": "test"}) for r in twins[:1]]
    (leak,) = leaks(official, {r.uid: r.split for r in official})
    assert leak.uids == ("chair/0", "chair/t") and leak.splits == ("train", "test")

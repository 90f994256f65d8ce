import json
from collections import Counter
from pathlib import Path

import pytest

import data.folds
from data import SplatDataset
from data.folds import check_folds, draw_folds, draw_modelnet, fold_file, read_folds
from data.lists import Name
from gsmae.errors import InputError
from gsmae.files import write_json


def drawn(path, **changes):
    options = {"ways": (2, 5), "shots": (3,), "queries": 6, "folds": 4, "seed": 0}
    return draw_folds(path, **{**options, **changes})


def test_each_fold_has_so_many_of_each_class_and_nobody_teaches_and_asks(lettered):
    folds = drawn(lettered)
    assert folds.settings() == [(2, 3), (5, 3)] and len(folds.folds) == 8
    places = {split: set(SplatDataset(lettered, split).uids) for split in ("train", "val", "test")}
    for fold in folds.folds:
        assert len(fold.classes) == fold.ways and "g" not in fold.classes  # two are fewer than three shots
        for uids, count in ((fold.train, 3), (fold.test, 6)):
            assert Counter(uid.split("/")[0] for uid in uids) == dict.fromkeys(fold.classes, count)
        assert set(fold.train) <= places["train"] | places["val"] and set(fold.test) <= places["test"]
    assert len({fold.train for fold in folds.folds}) == 8


def test_the_seed_decides_and_more_folds_do_not_change_the_first(lettered):
    assert drawn(lettered) == drawn(lettered) and drawn(lettered, seed=1) != drawn(lettered)
    fewer = [f for f in drawn(lettered).folds if f.number < 2]
    assert fewer == list(drawn(lettered, folds=2).folds)


def test_too_few_objects_are_counted_class_by_class(lettered):
    with pytest.raises(InputError, match=r"7-way 3-shot needs 7 classes of .* 6 have them, not g \(2 and 6\)"):
        drawn(lettered, ways=(7,))
    with pytest.raises(InputError, match="20 in test; 0 have them"):
        drawn(lettered, queries=20)


def test_a_file_keeps_them_and_is_checked_when_it_is_read(lettered, tmp_path):
    file = tmp_path / "folds.json"
    folds = drawn(lettered, ways=(2,), folds=1)
    values = json.loads(folds.model_dump_json())
    write_json(file, values)
    assert read_folds(file) == folds
    check_folds(folds, file, lettered)
    values["folds"][0]["train"][0] = values["folds"][0]["train"][1]
    write_json(file, values)
    with pytest.raises(InputError, match=r"has \(2, 5, 12\) .* expected \(2, 6, 12\)"):
        read_folds(file)
    values["folds"][0]["train"][0] = values["folds"][0]["test"][0]
    write_json(file, values)
    with pytest.raises(InputError, match="1 do both"):
        read_folds(file)


def test_folds_of_another_pack_are_refused(lettered, packed, tmp_path):
    folds = drawn(lettered)
    with pytest.raises(InputError, match="is to be of train or val and of a class of its fold, but is not there in"):
        check_folds(folds, "folds.json", packed)
    fold = folds.folds[0]
    swapped = folds.model_copy(update={"folds": (fold.model_copy(update={"train": fold.test, "test": fold.train}),)})
    with pytest.raises(InputError, match="but is in split 'test'"):
        check_folds(swapped, "folds.json", lettered)


def test_taking_objects_keeps_labels_and_rows_and_refuses_strangers(lettered):
    whole = SplatDataset(lettered)
    some = whole.take(["c/03", "a/01"])
    assert some.uids == ("a/01", "c/03") and some.labels.tolist() == [0, 2] and some.class_names == whole.class_names
    i = whole.uids.index("c/03")
    assert (some.rows(1) == whole.rows(i)).all() and some[1].uid == "c/03"
    with pytest.raises(InputError, match="has no object 'z/9'"):
        whole.take(["z/9"])


def test_the_folds_that_come_with_gsmae_are_those_of_modelnets_names_and_seed_0():
    there = read_folds(fold_file("modelnet40"))
    assert there == draw_modelnet("modelnet40") and there != draw_modelnet("modelnet40", seed=1)
    assert there.settings() == [(5, 10), (5, 20), (10, 10), (10, 20)] and len(there.folds) == 40
    first = there.folds[0]
    assert first.train[0] == "bottle/bottle_0064"  # of 335 for training
    assert all(int(uid[-4:]) > 335 for uid in first.test if uid.startswith("bottle/"))


def test_names_alone_draw_the_folds_of_a_pack_of_them(lettered, monkeypatch):
    uids = {split: SplatDataset(lettered, split).uids for split in ("train", "val", "test")}
    names = [Name(uid.split("/")[0], uid.split("/")[1], split) for split in uids for uid in uids[split]]
    monkeypatch.setattr(data.folds, "modelnet", lambda standard: sorted(names))
    options = {"ways": (2, 5), "shots": (3,), "queries": 6, "folds": 4, "seed": 0}
    assert draw_modelnet("modelnet40", **options).folds == drawn(lettered).folds


def test_a_file_of_the_users_goes_before_one_that_comes_with_gsmae(lettered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = fold_file("modelnet40")
    with pytest.raises(InputError, match="is to be of train or val and of a class of its fold, but is not there in"):
        check_folds(read_folds(file), file, lettered)
    Path("modelnet40").write_text("{}")
    assert fold_file("modelnet40") == Path("modelnet40") and file.is_file()

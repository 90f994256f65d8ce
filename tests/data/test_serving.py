"""SplatDataset: splits, classes, labels, parts; lazy, picklable, the same in memory and from files."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from data.datasets import SplatDataset
from data.shards import pack
from gsmae.errors import InputError
from gsmae.ply import read_ply


def rows_of(dataset: SplatDataset) -> list:
    return [dataset.rows(i).tolist() for i in range(len(dataset))]


def test_a_split_has_its_objects_their_labels_and_their_splats(make_build, tmp_path):
    build = make_build().add("table/1", "test").add("chair/1", "test").add("chair/2").add("lamp/1", "test")
    pack(build.path, tmp_path / "p", val_fraction=0)
    test = data.SplatDataset(tmp_path / "p", split="test")
    assert test.uids == ("chair/1", "lamp/1", "table/1") and test.class_names == ("chair", "lamp", "table")
    assert [s.label for s in test] == test.labels.tolist() == [0, 1, 2]
    source = read_ply(build.path / "splats" / "table" / "1.ply")
    sample = test[-1]
    assert sample.uid == "table/1" and sample.category == "table"
    for field in ("means", "quats", "log_scales", "sh"):
        got, want = getattr(sample.gaussians, field).flatten(1), getattr(source, field).flatten(1)
        assert torch.equal(got.sort(0).values, want.sort(0).values)
    with pytest.raises(IndexError):
        test[3]
    assert len(SplatDataset(tmp_path / "p")) == 4


def test_parts_count_over_the_categories_in_sorted_order(make_build, tmp_path):
    build = make_build().add("table/1").add("chair/1").add("lamp/1")
    pack(build.path, tmp_path / "p")
    dataset = SplatDataset(tmp_path / "p")
    assert dataset.part_names == {"chair": ("back", "leg", "seat"), "table": ("leg", "top")}
    assert dataset.part_offsets == {"chair": 0, "table": 3} and dataset.n_parts == 5
    for i, low, high in ((0, 0, 2), (2, 3, 4)):
        surface = dataset.surface(i)
        assert surface is not None
        theirs = np.load(build.path / "points" / f"{dataset.uids[i]}.npz")
        parts = surface.parts
        assert set(parts.tolist()) <= {-1, *range(low, high + 1)}
        assert ((parts == -1).sum() == (theirs["parts"] == -1).sum()) and len(parts) == len(theirs["parts"])
        order = np.lexsort(theirs["points"].T)
        mine = np.lexsort(surface.points.numpy().T)
        assert np.array_equal(surface.points.numpy()[mine], theirs["points"][order])
        assert np.array_equal(surface.colors.numpy()[mine], theirs["colors"][order])
        assert np.array_equal(np.where(parts < 0, -1, parts - low)[mine], theirs["parts"][order])
    only = SplatDataset(tmp_path / "p", classes=["table"])
    assert only.class_names == ("table",) and only.labels.tolist() == [0] and only.part_offsets == {"table": 0}


def test_objects_without_surface_points_have_none(make_build, tmp_path):
    build = make_build().add("chair/1").add("chair/2")
    (build.path / "points" / "chair" / "1.npz").unlink()
    assert pack(build.path, tmp_path / "p").without_points == 1
    dataset = SplatDataset(tmp_path / "p")
    assert dataset[0].surface is None and dataset[1].surface is not None


def test_unknown_and_empty_splits_and_classes_are_told_what_exists(make_build, tmp_path):
    build = make_build().add("chair/1").add("chair/2")
    pack(build.path, tmp_path / "p")
    cases: tuple[tuple[dict, str], ...] = (
        ({"split": "val"}, r"split 'val' is empty \(there are train \(2\); pack with val_fraction"),
        ({"split": "valid"}, r"no split 'valid' \(there are train \(2\)\)"),
        ({"classes": ["chiar"]}, "no class 'chiar'.*did you mean 'chair'"),
    )
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            SplatDataset(tmp_path / "p", **arguments)
    with pytest.raises(InputError, match=r"no pack\.json"):
        SplatDataset(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        SplatDataset(tmp_path / "nowhere")


def test_a_dataset_opens_files_when_needed_and_survives_pickling(packed):
    dataset = SplatDataset(packed, "train")
    assert not dataset._shards
    before = rows_of(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._shards and len(pickle.dumps(dataset)) < 20000
    assert rows_of(copy) == before


def test_a_dataset_survives_a_fork_with_its_files_open(packed):
    dataset = SplatDataset(packed, "train")
    before = rows_of(dataset)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(dataset.rows, range(len(dataset)))[3].tolist() == before[3]
    assert rows_of(dataset) == before


def test_in_memory_and_mapped_are_the_same_and_memory_outlives_the_files(packed, tmp_path):
    folder = Path(shutil.copytree(packed, tmp_path / "p"))
    resident, mapped = SplatDataset(folder, "test", resident=True), SplatDataset(packed, "test")
    shutil.rmtree(folder)
    assert rows_of(resident) == rows_of(mapped)


def test_a_missing_swapped_or_cut_shard_is_named(packed, tmp_path):
    folder = Path(shutil.copytree(packed, tmp_path / "p"))
    file, other = folder / "shard_00000.h5", folder / "shard_00003.h5"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"shard_00000\.h5: has \d+ bytes, pack\.json says"):
        SplatDataset(folder)[0]
    file.unlink()
    with pytest.raises(InputError, match=r"shard_00000\.h5: is missing"):
        SplatDataset(folder)[0]
    file.write_bytes(other.read_bytes().ljust(len(whole), b"\0"))
    with pytest.raises(InputError, match=r"shard_00000\.h5: does not hold 'chair/0000'"):
        SplatDataset(folder)[0]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, data; assert not {'torch', 'h5py', 'pyarrow', 'numpy'} & set(sys.modules); data.SplatDataset"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

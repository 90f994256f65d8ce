"""Point clouds as packs: real layouts, written here as their authors write them, and the points of a build."""

import h5py
import numpy as np
import pytest

from data import SplatDataset
from data.clouds import as_splat, mesh_points, read_clouds
from data.hdf5_clouds import SCANOBJECTNN
from data.manifest import read_build
from data.shards import pack
from data.streams import batches
from gsmae.errors import InputError
from gsmae.features import FeatureSpec, normalize

MEANS = FeatureSpec(embed=("means",))


def scans(path, labels, seed=0):
    """An .h5 as of ScanObjectNN."""
    points = np.random.default_rng(seed).uniform(-1, 1, (len(labels), 2048, 3)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = points, np.array(labels, dtype=np.int32)
        file["mask"] = np.zeros((len(labels), 2048), dtype=np.int32)
    return points


def test_scanobjectnn_is_packed_z_up_with_its_own_split(tmp_path):
    points = scans(tmp_path / "main_split" / "training_objectdataset.h5", [4, 4, 14, 4])
    scans(tmp_path / "main_split" / "test_objectdataset.h5", [14, 4], seed=1)
    pack(read_clouds(tmp_path / "main_split", "scanobjectnn"), tmp_path / "pack")
    everything = SplatDataset(tmp_path / "pack")
    assert everything.class_names == ("chair", "toilet") and everything.info.splits["test"] == 2
    found = everything[everything.uids.index("chair/training_objectdataset_00001")].gaussians.means.numpy()
    turned = points[1][:, [0, 2, 1]] * np.array([1, -1, 1], dtype=np.float32)
    assert np.array_equal(np.unique(found, axis=0), np.unique(turned, axis=0))  # a pack brings rows into another order
    assert [SCANOBJECTNN[i] for i in (0, 4, 9, 14)] == ["bag", "chair", "table", "toilet"]


def test_the_variants_of_scanobjectnn_are_not_mixed(tmp_path):
    for name in ("training_objectdataset", "training_objectdataset_augmentedrot_scale75"):
        scans(tmp_path / f"{name}.h5", [0])
    with pytest.raises(InputError, match="several variants: training_objectdataset.h5, training_objectdataset_aug"):
        read_clouds(tmp_path, "scanobjectnn")
    build = read_clouds(tmp_path / "training_objectdataset_augmentedrot_scale75.h5", "scanobjectnn")
    assert [r.uid for r in build.done] == ["bag/training_objectdataset_augmentedrot_scale75_00000"]


def test_a_label_outside_the_taxonomy_is_named_with_the_taxonomy(tmp_path):
    scans(tmp_path / "test_objectdataset.h5", [0, 15])
    with pytest.raises(InputError, match=r"object 1 has label 15, there are the classes 0 to 14 \(the taxonomy is bag"):
        read_clouds(tmp_path / "test_objectdataset.h5", "scanobjectnn")


def test_pointnets_modelnet_has_its_names_in_a_file_and_a_broken_cloud_is_a_failure(tmp_path):
    (tmp_path / "shape_names.txt").write_text("airplane\nbathtub\n")
    for name, labels in (("train0", [[0], [1]]), ("train1", [[1]]), ("test0", [[0]])):
        with h5py.File(tmp_path / f"ply_data_{name}.h5", "w") as file:
            file["data"] = np.random.default_rng(0).normal(size=(len(labels), 2048, 3)).astype(np.float32)
            file["label"] = np.array(labels, dtype=np.uint8)
    with h5py.File(tmp_path / "ply_data_train1.h5", "r+") as file:
        file["data"][0, 7, 1] = np.nan
    build = read_clouds(tmp_path, "modelnet-hdf5")
    assert [(r.uid, r.split, r.gaussians) for r in build.done] == [
        ("airplane/ply_data_test0_00000", "test", 2048),
        ("airplane/ply_data_train0_00000", "train", 2048),
        ("bathtub/ply_data_train0_00001", "train", 2048),
    ]
    assert [(r.uid, r.reason) for r in build.failed] == [
        ("bathtub/ply_data_train1_00000", "has non-finite coordinates")
    ]


def test_resampled_modelnet_is_text(tmp_path):
    (tmp_path / "modelnet40_shape_names.txt").write_text("night_stand\nvase\n")
    (tmp_path / "modelnet40_train.txt").write_text("night_stand_0001\nvase_0002\n")
    (tmp_path / "modelnet40_test.txt").write_text("vase_0476\n")
    for name in ("night_stand/night_stand_0001", "vase/vase_0476"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text("0.1,0.2,0.3,1,0,0\n0.4,0.5,0.6,0,1,0\n")
    build = read_clouds(tmp_path, "modelnet-points")
    assert [r.uid for r in build.done] == ["night_stand/night_stand_0001", "vase/vase_0476"]
    assert [r.uid for r in build.failed] == ["vase/vase_0002"]
    means = build.gaussians(build.done[0]).means.numpy()
    assert means == pytest.approx(np.array([[0.1, -0.3, 0.2], [0.4, -0.6, 0.5]]))
    (tmp_path / "modelnet40_test.txt").write_text("lamp_0001\n")
    with pytest.raises(InputError, match="'lamp_0001' is of class 'lamp', which is not among the 2"):
        read_clouds(tmp_path, "modelnet-points")


def test_neutral_columns_are_equal_in_all_points_and_finite_once_normalised():
    splat = as_splat(np.random.default_rng(0).normal(size=(50, 3)))
    rows = normalize(splat, FeatureSpec())[0]
    assert rows.isfinite().all() and (rows[:, 3:] == rows[:1, 3:]).all() and splat.colors == pytest.approx(0.5)


def test_points_of_the_mesh_are_the_same_objects_splits_and_counts(make_build, tmp_path):
    build = make_build()
    for i in range(12):
        build.add(f"chair/{i:04d}", split="", count=15)
    (build.path / "points" / "chair" / "0003.npz").unlink()
    build.add("chair/0003", split="", count=9)
    pack(build.path, tmp_path / "splats")
    pack(mesh_points(read_build(build.path)), tmp_path / "points")
    splats, points = SplatDataset(tmp_path / "splats"), SplatDataset(tmp_path / "points")
    assert splats.uids == points.uids and splats.counts.tolist() == points.counts.tolist()
    for split in ("train", "val", "test"):
        mine, theirs = SplatDataset(tmp_path / "splats", split), SplatDataset(tmp_path / "points", split)
        assert mine.uids == theirs.uids and not np.array_equal(mine.rows(0), theirs.rows(0))
    sample = points[5]
    surface = {tuple(row) for row in sample.surface.points.tolist()}
    assert {tuple(row) for row in sample.gaussians.means.tolist()} < surface and len(sample.gaussians) == 15


def test_an_object_without_surface_points_is_a_failure(make_build):
    build = make_build().add("chair/a").add("chair/b")
    (build.path / "points" / "chair" / "a.npz").unlink()
    made = mesh_points(read_build(build.path))
    assert [(r.uid, r.reason) for r in made.failed] == [("chair/a", "has no surface points")]


def test_features_that_points_do_not_have_are_refused_with_both_sides_named(make_build, tmp_path):
    build = make_build().add("chair/a")
    pack(mesh_points(read_build(build.path)), tmp_path / "pack")
    dataset = SplatDataset(tmp_path / "pack")
    with pytest.raises(InputError, match="points with means, sh; the features embed means, opacities, scales"):
        batches(dataset, FeatureSpec(), batch_size=1, gaussians=8)
    with pytest.raises(InputError, match="group by means, opacities.*of means, sh: --spec.group means sh.$"):
        batches(dataset, FeatureSpec(embed=("means",), group=("means", "opacities")), batch_size=1, gaussians=8)
    for spec in (MEANS, FeatureSpec(embed=("means", "sh"))):
        (batch,) = batches(dataset, spec, batch_size=1, gaussians=8)
        assert batch.points.isfinite().all()

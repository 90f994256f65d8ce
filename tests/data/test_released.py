"""Released collections are packed like builds."""

from __future__ import annotations

import pytest

from data.datasets import SplatDataset
from data.released import read_released
from data.shards import pack
from gsmae.errors import InputError
from gsmae.ply import write_ply


def test_shapesplats_with_its_overlapping_lists(tmp_path, make_splat):
    folder = tmp_path / "splats"
    names = [f"0300{k % 2}-{k:x}-m" for k in range(8)]
    for k, name in enumerate(names):
        folder.mkdir(exist_ok=True)
        write_ply(folder / f"{name}.ply", make_splat(k))
    (tmp_path / "train.txt").write_text("\n".join(f"{n}.ply" for n in names[:7]))
    (tmp_path / "test.txt").write_text("\n".join(f"{n}.ply" for n in names[:2]))
    build = read_released(folder, "shapesplats")
    assert {r.uid: r.split for r in build.done}["03000/0-m"] == "test"
    pack(build, tmp_path / "p", val_fraction=0)
    train, test = (SplatDataset(tmp_path / "p", s) for s in ("train", "test"))
    assert len(test) == 2 and train.class_names == ("03000", "03001") and not set(train.uids) & set(test.uids)


def test_modelnet_splats(tmp_path, make_splat):
    for k, name in enumerate(("chair/train/chair_0001", "chair/test/chair_0002", "night_stand/test/night_stand_0001")):
        write_ply(tmp_path / "m" / name / "point_cloud.ply", make_splat(k))
    pack(read_released(tmp_path / "m", "modelnet-splats"), tmp_path / "p")
    assert SplatDataset(tmp_path / "p", "test").uids == ("chair/chair_0002", "night_stand/night_stand_0001")


def test_a_folder_of_another_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="no splat of the layout 'shapesplats' .*<synset>-<model>"):
        read_released(tmp_path, "shapesplats")
    with pytest.raises(InputError, match="did you mean 'shapesplats'"):
        read_released(tmp_path, "shapesplat")

from pathlib import Path

import pytest

from gsmae.errors import InputError
from preprocessing.sources import SOURCES, MeshItem, detect, skipped


def grow(root: Path, *names: str) -> Path:
    """A folder with empty files of these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def items(root: Path, source: str | None = None) -> list[MeshItem]:
    return list(SOURCES[source or detect(root)](root))


def test_the_examples_are_found_by_both_layouts(examples):
    assert detect(examples / "meshes") == "folder" and detect(examples / "off") == "modelnet"
    objects, offs = items(examples / "meshes"), items(examples / "off")
    assert len(objects) == len(offs) == 20
    assert objects[5] == MeshItem(
        "chair/deckChair", examples / "meshes/chair/deckChair/models/deckChair.obj", "chair", ""
    )
    assert [i.split for i in offs if i.category == "lamp"] == ["test", "train", "train", "train"]
    assert skipped(examples / "meshes") == skipped(examples / "off") == []


def test_the_order_is_that_of_the_uids_and_not_of_the_disk(examples):
    uids = [item.uid for item in items(examples / "meshes")]
    assert uids == sorted(uids) and uids == [item.uid for item in items(examples / "meshes")]


def test_shapenet_v1_and_v2_are_read_and_what_is_missing_is_told(tmp_path):
    root = grow(
        tmp_path, "02691156/aaa/model.obj", "02691156/bbb/models/model_normalized.obj", "02691156/bbb/images/t.jpg",
        "03001627/aaa/models/model_normalized.obj", "03001627/empty/images/t.jpg", "taxonomy.json", "README.txt",
    )  # fmt: skip
    assert detect(root) == "shapenet"
    assert [i.uid for i in items(root)] == ["02691156/aaa", "02691156/bbb", "03001627/aaa"]
    assert {i.split for i in items(root)} == {""} and items(root)[1].category == "02691156"
    (missing,) = skipped(root)
    assert missing.path.name == "empty" and "model_normalized.obj" in missing.reason


def test_classes_of_two_words_keep_both(tmp_path):
    root = grow(tmp_path, "night_stand/train/night_stand_0001.off", "night_stand/test/night_stand_0201.off")
    assert detect(root) == "modelnet"
    assert [(i.uid, i.category, i.split) for i in items(root)] == [
        ("night_stand/night_stand_0201", "night_stand", "test"),
        ("night_stand/night_stand_0001", "night_stand", "train"),
    ]


def test_a_folder_may_hold_files_splits_and_objects(tmp_path):
    root = grow(
        tmp_path, "cup/a.glb", "cup/train/b.OBJ", "cup/train/b.mtl", "cup/test/c/model.obj", "cup/d/models/d.obj",
        "cup/e/any.ply", "cup/f/model.obj", "cup/f/low.obj", "cup/.hidden.obj",
    )  # fmt: skip
    assert {(i.uid, i.split) for i in items(root)} == {
        ("cup/a", ""), ("cup/b", "train"), ("cup/c", "test"), ("cup/d", ""), ("cup/e", ""), ("cup/f", ""),
    }  # fmt: skip


def test_of_two_meshes_of_one_name_neither_is_built_and_both_are_told(tmp_path):
    root = grow(tmp_path, "cup/train/a.obj", "cup/test/a.off", "cup/b.obj")
    assert [item.uid for item in items(root, "folder")] == ["cup/b"]
    told = {s.path.name: s.reason for s in skipped(root, "folder")}
    assert "test/a.off" in told["a.obj"] and "train/a.obj" in told["a.off"] and "rename" in told["a.off"]


def test_of_one_mesh_in_two_formats_the_one_that_tells_more_is_read(tmp_path):
    root = grow(tmp_path, "cup/a.stl", "cup/a.obj", "cup/b.off", "cup/b.glb", "cup/b.ply", "cup/c.STL", "cup/c.stl")
    assert {item.path.name for item in items(root, "folder")} == {"a.obj", "b.glb"}
    told = {s.path.name: s.reason for s in skipped(root, "folder")}
    assert set(told) == {"a.stl", "b.off", "b.ply", "c.STL", "c.stl"}
    assert "a.obj is read" in told["a.stl"] and "rename" in told["c.stl"]


def test_a_build_or_a_pack_inside_its_collection_is_no_part_of_it(tmp_path):
    root = grow(
        tmp_path, "cup/a.obj", "out/build.json", "out/splats/cup/a.ply", "out/records/cup/a.json", "cup/p/pack.json",
        "cup/p/b.ply",
    )  # fmt: skip
    assert [item.uid for item in items(root)] == ["cup/a"] and skipped(root) == []
    grow(root, "build.json", "splats/cup/a.ply", "views/cup/a.png", "points/cup/a.npz", "records/cup/a.json")
    assert [item.uid for item in items(root, "folder")] == ["cup/a"] and skipped(root, "folder") == []


def test_a_link_that_leads_out_of_the_collection_is_told_and_not_read(tmp_path):
    root = grow(tmp_path / "in", "cup/real.obj", "disk/other.obj")
    grow(tmp_path, "secret.obj", "elsewhere/far.obj")
    (root / "cup" / "out.obj").symlink_to(tmp_path / "secret.obj")
    (root / "cup" / "inside.obj").symlink_to("real.obj")
    (root / "far").symlink_to(tmp_path / "elsewhere")  # a whole category may lie on another disk
    (root / "cup" / "loop").symlink_to(root)
    assert {item.uid for item in items(root)} == {"cup/real", "cup/inside", "disk/other", "far/far"}
    assert {s.path.name for s in skipped(root)} == {"out.obj", "loop"}


def test_what_cannot_be_read_is_listed_with_its_reason(tmp_path):
    root = grow(tmp_path, "cup/a.obj", "cup/b.fbx", "cup/b.png", "cup/c/c.blend", "cup/d/x.obj", "cup/d/y.obj")
    reasons = {s.path.relative_to(root).as_posix(): s.reason for s in skipped(root)}
    assert set(reasons) == {"cup/b.fbx", "cup/c", "cup/d"}
    assert ".fbx" in reasons["cup/b.fbx"] and ".blend" in reasons["cup/c"] and "several" in reasons["cup/d"]
    assert [i.uid for i in items(root)] == ["cup/a"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_root_that_is_missing_or_holds_nothing_is_an_error(tmp_path, source):
    with pytest.raises(InputError, match="no such folder"):
        items(tmp_path / "absent", source)
    with pytest.raises(InputError, match="no meshes"):
        items(grow(tmp_path, "cup/readme.txt"), source)


def test_detect_refuses_an_empty_root(tmp_path):
    with pytest.raises(InputError, match="no folders"):
        detect(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        detect(tmp_path / "absent")

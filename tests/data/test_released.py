"""Released collections are packed like builds, from folders and from zips."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

import data.released
from data.checks import check
from data.datasets import SplatDataset
from data.released import detect, find, read_released, read_source
from data.shards import pack
from gsmae.cli import main
from gsmae.errors import InputError
from gsmae.ply import write_ply


def test_shapesplats_with_its_overlapping_lists(tmp_path, make_splat):
    folder = tmp_path / "splats"
    names = [f"0300162{k % 2}-{k:x}-m" for k in range(8)]
    for k, name in enumerate(names):
        folder.mkdir(exist_ok=True)
        write_ply(folder / f"{name}.ply", make_splat(k))
    (tmp_path / "train.txt").write_text("\n".join(f"{n}.ply" for n in names[:7]))
    (tmp_path / "test.txt").write_text("\n".join(f"{n}.ply" for n in names[:2]))
    build = read_released(folder, "shapesplats")
    assert {r.uid: r.split for r in build.done}["03001620/0-m"] == "test"
    pack(build, tmp_path / "p", val_fraction=0)
    train, test = (SplatDataset(tmp_path / "p", s) for s in ("train", "test"))
    assert len(test) == 2 and train.class_names == ("03001620", "03001621") and not set(train.uids) & set(test.uids)


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
    with pytest.raises(InputError, match=r"no such file or folder"):
        read_released(tmp_path / "none")
    with pytest.raises(InputError, match=r"no build\.json and holds no \.ply"):
        read_released(tmp_path)


def tree(root: Path, make_splat, *names: str) -> Path:
    for k, name in enumerate(names):
        write_ply(root / name, make_splat(k))
    return root


def zipped(folder: Path, out: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """One zip for each folder below `folder`, as the collections are published."""
    out.mkdir()
    for part in sorted(folder.iterdir()):
        with zipfile.ZipFile(out / f"{part.name}.zip", "w", method) as file:
            for path in sorted(part.rglob("*")):
                if path.is_file():
                    file.write(path, path.relative_to(part))
    return out


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("shapesplats", [f"0300162{k}_{k % 2}/0300162{k}-{k:x}a" for k in range(4)]),
        ("modelnet-splats", [f"{c}/{s}/{c}_000{k}/point_cloud" for k, (c, s) in enumerate(
            [("chair", "train"), ("chair", "test"), ("night_stand", "train")])]),
        ("folder", ["chair/a", "chair/b", "table/a"]),
    ],
)  # fmt: skip
def test_a_pack_from_zips_is_the_pack_from_the_unpacked_files_byte_for_byte(tmp_path, make_splat, layout, names):
    files = tree(tmp_path / "files", make_splat, *(f"{name}.ply" for name in names))
    zips = zipped(files, tmp_path / "zips")
    before = sorted(tmp_path.rglob("*"))
    assert detect(files) == detect(zips) == layout
    pack(read_source(files), tmp_path / "p")
    pack(read_source(zips), tmp_path / "q")
    for name in ("pack.json", "index.parquet", "shard_00000.h5"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "q" / name).read_bytes()
    ours = {tmp_path / "p", tmp_path / "q"}
    assert [p for p in sorted(tmp_path.rglob("*")) if not ours & {p, *p.parents}] == before  # nothing was unpacked


def test_any_folder_of_splats_is_a_collection(tmp_path, make_splat):
    root = tree(
        tmp_path / "mine", make_splat, "chair/a.ply", "flat.ply", "train/table/t.ply", "lamp/test/l.ply",
        "scene/point_cloud/iteration_7000/point_cloud.ply", "scene/point_cloud/iteration_30000/point_cloud.ply",
        "deep/er/x/point_cloud.ply", ".hidden/no.ply", "chair/.aside-1.ply",
    )  # fmt: skip
    (tmp_path / "train.txt").write_text("chair/a\nflat\n")
    found = {f.uid: (f.split, str(f.file)) for f in find(root)}
    assert {uid: split for uid, (split, _) in found.items()} == {
        "chair/a": "train", "mine/flat": "train", "table/t": "train", "lamp/l": "test", "mine/scene": "", "er/x": "",
    }  # fmt: skip
    assert "iteration_30000" in found["mine/scene"][1]


def test_one_object_in_two_zips_is_refused_with_both_names(tmp_path, make_splat):
    files = tree(tmp_path / "f", make_splat, "a_0/03001627-x.ply", "a_1/03001627-x.ply")
    with pytest.raises(InputError, match=r"a_1\.zip/03001627-x\.ply: object '03001627/x' is also .*a_0\.zip"):
        find(zipped(files, tmp_path / "z"))


def test_a_broken_splat_is_a_failure_with_its_reason_and_not_the_end(tmp_path, make_splat, capsys):
    files = tree(tmp_path / "f", make_splat, "chair/a.ply", "chair/b.ply", "chair/c.ply")
    (files / "chair" / "b.ply").write_bytes((files / "chair" / "b.ply").read_bytes()[:-3])
    zips = zipped(files, tmp_path / "z", zipfile.ZIP_STORED)
    content = (zips / "chair.zip").read_bytes()
    at = content.index((files / "chair" / "c.ply").read_bytes()[-50:])
    (zips / "chair.zip").write_bytes(content[:at] + b"spoilt" + content[at + 6 :])
    assert main(["pack", str(zips), "--out", str(tmp_path / "p"), "--json"]) == 4
    summary = json.loads(capsys.readouterr().out)
    assert summary["objects"] == 1 and summary["failed"] == 2
    assert any("is cut off" in reason for reason in summary["failures"])
    assert any("is damaged: Bad CRC-32" in reason for reason in summary["failures"])


def test_a_splat_that_changed_in_its_zip_since_it_was_read_is_not_packed(tmp_path, make_splat):
    files = tree(tmp_path / "f", make_splat, "chair/a.ply")
    build = read_released(zipped(files, tmp_path / "z"))
    record = build.done[0].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(InputError, match=r"chair\.zip/a\.ply: differs from its record"):
        pack(data.released.replace(build, records=(record,)), tmp_path / "p")


def test_a_source_may_be_named_and_a_build_is_told_from_a_collection(make_build, tmp_path, make_splat):
    build = make_build().add("chair/1")
    assert detect(build.path) == "build" and read_source(build.path).layout == "build"
    assert read_source(build.path, "folder").done[0].uid == "chair/1"  # its splats, without its records
    with pytest.raises(InputError, match=r"has no build\.json"):
        read_source(tree(tmp_path / "f", make_splat, "chair/a.ply"), "build")


def test_splits_from_lists_reach_the_objects_of_a_zip(tmp_path, make_splat):
    files = tree(tmp_path / "f", make_splat, "03001627_0/03001627-a.ply", "03001627_0/03001627-b.ply")
    zips = zipped(files, tmp_path / "z")
    (zips / "shapenet_split").mkdir()
    (zips / "shapenet_split" / "train.txt").write_text("03001627-a.ply\n03001627-b.ply\n")
    (zips / "shapenet_split" / "test.txt").write_text("03001627-b.ply\n")
    assert [(f.uid, f.split) for f in find(zips)] == [("03001627/a", "train"), ("03001627/b", "test")]
    assert [f.split for f in find(zips / "03001627_0.zip")] == ["train", "test"]


def test_zips_are_checked_without_unpacking_them(tmp_path, make_splat, capsys):
    files = tree(tmp_path / "f", make_splat, "chair/a.ply", "chair/b.ply", "table/c.ply")
    (files / "chair" / "b.ply").write_text("ply\n")
    zips = zipped(files, tmp_path / "z", zipfile.ZIP_STORED)
    assert check(zips / "table.zip") == []
    (problem,) = check(zips / "chair.zip")
    assert problem.path == f"{zips}/chair.zip/b.ply" and problem.kind == "unreadable"
    content = (zips / "table.zip").read_bytes()
    (zips / "table.zip").write_bytes(content[:400] + b"spoilt" + content[406:])
    (zips / "cut.zip").write_bytes(content[:-40])
    zero = make_splat(1)
    write_ply(zips / "loose.ply", zero.replace(quats=zero.quats * 0))
    found = {Path(p.path).relative_to(zips).as_posix(): p.cause for p in check(zips)}
    assert set(found) == {"chair.zip/b.ply", "table.zip/c.ply", "cut.zip", "loose.ply"}
    assert "Bad CRC-32" in found["table.zip/c.ply"] and "not readable as a zip" in found["cut.zip"]
    assert main(["check", str(zips)]) == 4 and "cut.zip" in capsys.readouterr().out

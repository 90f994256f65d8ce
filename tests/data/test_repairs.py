"""repair mends what follows from other files, says what does not, and never touches a splat or shard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data.checks import check, verify
from data.datasets import SplatDataset
from data.manifest import read_build
from data.packs import read_index, read_pack
from data.repairs import repair
from data.shards import pack
from gsmae.cli import main
from gsmae.errors import InputError
from gsmae.locks import only_writer


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_whole_build_and_a_whole_pack_are_left_as_they_are(make_build, packed, tmp_path, capsys):
    build = make_build().add("chair/1").fail("chair/2")
    copy = shutil.copytree(packed, tmp_path / "copy")
    for path in (build.path, copy):
        before = snapshot(path)
        report = repair(path)
        assert not report.mended and not report.left
        after = snapshot(path)
        after.pop(".lock", None)
        assert after == before
        assert main(["repair", str(path)]) == 0 and "nothing to mend" in capsys.readouterr().out


def test_records_are_written_for_splats_that_have_none_and_leftovers_swept(make_build, tmp_path):
    build = make_build()
    for i in range(4):
        build.add(f"chair/{i}", count=30 + i)
    root = tmp_path / "meshes"
    (root / "chair" / "test").mkdir(parents=True)
    (root / "chair" / "test" / "1.off").write_text("")
    head = json.loads((build.path / "build.json").read_text())
    (build.path / "build.json").write_text(json.dumps({**head, "root": str(root)}))
    records, splats = build.path / "records" / "chair", build.path / "splats" / "chair"
    (records / "0.json").write_text("{")
    (records / "1.json").unlink()
    (splats / ".aside-9.ply").write_text("half")
    kept = {p.name: p.read_bytes() for p in splats.glob("[0-9].ply")}
    report = repair(build.path)
    assert sorted(Path(m.path).name for m in report.mended) == [".aside-9.ply", "0.json", "1.json"]
    assert not report.left and check(build.path) == []
    done = {r.uid: r for r in read_build(build.path).done}
    assert (done["chair/0"].split, done["chair/1"].split, done["chair/2"].split) == ("", "test", "train")
    assert done["chair/0"].gaussians == 30 and done["chair/0"].part_names == ("back", "leg", "seat")
    assert {p.name: p.read_bytes() for p in splats.glob("*.ply")} == kept
    assert repair(build.path).mended == () and pack(build.path, tmp_path / "p").objects == 4


def test_part_names_come_back_from_the_patterns_of_the_build(make_build):
    build = make_build(parts=None).add("chair/1")
    head = json.loads((build.path / "build.json").read_text())
    patterns = {"table": {"top": ["T*"], "leg": ["L"]}, "chair": {"seat": ["*"]}}
    (build.path / "build.json").write_text(json.dumps({**head, "part_patterns": patterns}))
    (build.path / "parts.json").write_text("[")
    (mended,) = repair(build.path).mended
    assert mended.path.endswith("parts.json")
    assert read_build(build.path).parts == {"chair": ("seat",), "table": ("top", "leg")}


def test_what_a_build_has_lost_is_told_with_a_cure(make_build, capsys):
    build = make_build().add("chair/gone").add("chair/cut").add("chair/changed")
    splats = build.path / "splats" / "chair"
    (splats / "gone.ply").unlink()
    (splats / "cut.ply").write_bytes((splats / "cut.ply").read_bytes()[:-1])
    (build.path / "records" / "chair" / "cut.json").unlink()
    (splats / "changed.ply").write_bytes((splats / "changed.ply").read_bytes() + b"x")
    left = {Path(p.path).name: p for p in repair(build.path).left}
    assert {name: p.kind for name, p in left.items()} == {
        "gone.ply": "missing", "cut.ply": "leftover", "changed.ply": "changed",
    }  # fmt: skip
    assert all(p.cure for p in left.values())
    assert main(["repair", str(build.path)]) == 4 and "not mended: missing" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["removed", "cut", "flipped"])
def test_an_index_is_written_again_from_the_shards(packed, tmp_path, damage):
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    index, whole = copy / "index.parquet", (copy / "index.parquet").read_bytes()
    if damage == "removed":
        index.unlink()
    else:
        index.write_bytes(whole[:-20] if damage == "cut" else whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    before = read_index(packed, read_pack(packed))
    report = repair(copy)
    assert not report.left and verify(copy).ok and "no PSNR" in report.mended[0].what
    after = read_index(copy, read_pack(copy))
    for name in before.__dataclass_fields__:
        if name != "psnr":
            assert getattr(before, name).tolist() == getattr(after, name).tolist(), name
    assert SplatDataset(copy, "val").uids == SplatDataset(packed, "val").uids


def test_an_index_that_shards_say_everything_about_comes_back_byte_for_byte(make_build, tmp_path):
    build = make_build().add("chair/1", "", psnr=None).add("chair/2", "", psnr=None).add("chair/3", "", psnr=None)
    pack(build.path, tmp_path / "p")
    before = snapshot(tmp_path / "p")
    (tmp_path / "p" / "index.parquet").write_bytes(b"spoilt")
    assert "byte for byte" in repair(tmp_path / "p").mended[0].what
    assert snapshot(tmp_path / "p") == before


def test_a_pack_that_lost_a_shard_is_not_given_an_index_of_less(packed, tmp_path):
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    (copy / "index.parquet").unlink()
    (copy / "shard_00001.h5").unlink()
    (copy / ".aside-x").write_text("")
    report = repair(copy)
    assert [Path(m.path).name for m in report.mended] == [".aside-x"]
    assert {Path(p.path).name for p in report.left} == {"index.parquet", "shard_00001.h5"}
    assert all(p.cure for p in report.left)
    (copy / "pack.json").write_text("{")
    assert "pack.json" in repair(copy).left[0].path


def test_other_folders_and_folders_at_work_are_refused(make_build, packed, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        repair(tmp_path / "none")
    with pytest.raises(InputError, match="not a build or a pack"):
        repair(tmp_path)
    build = make_build().add("chair/1")
    with only_writer(build.path, "build", keep=True), pytest.raises(InputError, match="another build is at work"):
        repair(build.path)

"""audit: leaks, gaps and doubles, on lists of the released ones' exact shape, builds, packs and collections."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from data.audit import audit, modelnet, overlaps
from data.shards import pack
from gsmae.cli import main
from gsmae.errors import InputError
from gsmae.ply import write_ply


def counted(report) -> dict[str, int]:
    return {kind: count for kind, count in report.counts.items() if count}


@pytest.fixture(scope="module")
def shapenet_lists(tmp_path_factory) -> Path:
    """Lists as ShapeSplats' are: 51,934 entries of 51,014 ids in 55 synsets, 916 of them in more than one (912 in two,
    four in three), and 520 test objects, all of which are in train as well."""
    rng = random.Random(0)
    synsets = [f"{2691156 + 34567 * k:08d}" for k in range(55)]
    ids = [f"{rng.getrandbits(128):032x}" for _ in range(51014)]
    lines = [f"{synsets[k % 55]}-{name}.ply" for k, name in enumerate(ids)]
    lines += [f"{synsets[(k + 1) % 55]}-{ids[k]}.ply" for k in range(916)]
    lines += [f"{synsets[(k + 2) % 55]}-{ids[k]}.ply" for k in range(4)]
    assert len(set(lines)) == 51934
    rng.shuffle(lines)
    folder = tmp_path_factory.mktemp("lists") / "shapenet_split"
    folder.mkdir()
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    (folder / "test.txt").write_text("\n".join(rng.sample(lines, 520)) + "\n")
    return folder


def test_the_released_shapenet_lists_are_found_out(shapenet_lists):
    report = audit(shapenet_lists)
    assert (report.entries, report.objects, report.ids, report.categories) == (52454, 51934, 51014, 55)
    assert counted(report) == {"splits": 520, "categories": 916}
    assert overlaps(report) == ["520 of the 520 test objects are also in train"]
    assert report.splits == {"train": 51934, "val": 0, "test": 520}


def test_the_verb_says_so_and_exits_with_4(shapenet_lists, capsys):
    lists = [str(shapenet_lists / name) for name in ("train.txt", "test.txt")]
    assert main(["audit", *lists]) == 4
    out = capsys.readouterr().out
    assert "520 objects in two splits\n  520 of the 520 test objects are also in train\n" in out
    assert "916 ids in two categories" in out and "and 911 more" in out
    assert main(["audit", *lists, "--json"]) == 4
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"]["splits"] == 520 and len(summary["findings"]) == 520 + 916


def test_lists_are_audited_without_loading_what_splats_need(shapenet_lists):
    code = (
        "import sys; from data.audit import audit; audit(sys.argv[1]); assert not {'torch', 'pyarrow'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code, str(shapenet_lists)], check=True)


def test_known_sizes_of_modelnet():
    names = modelnet("modelnet40")
    assert sum(n.split == "train" for n in names) == 9843 and sum(n.split == "test" for n in names) == 2468
    names = modelnet("modelnet10")
    assert sum(n.split == "train" for n in names) == 3991 and sum(n.split == "test" for n in names) == 908


@pytest.fixture
def modelnet_lists(tmp_path) -> Path:
    """9,842 and 2,467 names: lamp_0120 of train and lamp_0144 of test are not there."""
    for split in ("train", "test"):
        names = [n.name for n in modelnet("modelnet40") if n.split == split]
        names = [name for name in names if name not in ("lamp_0120", "lamp_0144")]
        (tmp_path / f"modelnet40_{split}.txt").write_text("\n".join(names))
    return tmp_path


def test_the_released_modelnet_lists_lack_two_lamps(modelnet_lists):
    report = audit(modelnet_lists)
    assert report.standard == "modelnet40" and report.splits == {"train": 9842, "val": 0, "test": 2467}
    assert [(f.kind, f.name) for f in report.findings] == [
        ("missing", "lamp/lamp_0120"), ("missing", "lamp/lamp_0144"),
    ]  # fmt: skip
    one = audit(modelnet_lists / "modelnet40_test.txt")
    assert one.standard == "" and one.ok  # a fifth of a collection is not taken for all of it
    assert audit(modelnet_lists / "modelnet40_test.txt", ["modelnet40"]).counts["missing"] == 9843 + 1


def test_a_whole_modelnet10_is_not_taken_for_a_broken_modelnet40(tmp_path):
    (tmp_path / "all.txt").write_text("\n".join(n.name for n in modelnet("modelnet10")))
    report = audit(tmp_path / "all.txt")
    assert report.standard == "modelnet10" and report.ok


def test_a_build_is_compared_with_a_list_and_with_itself(make_build, tmp_path):
    build = make_build().add("chair/1", "train").add("chair/2", "test", mesh_sha256="mesh of chair/1")
    build.add("table/3", "train", seed=5).add("table/4", "val", seed=5).fail("chair/bad", "no faces")
    (tmp_path / "test.txt").write_text("chair/2\nchair/1\ntable/gone\ntable/gone\n")
    report = audit(build.path, [tmp_path / "test.txt"])
    found = {(f.kind, f.name if f.kind not in ("meshes", "splats") else f.uids): f for f in report.findings}
    assert set(found) == {
        ("splits", "chair/1"), ("missing", "chair/bad"), ("missing", "table/gone"), ("repeated", "table/gone"),
        ("meshes", ("chair/1", "chair/2")), ("splats", ("table/3", "table/4")),
    }  # fmt: skip
    assert "failed: load: no faces" in found["missing", "chair/bad"].cause
    assert "across train and test" in found["meshes", ("chair/1", "chair/2")].cause
    assert "across train and val" in found["splats", ("table/3", "table/4")].cause


def test_a_clean_build_and_its_pack_are_clean(make_build, tmp_path, capsys):
    build = make_build().add("chair/0001").add("table/0001", "test", seed=4)
    pack(build.path, tmp_path / "p", val_fraction=0)
    assert audit(build.path).ok and audit(tmp_path / "p").ok  # a number is not an id
    assert main(["audit", str(tmp_path / "p")]) == 0
    assert capsys.readouterr().out.endswith("train 1, test 1\nnothing found\n")


def test_nothing_to_audit_is_not_a_clean_bill(capsys):
    assert main(["audit"]) == 3 and "nothing to audit" in capsys.readouterr().err


def test_two_packs_are_compared_with_each_other(make_build, tmp_path):
    pack(make_build("a").add("chair/1", seed=3).add("chair/2", seed=4).path, tmp_path / "pa")
    pack(make_build("b").add("sofa/1", "test", seed=3).path, tmp_path / "pb")
    (finding,) = audit([tmp_path / "pa", tmp_path / "pb"]).findings
    assert finding.kind == "splats" and finding.uids == ("chair/1", "sofa/1")


def test_a_collection_is_compared_with_the_lists_beside_it_and_only_equal_lengths_are_read(
    make_splat, tmp_path, monkeypatch
):
    long = "0123456789abcdef" * 2
    for k, name in enumerate((f"03001627-{long}", f"04379243-{long}", "03001627-b", "03001627-c")):
        write_ply(tmp_path / "s" / f"{name}.ply", make_splat(k, 40 + k))
    shutil.copy(tmp_path / "s" / "03001627-b.ply", tmp_path / "s" / "03001627-d.ply")
    (tmp_path / "s" / "train.txt").write_text(f"03001627-{long}.ply\n03001627-b.ply\n03001627-missing.ply\n")
    (tmp_path / "s" / "test.txt").write_text("03001627-b.ply\n")
    read = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or real(path))
    report = audit(tmp_path / "s")
    assert sorted(read) == ["03001627-b.ply", "03001627-d.ply"]
    assert [(f.kind, f.uids) for f in report.findings] == [
        ("splits", ("03001627/b",)),
        ("categories", (f"03001627/{long}", f"04379243/{long}")),
        ("missing", ("03001627/missing",)),
        ("splats", ("03001627/b", "03001627/d")),
    ]


def test_a_zip_is_compared_by_its_checksums(make_splat, tmp_path):
    for k in range(3):
        write_ply(tmp_path / "splat" / f"{k}.ply", make_splat(k % 2))
    for part in (0, 1):
        with zipfile.ZipFile(tmp_path / f"03001627_{part}.zip", "w") as file:
            for k in range(3):
                file.write(tmp_path / "splat" / f"{k}.ply", f"03001627-{k}.ply")
    shutil.rmtree(tmp_path / "splat")
    report = audit(tmp_path / "03001627_0.zip")
    assert [(f.kind, f.uids) for f in report.findings] == [("splats", ("03001627/0", "03001627/2"))]
    assert audit(tmp_path).counts["repeated"] == 3  # the same three objects in both zips


def test_an_id_in_train_under_one_synset_and_in_test_under_another_is_a_leak(tmp_path):
    (tmp_path / "train.txt").write_text("03001627-aa\n")
    (tmp_path / "test.txt").write_text("04379243-aa\n")
    kinds = {f.kind: f for f in audit(tmp_path).findings}
    assert set(kinds) == {"splits", "categories"} and "different categories" in kinds["splits"].cause


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shuffled_test_file_list.json", '["shape_data/03001627/aa"]'),
        ("splits.json", '{"test": ["03001627/aa"]}'),
        ("all.csv", "id,synsetId,subSynsetId,modelId,split\n1,03001627,2,aa,test\n"),
        ("my_testing.lst", "# a comment\n\n./03001627-aa.ply\n"),
        ("list.txt", "03001627/test/aa/point_cloud.ply"),
    ],
)
def test_lists_of_many_kinds_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    report = audit(tmp_path / name)
    assert report.splits["test"] == 1 and report.categories == 1 and report.ids == 1


def test_what_is_not_a_list_is_refused(tmp_path):
    for name, text, cause in (
        ("a.json", "{", "JSON"), ("b.json", "[1]", "not a list of names"), ("c.csv", "a,b\n", "no columns"),
        ("d.csv", "synsetId,modelId,split\n1,2\n", "2 cells"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=cause):
            audit(tmp_path / name)
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        audit(tmp_path / "e.txt")
    for missing in ("none.txt", "none"):
        with pytest.raises(InputError, match=r"(?i)no such file"):
            audit(tmp_path / missing)

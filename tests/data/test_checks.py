"""verify and check: every fault found and typed; a hostile shard refused; records rebuilt from files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from data.checks import check, verify
from data.datasets import SplatDataset
from data.manifest import read_build
from data.shardfile import Shard
from data.shards import pack
from gsmae.errors import InputError
from gsmae.files import sha256
from gsmae.ply import write_ply


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """A pack that a test may spoil."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_a_whole_pack_has_no_problems(packed):
    report = verify(packed)
    assert report.ok and (report.shards, report.objects) == (4, 24)
    assert report.gaussians == sum(2 * (30 + 5 * i) for i in range(12)) and check(packed) == []


def test_any_flipped_byte_in_any_file_of_a_pack_is_found(copy):
    rng = np.random.default_rng(0)
    for file in sorted(copy.iterdir()):
        if file.suffix == ".json":
            continue
        whole = file.read_bytes()
        for at in rng.integers(0, len(whole), 5):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert [p.kind for p in verify(copy).problems] == ["changed"]
        file.write_bytes(whole)
    assert verify(copy).ok


@pytest.mark.parametrize(
    ("spoil", "kind", "cause"),
    [
        (lambda p: (p / "shard_00001.h5").unlink(), "missing", "is missing"),
        (lambda p: (p / "index.parquet").unlink(), "unreadable", "is missing"),
        (lambda p: (p / "pack.json").unlink(), "unreadable", "unfinished"),
        (lambda p: (p / "pack.json").write_text("[1"), "unreadable", "JSON"),
        (lambda p: (p / ".aside-x.h5").write_text(""), "leftover", "belong"),
        (lambda p: edit(p, objects=25), "unreadable", "agree"),
        (lambda p: edit(p, gaussians=1), "disagrees", "counts"),
        (lambda p: edit(p, splits={"train": 24, "val": 0, "test": 0}), "disagrees", "splits are"),
        (lambda p: edit(p, class_names=["chair"]), "disagrees", "class or part names"),
        (lambda p: edit(p, surprise=1), "unreadable", "surprise"),
        (lambda p: edit(p, schema=2), "unreadable", "schema"),
        (lambda p: edit(p, index={"file": "../x", "sha256": "", "bytes": 1}), "unreadable", "index.file"),
    ],
)
def test_what_is_wrong_with_a_pack_is_told(copy, spoil, kind, cause):
    spoil(copy)
    problems = verify(copy).problems
    assert problems and all(p.kind == kind and cause in p.cause for p in problems)
    assert all(p.path.startswith(str(copy)) for p in problems)


def edit(folder: Path, **changes) -> None:
    values = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps({**values, **changes}))


def rewritten(folder: Path, change) -> Path:
    """Edit the first shard with h5py and make pack.json agree with the new bytes."""
    file = folder / "shard_00000.h5"
    with h5py.File(file, "r+") as f:
        change(f)
    values = json.loads((folder / "pack.json").read_text())
    values["shards"][0] |= {"sha256": sha256(file), "bytes": file.stat().st_size}
    (folder / "pack.json").write_text(json.dumps(values))
    return file


def replace(f, name, **options):
    del f[name]
    f.create_dataset(name, **options)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda f: f.__setitem__("extra", h5py.ExternalLink("/etc/passwd", "/")), "link to elsewhere"),
        (lambda f: f.__setitem__("extra", h5py.SoftLink("/splats")), "link to elsewhere"),
        (lambda f: f.create_group("extra"), "not a dataset"),
        (lambda f: f.create_dataset("extra", data=[1]), "missing or unknown: extra"),
        (lambda f: f.__delitem__("labels"), "missing or unknown: labels"),
        (lambda f: replace(f, "labels", shape=(7,), dtype="i8", external=[("/etc/passwd", 0, 56)]), "in other files"),
        (lambda f: replace(f, "labels", data=np.full(7, 2)), "not an index of the class names"),
        (lambda f: replace(f, "labels", data=np.full(6, 0)), "'labels' is int64 (6,)"),
        (lambda f: replace(f, "splats", shape=(10**11, 14), dtype="f4"), "promises"),
        (lambda f: replace(f, "splats", shape=(10**11, 14), dtype="f4", chunks=(64, 14), compression=9), "promises"),
        (lambda f: replace(f, "splats", data=np.zeros((9, 14), "f4")), "does not divide the 9 rows"),
        (lambda f: f["offsets"].__setitem__(1, 10**6), "does not divide"),
        (lambda f: replace(f, "splats", data=np.zeros((315, 14), "f4"), chunks=True, fletcher32=True), "HDF5 filter 3"),
        (lambda f: replace(f, "uids", data=["chair/1"] * 7), "type object"),
        (lambda f: f.attrs.__delitem__("frame"), "'frame' is missing"),
        (lambda f: f.attrs.__setitem__("frame", [1, 2]), "unexpected type"),
        (lambda f: f.attrs.__setitem__("schema", 2), "schema 2"),
        (lambda f: f.attrs.__setitem__("columns", np.bytes_(b'["x"]')), "has columns"),
        (lambda f: f.attrs.__setitem__("class_names", np.bytes_(b"[1]")), "list of names"),
        (lambda f: f.attrs.__setitem__("part_names", np.bytes_(b"3")), "part_names"),
    ],
)
def test_a_hostile_or_broken_shard_is_refused_by_reader_and_verify(copy, change, cause):
    file = rewritten(copy, change)
    with pytest.raises(InputError) as error:
        Shard(file)
    assert cause in str(error.value)
    assert any(cause in p.cause and p.path == str(file) for p in verify(copy).problems)


def test_virtual_datasets_are_refused(copy):
    layout = h5py.VirtualLayout(shape=(7,), dtype="i8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "labels", shape=(7,))

    def change(f):
        del f["labels"]
        f.create_virtual_dataset("labels", layout)

    with pytest.raises(InputError, match="in other files"):
        Shard(rewritten(copy, change))


def test_a_truncated_or_foreign_shard_is_refused(copy):
    file = copy / "shard_00000.h5"
    whole = file.read_bytes()
    for bad in (b"", whole[:100], whole[:5000], whole[:-1], b"x" * 1000):
        file.write_bytes(bad)
        with pytest.raises(InputError, match=r"shard_00000\.h5"):
            SplatDataset(copy)[0]


def test_whatever_bits_of_a_shard_are_flipped_it_reads_or_is_refused(copy):
    file, rng = copy / "shard_00000.h5", np.random.default_rng(0)
    whole = file.read_bytes()
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))
    refused = 0
    for _ in range(150):
        spoilt = bytearray(whole)
        for at in rng.choice(used[used < 12000], 2):
            spoilt[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(spoilt)
        try:
            shard = Shard(file)
            assert sum(len(shard.rows(i)) for i in range(len(shard))) > 0
        except InputError as error:
            assert error.path == str(file)
            refused += 1
    assert refused > 20


def test_compressed_shards_of_others_can_be_read(copy, packed):
    def change(f):
        for name in ("splats", "points"):
            values = f[name][()]
            replace(f, name, data=values, chunks=True, compression="gzip", shuffle=True)

    shard, whole = Shard(rewritten(copy, change)), Shard(packed / "shard_00000.h5")
    assert all(np.array_equal(shard.rows(i), whole.rows(i)) for i in range(len(whole)))


def test_non_finite_values_in_a_shard_are_found(copy):
    def change(f):
        f["splats"][3, 0] = np.nan
        f["splats"][3, 1] = np.inf

    rewritten(copy, change)
    (problem,) = verify(copy).problems
    assert problem.uid == "chair/0000" and "1 non-finite" in problem.cause


def test_everything_wrong_with_a_build_is_listed_at_once(make_build):
    build = make_build()
    for i in range(8):
        build.add(f"chair/{i}")
    assert check(build.path) == []
    splats = build.path / "splats" / "chair"
    (splats / "0.ply").unlink()
    (splats / "1.ply").write_bytes((splats / "1.ply").read_bytes()[:-1])
    (build.path / "records" / "chair" / "2.json").write_text("{}")
    (build.path / "points" / "chair" / "3.npz").write_bytes(b"no")
    build.add("chair/4", gaussians=3)
    (build.path / "records" / "chair" / "5.json").unlink()
    build.fail("chair/bad", "no faces")
    (splats / ".aside-1.ply").write_text("")
    assert {(p.kind, Path(p.path).name) for p in check(build.path)} == {
        ("missing", "0.ply"), ("changed", "1.ply"), ("unreadable", "2.json"), ("unreadable", "3.npz"),
        ("disagrees", "4.ply"), ("leftover", "5.ply"), ("failed", "bad.json"), ("leftover", ".aside-1.ply"),
    }  # fmt: skip
    assert "load: no faces" in str(next(p for p in check(build.path) if p.kind == "failed"))


def test_a_single_splat_and_a_folder_of_splats_are_checked(tmp_path, make_splat):
    write_ply(tmp_path / "a.ply", make_splat(1))
    assert check(tmp_path / "a.ply") == [] and check(tmp_path) == []
    zero = make_splat(1)
    write_ply(tmp_path / "b.ply", zero.replace(quats=zero.quats * 0))
    (tmp_path / "c.ply").write_text("ply\n")
    assert [(p.kind, Path(p.path).name) for p in check(tmp_path)] == [("unreadable", "b.ply"), ("unreadable", "c.ply")]
    with pytest.raises(InputError, match="no such file or folder"):
        check(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a splat, a build or a pack"):
        check(tmp_path / "empty")


def test_records_can_be_rebuilt_from_the_splats(make_build, tmp_path):
    build = make_build().add("chair/1", count=33).add("chair/2", "test")
    (build.path / "records" / "chair" / "1.json").write_text("not json")
    with pytest.raises(InputError, match=r"1\.json"):
        read_build(build.path)
    rebuilt = read_build(build.path, rebuild=True)
    record = rebuilt.done[0]
    assert (record.uid, record.gaussians, record.split, record.psnr) == ("chair/1", 33, "", None)
    assert record.sha256 == sha256(rebuilt.splat(record)) and "from the file" in record.warnings[0]
    assert rebuilt.done[1].split == "test"
    assert pack(rebuilt, tmp_path / "p").objects == 2


def test_builds_of_another_frame_or_schema_are_refused(make_build):
    for changes, message in (({"frame": "y-up"}, "frame is 'y-up'"), ({"schema": 2}, "schema 2")):
        build = make_build(message).add("chair/1")
        head = json.loads((build.path / "build.json").read_text())
        (build.path / "build.json").write_text(json.dumps({**head, **changes}))
        with pytest.raises(InputError, match=message):
            read_build(build.path)

"""Building from real meshes, and from bad ones, with fits of seconds."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gsmae.errors import InputError
from gsmae.files import read_json, sha256
from gsmae.ply import read_ply
from preprocessing.build import build
from preprocessing.building.records import Order
from preprocessing.profiles import BuildConfig, FitConfig

MICRO = BuildConfig(
    views=8, val_views=2, test_views=2, resolution=48, supersample=1, surface_points=64, min_psnr=5,
    fit=FitConfig(iterations=20, initial=300, cap=400, val_every=10, grow_every=5),
)  # fmt: skip


@pytest.fixture
def meshes(tmp_path, examples) -> Path:
    """Three real objects of two categories."""
    for name in ("chair/deckChair", "chair/foldingChair", "table/table"):
        shutil.copytree(examples / "meshes" / name, tmp_path / "meshes" / name)
    return tmp_path / "meshes"


def files(out: Path) -> dict[str, str]:
    """relative path -> hash, of everything but the time that objects took"""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.name != ".lock" and p.parent.name != "ledgers"):
        content = path.read_text() if path.suffix == ".json" else sha256(path)
        if path.parent.parent.name == "records":
            content = json.dumps({k: v for k, v in json.loads(content).items() if k not in ("seconds", "run")})
        found[str(path.relative_to(out))] = content
    return found


def test_real_meshes_become_splats_with_records_points_and_pictures(meshes, tmp_path):
    patterns = {"chair": {"seat": ["*Fabric*"], "frame": ["ChairFrame", "Metal"]}}
    report = build(meshes, tmp_path / "out", MICRO, parts=patterns, workers=0)
    assert (report.objects, report.done, report.failed) == (3, 3, 0)
    record = read_json(tmp_path / "out" / "records" / "chair" / "deckChair.json")
    splat = tmp_path / "out" / "splats" / "chair" / "deckChair.ply"
    assert record["status"] == "done" and record["sha256"] == sha256(splat)
    assert record["gaussians"] == len(read_ply(splat)) and record["psnr"] > 10
    with np.load(tmp_path / "out" / "points" / "chair" / "deckChair.npz", allow_pickle=False) as points:
        assert set(points["parts"].tolist()) == {0, 1} and points["points"].shape == (64, 3)
        assert np.linalg.norm(points["points"], axis=1).max() <= 1.001
    assert read_json(tmp_path / "out" / "parts.json") == {"chair": ["seat", "frame"]}
    assert (tmp_path / "out" / "views" / "table" / "table.png").stat().st_size > 500


def test_the_recorded_transform_takes_the_mesh_to_its_splat(meshes, tmp_path, examples):
    """The released splats, meshes and cameras disagreed by 90 degrees, and nothing recorded the frame."""
    build(meshes, tmp_path / "out", MICRO, workers=0, limit=1)
    record = read_json(tmp_path / "out" / "records" / "chair" / "deckChair.json")
    lines = (meshes / "chair" / "deckChair" / "models" / "deckChair.obj").read_text().splitlines()
    vertices = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], dtype=float)
    matrix = np.array(record["mesh_to_splat"])
    moved = vertices @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.linalg.norm(moved, axis=1).max() == pytest.approx(1, abs=1e-5)
    splat = read_ply(tmp_path / "out" / "splats" / "chair" / "deckChair.ply").means.numpy()
    with np.load(tmp_path / "out" / "points" / "chair" / "deckChair.npz", allow_pickle=False) as points:
        surface = points["points"]
    assert np.all(surface >= moved.min(0) - 1e-5) and np.all(surface <= moved.max(0) + 1e-5)
    for share in (0.1, 0.5, 0.9):
        assert np.abs(np.quantile(splat, share, axis=0) - np.quantile(surface, share, axis=0)).max() < 0.1
    up = matrix[:3, :3] @ [0, 1, 0]
    assert up[2] > 0 and np.abs(up[:2]).max() < 1e-9  # the OBJ's y is the splat's z


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(meshes, tmp_path):
    for workers, out in ((0, "a"), (2, "b")):
        build(meshes, tmp_path / out, MICRO, workers=workers)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    build(meshes, tmp_path / "c", MICRO, workers=0, seed=1)
    assert files(tmp_path / "c") != files(tmp_path / "a")


def test_each_object_has_a_seed_of_its_own(tmp_path):
    first, second = (Order(tmp_path, MICRO, seed=seed) for seed in (0, 1))
    assert len({first.seed_of("a/b"), first.seed_of("a/c"), second.seed_of("a/c")}) == 3


BAD = {
    "empty.obj": b"",
    "cut.off": b"OFF\n8 12 0\n0 0 0\n1 0 0\n",
    "nan.obj": b"v 0 0 0\nv 1 nan 0\nv 0 1 0\nf 1 2 3\n",
    "point.obj": b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n",
    "noface.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\n",
    "page.glb": b"<!doctype html>",
    "words.fbx": b"not a mesh",
}


def test_bad_meshes_are_records_with_reasons_and_the_build_goes_on(meshes, tmp_path):
    (meshes / "bad").mkdir()
    for name, content in BAD.items():
        (meshes / "bad" / name).write_bytes(content)
    report = build(meshes, tmp_path / "out", MICRO, workers=0)
    assert report.done == 3 and report.failed == 7
    for name in BAD:
        records = list((tmp_path / "out" / "records").rglob(f"*{Path(name).stem}*.json"))
        record = read_json(records[0])
        assert record["status"] == "failed" and record["reason"] and record["stage"] in ("load", "source")
        assert "traceback" not in record, record["reason"]  # foreseen, not stumbled over
        assert not list((tmp_path / "out" / "splats").rglob(f"{Path(name).stem}*"))
    assert not list((tmp_path / "out").rglob(".aside-*"))


def test_a_missing_texture_is_a_warning_and_not_a_failure(tmp_path, examples):
    shutil.copytree(examples / "meshes" / "table" / "technicalTable1", tmp_path / "m" / "table" / "technicalTable1")
    assert build(tmp_path / "m", tmp_path / "out", MICRO, workers=0).done == 1
    (record,) = (tmp_path / "out" / "records" / "table").glob("*.json")
    assert any("tree.jpg" in warning for warning in read_json(record)["warnings"])


def test_an_object_that_does_not_look_like_its_mesh_is_rejected_with_the_reason(meshes, tmp_path):
    strict = MICRO.model_copy(update={"min_psnr": 90.0})
    report = build(meshes, tmp_path / "out", strict, workers=0, limit=1)
    assert report.failed == 1 and "90 are asked for" in next(iter(report.failures))


def test_a_second_run_builds_only_what_is_missing(meshes, tmp_path):
    out = tmp_path / "out"
    build(meshes, out, MICRO, workers=0)
    before = files(out)
    stamps = {p: p.stat().st_mtime_ns for p in (out / "splats").rglob("*.ply")}
    lost = out / "splats" / "chair" / "foldingChair.ply"
    lost.unlink()
    report = build(meshes, out, MICRO, workers=0)
    assert report.already == 2 and files(out) == before
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items() if p != lost)


def test_failed_objects_are_tried_again_when_asked_or_when_their_mesh_was_mended(meshes, tmp_path):
    (meshes / "table" / "hollow.obj").write_bytes(b"")
    assert build(meshes, tmp_path / "out", MICRO, workers=0).failed == 1
    assert build(meshes, tmp_path / "out", MICRO, workers=0).already == 4
    assert build(meshes, tmp_path / "out", MICRO, workers=0, retry=True).already == 3
    shutil.copy(meshes / "chair" / "foldingChair" / "models" / "foldingChair.obj", meshes / "table" / "hollow.obj")
    assert build(meshes, tmp_path / "out", MICRO, workers=0).done == 4


def test_another_mesh_of_the_same_size_is_not_taken_for_done(meshes, tmp_path):
    build(meshes, tmp_path / "out", MICRO, workers=0)
    mesh = meshes / "table" / "table" / "models" / "table.obj"
    content = mesh.read_bytes()
    mesh.write_bytes(content.replace(b"0", b"1", 1))
    assert build(meshes, tmp_path / "out", MICRO, workers=0).already == 2
    mesh.touch()
    assert build(meshes, tmp_path / "out", MICRO, workers=0).already == 3  # only the time is new


def test_a_folder_of_the_same_name_beside_a_mesh_does_not_stand_in_its_way(meshes, tmp_path):
    folder = meshes / "table" / "flat"
    folder.mkdir()
    (folder / "drawing.blend").write_bytes(b"x")
    shutil.copy(meshes / "chair" / "foldingChair" / "models" / "foldingChair.obj", meshes / "table" / "flat.obj")
    for _ in range(2):
        report = build(meshes, tmp_path / "out", MICRO, workers=0)
        assert report.done == 4
        assert read_json(tmp_path / "out" / "records" / "table" / "flat.json")["status"] == "done"


def test_a_full_disk_stops_the_build_and_blames_no_object(meshes, tmp_path, monkeypatch):
    from preprocessing.building import objects

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken, pytest.raises(InputError, match="No space left"):
        broken.setattr(objects, "write_ply", full)
        build(meshes, tmp_path / "out", MICRO, workers=0)
    assert not list((tmp_path / "out" / "records").rglob("*.json"))
    assert build(meshes, tmp_path / "out", MICRO, workers=0).done == 3


def test_a_folder_of_another_configuration_is_not_touched(meshes, tmp_path):
    build(meshes, tmp_path / "out", MICRO, workers=0, limit=1)
    before = files(tmp_path / "out")
    with pytest.raises(InputError, match="another configuration"):
        build(meshes, tmp_path / "out", MICRO.model_copy(update={"views": 9}), workers=0)
    assert files(tmp_path / "out") == before


def test_a_killed_build_ends_as_if_it_had_never_been_killed(meshes, tmp_path):
    build(meshes, tmp_path / "whole", MICRO, workers=0)
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from test_build import *; "
        "build(sys.argv[1], sys.argv[2], MICRO, workers=1)"
    )
    command = [sys.executable, "-c", code, str(meshes), str(tmp_path / "cut"), str(Path(__file__).parent)]
    for _ in range(2):
        child = subprocess.Popen(command, start_new_session=True)
        deadline, seen = time.monotonic() + 60, len(list(tmp_path.glob("cut/records/*/*.json")))
        while len(list(tmp_path.glob("cut/records/*/*.json"))) <= seen and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    build(meshes, tmp_path / "cut", MICRO, workers=1)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_two_builders_do_not_share_a_folder(meshes, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another build is at work"):
            build(meshes, tmp_path / "out", MICRO, workers=0)
    assert build(meshes, tmp_path / "out", MICRO, workers=0, limit=1).done == 1


def test_an_empty_or_missing_collection_is_refused(tmp_path):
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError):
            build(root, tmp_path / "out", MICRO, workers=0)

"""A build of many objects at once: the same records as one by one, and no object's failure is another's."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch

from gsmae.cli import main
from gsmae.errors import GsmaeError
from preprocessing.build import build
from preprocessing.building import batches
from preprocessing.building.devices import chosen_device
from preprocessing.profiles import PROFILES, BuildConfig, FitConfig

CONFIG = BuildConfig(
    views=8, val_views=2, test_views=2, resolution=48, supersample=1, surface_points=200, min_psnr=5,
    fit=FitConfig(iterations=30, initial=200, cap=300, val_every=15, grow_every=10),
)  # fmt: skip


@pytest.fixture
def meshes(examples, tmp_path):
    """Three real objects."""
    for name in ("lamp/outdoorLamp", "chair/deckChair", "container/crate"):
        shutil.copytree(examples / "meshes" / name, tmp_path / "meshes" / name)
    return tmp_path / "meshes"


def records(out) -> dict:
    found = [json.loads(path.read_text()) for path in (out / "records").rglob("*.json")]
    return {r["uid"]: r for r in found}


@pytest.mark.parametrize(
    "kernels", ["each", pytest.param("warp", marks=pytest.mark.skipif(find_spec("warp") is None, reason="no Warp"))]
)
def test_objects_built_at_once_are_those_built_one_by_one(meshes, tmp_path, kernels):
    build(meshes, tmp_path / "one", CONFIG, workers=0)
    report = build(meshes, tmp_path / "many", CONFIG, workers=0, launch=3, kernels=kernels)
    assert report.done == 3
    many, one = records(tmp_path / "many"), records(tmp_path / "one")
    for uid, record in one.items():
        assert many[uid]["psnr"] == pytest.approx(record["psnr"], abs=0.3)
        assert many[uid]["gaussians"] == pytest.approx(record["gaussians"], rel=0.03)
        assert many[uid]["config_hash"] == record["config_hash"] and many[uid]["run"]["together"] == 3
        assert set(record) == set(many[uid])
    assert build(meshes, tmp_path / "many", CONFIG, workers=0, launch=3).already == 3


def test_what_cannot_be_built_is_a_record_and_the_others_are_splats(meshes, tmp_path):
    (meshes / "chair/broken.obj").write_text("v 0 0 0\nv 1 0 0\n")
    hidden = meshes / "container/crate/models/crate.obj"
    hidden.write_text(hidden.read_text().replace("f ", "# "))
    report = build(meshes, tmp_path / "out", CONFIG, workers=0, launch=4)
    found = records(tmp_path / "out")
    assert (report.done, report.failed) == (2, 2)
    assert found["chair/broken"]["stage"] == "load" and found["container/crate"]["status"] == "failed"
    assert (tmp_path / "out/splats/lamp/outdoorLamp.ply").exists()


def test_a_batch_that_does_not_fit_is_halved(meshes, tmp_path, monkeypatch):
    real, sizes = batches.fit_many, []

    def hungry(images, *arguments, **more):
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(images, *arguments, **more)

    monkeypatch.setattr(batches, "fit_many", hungry)
    assert build(meshes, tmp_path / "out", CONFIG, workers=0, launch=3).done == 3
    assert sizes == [3, 1, 1, 1]


def test_pictures_that_do_not_fit_halve_the_batch_too(meshes, tmp_path, monkeypatch):
    real, sizes = batches._build, []

    def hungry(items, order):
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(items, order)

    monkeypatch.setattr(batches, "_build", hungry)
    assert build(meshes, tmp_path / "out", CONFIG, workers=0, launch=3).done == 3
    assert sizes == [3, 1, 1, 1]


def test_the_batch_follows_from_the_memory_of_an_object(monkeypatch):
    fast, paper = (batches.bytes_per_object(PROFILES[name]) for name in ("fast", "paper"))
    assert 50e6 < fast < paper < 500e6
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(10 * fast / batches.SHARE) + 1, 0))
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 64) == 10
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 4) == 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 4) == 1


def test_the_device_is_chosen_by_what_there_is(monkeypatch):
    monkeypatch.setattr("preprocessing.building.devices.find_spec", lambda name: None)
    assert chosen_device("auto") == chosen_device("cpu") == "cpu"
    monkeypatch.setattr("preprocessing.building.devices.find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device("auto") == chosen_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device("auto") == "cpu"
    with pytest.raises(GsmaeError, match="sees no GPU"):
        chosen_device("cuda")


def test_the_command_takes_objects_at_once(meshes, tmp_path):
    small = ["--views", "4", "--val-views", "1", "--test-views", "1", "--resolution", "32", "--min-psnr", "1",
             "--fit.iterations", "5", "--fit.initial", "50", "--surface-points", "50"]  # fmt: skip
    code = main(
        ["build", str(meshes), "--out", str(tmp_path / "out"), "--device", "cpu", "--objects-per-launch", "2",
         "--workers", "0", *small]
    )  # fmt: skip
    assert code == 0
    assert sorted(r["run"]["together"] for r in records(tmp_path / "out").values()) == [1, 2, 2]


@pytest.mark.gpu
def test_a_build_uses_the_gpu_without_being_told(meshes, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    one = build(meshes, tmp_path / "one", PROFILES["tiny"], workers=1)
    assert main(["build", str(meshes), "--out", str(tmp_path / "many"), "--profile", "tiny", "--workers", "1"]) == 0
    many = records(tmp_path / "many")
    assert all(r["run"]["device"] == "cuda" for r in many.values())
    assert sum(r["psnr"] for r in many.values()) / 3 == pytest.approx(one.psnr, abs=0.2)

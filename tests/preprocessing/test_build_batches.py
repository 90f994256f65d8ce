"""A build of many objects at once: the same records as one by one, and no object's failure is another's."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch

from gsmae.cli import main
from gsmae.errors import GsmaeError
from preprocessing.build import build
from preprocessing.building import batches, ledgers, notes
from preprocessing.building.devices import chosen_device
from preprocessing.building.jobs import settle
from preprocessing.building.records import Order
from preprocessing.engines import WorkerDied
from preprocessing.engines.resources import SHARED_BY
from preprocessing.profiles import PROFILES, BuildConfig, FitConfig
from preprocessing.sources import SOURCES

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
    gpu = {"free": int(10 * fast / batches.SHARE) + 1, "whole": int(100 * fast)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gpu["free"], gpu["whole"]))
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 64) == 10
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 4) == 4
    # what the job before left with torch's allocator can be had again, what it still holds cannot
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(14 * fast))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: int(4 * fast))
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 64) == int(10 + batches.SHARE * 10)
    # of two workers that begin together neither takes more than half, nor more than there is
    gpu["whole"] = int(20 * fast / batches.SHARE) + 2
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 64) == 18
    monkeypatch.setenv(SHARED_BY, "2")
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 64) == 10
    gpu["free"] = 0
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 64) == int(batches.SHARE * 10)
    gpu["whole"] = 0
    assert batches.objects_at_once(PROFILES["fast"], "cuda", 4) == 1


def test_a_batch_repeated_for_want_of_memory_leaves_alone_what_is_settled(meshes, tmp_path, monkeypatch):
    (meshes / "chair/broken.obj").write_text("v 0 0 0\nv 1 0 0\n")
    real_build, real_fit, fits = batches._build, batches.fit_many, []

    def short(items, order):
        if len(items) > 2:
            real_build(items[:2], order)  # committed: one splat, one failure
            raise RuntimeError("Failed to allocate 64 bytes on device 'cuda:0'")
        return real_build(items, order)

    def counted(images, *arguments):
        fits.append(len(images))
        return real_fit(images, *arguments)

    monkeypatch.setattr(batches, "_build", short)
    monkeypatch.setattr(batches, "fit_many", counted)
    report = build(meshes, tmp_path / "out", CONFIG, workers=0, launch=4)
    assert (report.done, report.failed, sum(fits)) == (3, 1, 3)
    assert records(tmp_path / "out")["chair/broken"]["attempts"] == 1


def test_a_mesh_replaced_while_it_is_fitted_is_not_taken_for_the_one_that_was(meshes, tmp_path, monkeypatch):
    real, path = batches.fit_many, next((meshes / "container/crate").rglob("*.obj"))
    before = path.stat()

    def meanwhile(*arguments):
        if len(path.read_bytes()) == before.st_size:
            path.write_text(path.read_text() + "# another\n")
        return real(*arguments)

    monkeypatch.setattr(batches, "fit_many", meanwhile)
    build(meshes, tmp_path / "out", CONFIG, workers=0, launch=3)
    assert records(tmp_path / "out")["container/crate"]["mesh_bytes"] == before.st_size
    assert build(meshes, tmp_path / "out", CONFIG, workers=0, launch=3).already == 2  # and the new one is built


def test_a_fault_of_the_gpu_is_not_the_objects_in_whose_turn_it_came(meshes, tmp_path, monkeypatch):
    real, calls = batches.draw_views, []

    def faulty(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(*arguments)

    monkeypatch.setattr(batches, "draw_views", faulty)
    assert build(meshes, tmp_path / "out", CONFIG, workers=0, launch=3).done == 3


def test_want_of_memory_is_told_as_such_wherever_it_comes(meshes, tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(batches, "draw_views", full)
    assert build(meshes, tmp_path / "draw", CONFIG, workers=0, launch=2).failed == 3
    monkeypatch.undo()
    monkeypatch.setattr("preprocessing.building.objects.evaluate", full)
    assert build(meshes, tmp_path / "finish", CONFIG, workers=0, launch=2).failed == 3
    for name, stage in (("draw", "render"), ("finish", "quality")):
        assert {(r["failure"], r["stage"]) for r in records(tmp_path / name).values()} == {("oom", stage)}


def test_the_machine_of_an_object_on_a_gpu_is_the_gpu(meshes, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(batches, "draw_views", lambda mesh, rigs, *_: [torch.zeros(1)] * len(rigs))
    order = Order(tmp_path, CONFIG, device="cuda")
    views = {name: torch.zeros(1, 1) for name in ("train", "val", "test")}
    ledgers.machine.cache_clear()
    notes.announce(tmp_path, "")
    item = next(iter(SOURCES["folder"](meshes)))
    one = batches._loaded(item, order, views, 0)
    assert isinstance(one, batches._Loaded) and one.watch.run()["machine"] == "Some GPU"
    ledgers.machine.cache_clear()
    monkeypatch.undo()
    (told,) = settle([item], WorkerDied(3, "SIGSEGV"), order)  # by the builder, which may see no GPU
    assert (told["run"]["machine"], told["stage"]) == ("Some GPU", batches.WAITING)
    assert "machine: Some GPU" in (tmp_path / "quarantine" / f"{item.uid}.txt").read_text()


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


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_a_gpu_wanted_on_a_cluster_that_gives_none_is_refused(meshes, tmp_path, engine, capsys):
    command = ["build", str(meshes), "--out", str(tmp_path / "out"), "--engine", engine, "--device", "cuda"]
    assert main(command) != 0
    assert f"--{engine}.gpus" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_a_build_uses_the_gpu_without_being_told(meshes, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    one = build(meshes, tmp_path / "one", PROFILES["tiny"], workers=1)
    assert main(["build", str(meshes), "--out", str(tmp_path / "many"), "--profile", "tiny", "--workers", "1"]) == 0
    many = records(tmp_path / "many")
    assert all(r["run"]["device"] == "cuda" for r in many.values())
    assert sum(r["psnr"] for r in many.values()) / 3 == pytest.approx(one.psnr, abs=0.2)

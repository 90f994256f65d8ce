"""Objects that take too much, of time, of memory, of a GPU's memory: each fails alone, and says how."""

import errno
import re
import time

import pytest
import torch

from gsmae.errors import GsmaeError, InputError
from gsmae.files import read_json
from preprocessing.build import build
from preprocessing.building import objects
from preprocessing.building.limits import ObjectLimits, OutOfMemory, within_memory
from preprocessing.engines import OverLimit, Resources
from preprocessing.engines.local import local
from preprocessing.engines.worker import Worker
from preprocessing.faults import is_device_fault, is_out_of_memory
from preprocessing.profiles import BuildConfig, FitConfig

MICRO = BuildConfig(
    views=8, val_views=2, test_views=2, resolution=48, supersample=1, surface_points=64, min_psnr=5,
    fit=FitConfig(iterations=20, initial=1500, cap=2000, val_every=10, grow_every=5),
)  # fmt: skip


def greedy(job: tuple[str, ...]) -> str:
    if job[0] == "hog":
        kept = b"x" * (700 << 20)  # written to, so that it is really held
        time.sleep(600)
        del kept
    if job[0] == "hang":
        time.sleep(600)
    return job[0]


@pytest.mark.parametrize(
    ("job", "limits", "told"),
    [("hang", {"seconds": 1}, "timeout: not done after 2 s"), ("hog", {"memory": 700 << 20}, "memory: .* 0.684 GB")],
)
def test_a_worker_over_a_limit_is_ended_and_the_others_go_on(job, limits, told):
    a, bad, b = ("a",) * 600, (job,) * 2, ("b",) * 600  # a job of 600 objects has 600 times the time
    results = dict(local(greedy, [a, bad, b], Resources(workers=1, **limits)))
    assert (results[a], results[b]) == ("a", "b")
    over = results[bad]
    assert isinstance(over, OverLimit) and re.search(told, str(over)) and over.kind == told.partition(":")[0]


@pytest.mark.parametrize(("seconds", "longest", "allowed"), [(2, 0, 6), (2, 5, 5), (0, 5, 5), (1, 5, 3)])
def test_a_job_may_take_the_time_of_its_objects_but_no_longer_than_any_job(seconds, longest, allowed, monkeypatch):
    worker = Worker(greedy)
    worker.job, worker.since = ("a", "b", "c"), 100.0
    try:
        monkeypatch.setattr(time, "monotonic", lambda: 99.9 + allowed)
        assert worker.over(Resources(seconds=seconds, longest=longest)) is None
        monkeypatch.setattr(time, "monotonic", lambda: 100.1 + allowed)
        assert f"not done after {allowed} s" in str(worker.over(Resources(seconds=seconds, longest=longest)))
    finally:
        monkeypatch.undo()
        worker.end()


def test_the_time_limit_is_that_of_an_object_also_for_one_that_is_taken_out_of_its_batch(one_mesh, tmp_path):
    report = build(one_mesh, tmp_path / "out", MICRO, workers=1, batch=64, limits=ObjectLimits(seconds=2), make=endless)
    assert list(report.failures) == ["fit: timeout: not done after 2 s"]


def test_limits_without_a_worker_process_are_refused():
    with pytest.raises(GsmaeError, match="--workers 1"):
        list(local(greedy, [("a",)], Resources(workers=0, seconds=1)))


def endless(item, out, config, patterns, seed, entered, limits) -> dict:
    entered("fit")
    time.sleep(600)
    return {}


def test_an_object_over_the_time_limit_fails_as_timeout_in_the_stage_where_it_was(one_mesh, tmp_path):
    report = build(one_mesh, tmp_path / "out", MICRO, workers=1, limits=ObjectLimits(seconds=2), make=endless)
    assert report.failed == 1 and next(iter(report.failures)).startswith("fit: timeout: not done after 2 s")
    record = read_json(tmp_path / "out" / "records" / "chair" / "foldingChair.json")
    assert (record["failure"], record["attempts"]) == ("timeout", 1)
    assert "timeout" in (tmp_path / "out" / "quarantine" / "chair" / "foldingChair.txt").read_text()


def test_limits_of_the_mesh_reach_its_reader_and_are_no_part_of_the_configuration(one_mesh, tmp_path):
    report = build(one_mesh, tmp_path / "out", MICRO, workers=0, limits=ObjectLimits(faces=10))
    assert report.failed == 1 and "at most 10" in next(iter(report.failures))
    assert build(one_mesh, tmp_path / "out", MICRO, workers=0, retry=True).done == 1


def test_out_of_memory_halves_the_batch_for_good_then_the_cap_of_the_object():
    seen = []

    def run(jobs, cap):
        seen.append((tuple(jobs), cap))
        if len(jobs) > 2 or (5 in jobs and (len(jobs) > 1 or cap > 1000)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GB")
        return [job * 10 for job in jobs]

    found = list(within_memory(run, list(range(8)), batch=4, cap=4000))
    assert [(job, result) for job, result, _ in found] == [(job, job * 10) for job in range(8)]
    assert [cap for _, _, cap in found] == [4000] * 5 + [1000] + [4000] * 2
    assert seen[:2] == [((0, 1, 2, 3), 4000), ((0, 1), 4000)]
    assert seen[-2:] == [((6,), 4000), ((7,), 4000)]  # the batch stays at what fitted


def test_an_object_too_large_for_any_cap_fails_and_the_next_is_tried_with_the_whole_one():
    def run(jobs, cap):
        if jobs[0] == "big":
            raise MemoryError
        return [cap]

    (_, big, cap), (_, small, whole) = within_memory(run, ["big", "small"], batch=1, cap=4000, floor=900)
    assert isinstance(big, OutOfMemory) and cap == 1000 and "1000 Gaussians" in str(big)
    assert small == whole == 4000


def test_other_errors_are_not_taken_for_want_of_memory():
    def run(jobs, cap):
        raise RuntimeError("no kernel image is available")

    with pytest.raises(RuntimeError, match="kernel image"):
        list(within_memory(run, [1], 1, 4000))


@pytest.mark.parametrize(("room", "cap"), [(1200, 1000), (100, None)])
def test_a_fit_out_of_memory_is_made_smaller_which_its_record_says_or_fails_as_oom(
    one_mesh, tmp_path, monkeypatch, room, cap
):
    real = objects.fit

    def tight(*arguments):
        if arguments[5].cap > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    monkeypatch.setattr(objects, "fit", tight)
    report = build(one_mesh, tmp_path / "out", MICRO, workers=0)
    record = read_json(tmp_path / "out" / "records" / "chair" / "foldingChair.json")
    if cap:
        assert report.done == 1 and record["cap"] == cap >= record["gaussians"]
        assert any("memory was short" in warning for warning in record["warnings"])
    else:
        assert report.failed == 1 and (record["failure"], record["stage"]) == ("oom", "fit")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("Failed to allocate 1048576 bytes on device 'cuda:0'"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_want_of_memory_is_recognised_and_is_no_fault_of_the_gpu(error):
    assert is_out_of_memory(error) and not is_device_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("No CUDA GPUs are available"),
        RuntimeError("Found no NVIDIA driver on your system"),
        RuntimeError("Unexpected error from cudaGetDeviceCount(): Error 802: system not yet initialized"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        ValueError("Invalid device identifier: cuda:0"),
        AssertionError("Torch not compiled with CUDA enabled"),
    ],
)
def test_faults_of_the_gpu_are_recognised(error):
    assert is_device_fault(error) and not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [GsmaeError("mesh of CUDA error: unreadable"), RuntimeError("shapes differ"), OSError(5, "CUDA error")]
)
def test_other_errors_are_neither(error):
    assert not is_device_fault(error) and not is_out_of_memory(error)


def test_a_picture_that_cannot_be_written_is_the_folders_fault(one_mesh, tmp_path, monkeypatch):
    real = objects.write_aside

    def refused(path):
        if "views" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(objects, "write_aside", refused)
    with pytest.raises(InputError, match="the build stopped"):
        build(one_mesh, tmp_path / "out", MICRO, workers=0)
    assert not list((tmp_path / "out" / "records").rglob("*.json"))


def test_a_splat_that_is_not_good_enough_fails_in_the_stage_that_says_so(one_mesh, tmp_path):
    strict = MICRO.model_copy(update={"min_psnr": 90.0})
    assert build(one_mesh, tmp_path / "out", strict, workers=0).failed == 1
    assert read_json(tmp_path / "out" / "records" / "chair" / "foldingChair.json")["stage"] == "quality"

"""Objects that take too much, of time, of memory, of a GPU's memory: each fails alone, and says how."""

import re
import time

import pytest
import torch

from gsmae.errors import GsmaeError
from gsmae.files import read_json
from preprocessing.build import build
from preprocessing.building import objects
from preprocessing.building.limits import ObjectLimits, OutOfMemory, within_memory
from preprocessing.engines import OverLimit, Resources
from preprocessing.engines.local import local
from preprocessing.profiles import BuildConfig, FitConfig

MICRO = BuildConfig(
    views=8, val_views=2, test_views=2, resolution=48, supersample=1, surface_points=64, min_psnr=5,
    fit=FitConfig(iterations=20, initial=1500, cap=2000, val_every=10, grow_every=5),
)  # fmt: skip


def greedy(job: str) -> str:
    if job == "hog":
        kept = b"x" * (700 << 20)  # written to, so that it is really held
        time.sleep(600)
        del kept
    if job == "hang":
        time.sleep(600)
    return job


@pytest.mark.parametrize(
    ("job", "limits", "told"),
    [("hang", {"seconds": 3}, "timeout: not done after 3 s"), ("hog", {"memory": 700 << 20}, "memory: .* 0.684 GB")],
)
def test_a_worker_over_a_limit_is_ended_and_the_others_go_on(job, limits, told):
    results = dict(local(greedy, ["a", job, "b"], Resources(workers=1, **limits)))
    assert (results["a"], results["b"]) == ("a", "b")
    over = results[job]
    assert isinstance(over, OverLimit) and re.search(told, str(over)) and over.kind == told.partition(":")[0]


def test_limits_without_a_worker_process_are_refused():
    with pytest.raises(GsmaeError, match="--workers 1"):
        list(local(greedy, ["a"], Resources(workers=0, seconds=1)))


def test_an_object_over_the_time_limit_fails_as_timeout_in_the_stage_where_it_was(one_mesh, tmp_path):
    endless = MICRO.model_copy(update={"fit": MICRO.fit.model_copy(update={"iterations": 10**6, "patience": 10**6})})
    report = build(one_mesh, tmp_path / "out", endless, workers=1, limits=ObjectLimits(seconds=8))
    assert report.failed == 1 and next(iter(report.failures)).startswith("fit: timeout: not done after 8 s")
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
